"""`python -m shoal.master` as a process: how it starts, refuses to start, and stops."""

import json
import signal
import socket
import subprocess
import sys
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shoal.wire.options import open_channel
from shoal.wire.v1 import jobs_pb2, jobs_pb2_grpc
from tests.integration.master.conftest import eventually


def command(*arguments):
    return [sys.executable, "-m", "shoal.master", "--port", "0", "--metrics-port", "0", *arguments]


@pytest.fixture
def start(tmp_path):
    """Starts a master and returns the process and its ready file's content."""
    processes = []

    def run(*arguments):
        ready = tmp_path / f"ready-{len(processes)}.json"
        with (tmp_path / "errors.txt").open("w") as errors:
            process = subprocess.Popen(
                command("--data-dir", str(tmp_path / "data"), "--ready-file", str(ready), *arguments), stderr=errors
            )
        processes.append(process)
        eventually(lambda: ready.exists() or process.poll() is not None, seconds=60)
        assert ready.exists(), (tmp_path / "errors.txt").read_text()
        return process, json.loads(ready.read_text())

    yield run
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def refusal(*arguments, env=None):
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")
    return done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_says_so_and_stops_with_exit_0(start, tmp_path, number):
    process, ready = start("--log-format", "json")
    with open_channel(f"127.0.0.1:{ready['port']}") as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
    assert ready["pid"] == process.pid
    begun = time.monotonic()
    process.send_signal(number)
    assert process.wait(timeout=20) == 0
    assert time.monotonic() - begun < 5
    events = [json.loads(line)["event"] for line in (tmp_path / "errors.txt").read_text().splitlines()]
    assert events == ["master_serves", "master_stops"]


def test_a_killed_master_has_every_job_that_it_acknowledged(start):
    process, ready = start()
    job_ids = []
    with open_channel(f"127.0.0.1:{ready['port']}") as channel:
        jobs = jobs_pb2_grpc.JobServiceStub(channel)
        for _ in range(20):
            request = jobs_pb2.SubmitRequest(spec_json="model: {type: mlp}")
            job_ids.append(jobs.Submit(request, timeout=10).job_id)
        process.kill()
        process.wait()
        with pytest.raises(grpc.RpcError):
            jobs.Submit(request, timeout=5)
    _, ready = start()
    with open_channel(f"127.0.0.1:{ready['port']}") as channel:
        listed = jobs_pb2_grpc.JobServiceStub(channel).List(jobs_pb2.ListRequest(), timeout=10)
    assert [job.job_id for job in listed.jobs] == job_ids[::-1]


def test_a_port_in_use_is_one_clear_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refusal("--store", "memory://", "--port", str(port))
        assert f"port {port}" in line
        assert "--port" in line
        line = refusal("--store", "memory://", "--metrics-port", str(port))
        assert "--metrics-port" in line


def test_a_second_master_on_the_same_store_is_one_clear_line(start, tmp_path):
    start()
    assert "another process" in refusal("--data-dir", str(tmp_path / "data"))


def test_a_data_folder_that_can_not_be_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refusal("--data-dir", str(tmp_path / "file" / "data"))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--lease-seconds", "-1"], "lease_seconds"),
        (["--port", "99999"], "--port"),
        (["--optimizer", "nonsense"], "nonsense"),
        (["--store", "mysql://x/y"], "mysql"),
        (["--config", "/does/not/exist.yaml"], "/does/not/exist.yaml"),
    ],
)
def test_a_bad_setting_is_one_clear_line(arguments, part):
    assert part in refusal(*arguments)


def test_a_mistyped_environment_variable_is_one_clear_line():
    assert "SHOAL_MASTER_PROT" in refusal(env={"SHOAL_MASTER_PROT": "1"})
