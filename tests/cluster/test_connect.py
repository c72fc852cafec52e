"""From outside into a real cluster: what goes through `shoal connect`, and what becomes of it when the master moves."""

import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from shoal.sdk import Client
from tests.cluster.conftest import MASTER, MASTER_PORT, RELEASE, at_step, finished, master_pod
from tests.cluster.kube import SECONDS, Kube, until
from tests.ports import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

# 34 million parameters, 136 MB: far more than what is under way between a master and a client that does not read.
LARGE = {"model": {"type": "mlp", "hidden": [8192, 4096]}, "training": {"world_size": 1, "batch_size": 8, "steps": 2}}


def replace_master(kube: Kube) -> str:
    """Deletes the master's pod; the name of its successor, once that is ready."""
    gone = master_pod(kube)["metadata"]
    kube.kubectl("delete", "pod", gone["name"])
    kube.ready(MASTER, 1)
    successor = master_pod(kube)["metadata"]
    assert successor["uid"] != gone["uid"]
    name: str = successor["name"]
    return name


def digits(folder: Path, **training: Any) -> Path:
    path = folder / "digits.json"  # JSON is YAML
    spec = {"name": "digits", "model": {"type": "mlp"}, "training": {"world_size": 4, "batch_size": 8, **training}}
    path.write_text(json.dumps(spec))
    return path


def test_everything_goes_on_when_the_master_gets_another_pod(user, connect, tmp_path):
    forward = connect()
    job_id = user.ask("submit", digits(tmp_path, steps=6000))["job_id"]
    with Client(user.contexts.read().current.address) as client:
        at_step(client, job_id, 5)
    watch, logs = user.start("watch", job_id, "-o", "json"), user.start("logs", job_id, "-f")
    assert watch.stderr is not None
    assert watch.stderr.readline().startswith("running")

    first = master_pod(user.kube)["metadata"]["name"]
    assert any(f"forwarding to pod {first}" in line for line in forward.said)
    user.kube.kubectl("delete", "pod", first, "--wait=false")
    submitted = user.ask("submit", digits(tmp_path, steps=10), "--idempotency-key", "during")  # while it is gone
    user.kube.ready(MASTER, 1)
    second = master_pod(user.kube)["metadata"]["name"]
    forward.await_said(f"forwarding to pod {second} now")

    out, _ = watch.communicate(timeout=SECONDS)
    assert watch.returncode == 0
    assert json.loads(out)["phase"] == "SUCCEEDED"
    followed, _ = logs.communicate(timeout=SECONDS)
    assert logs.returncode == 0
    assert followed == user("logs", job_id).out
    again = user.ask("submit", tmp_path / "digits.json", "--idempotency-key", "during")
    assert again == {"job_id": submitted["job_id"], "created": False}
    assert user("wait", submitted["job_id"]).code == 0


def test_a_download_goes_on_when_the_master_gets_another_pod(user, connect, tmp_path):
    forward = connect()
    with Client(user.contexts.read().current.address) as client:
        job_id = client.submit({"name": "large", **LARGE}).job_id
        sha256 = finished(client, job_id).results.weights_sha256
    folder = tmp_path / "model"
    download = user.start("download", job_id, folder, "-o", "json")
    until(lambda: received(folder) > 1 << 20, "a megabyte of the model")
    os.kill(download.pid, signal.SIGSTOP)  # it reads no further, so that the end cannot be under way already
    before = received(folder)
    successor = replace_master(user.kube)
    with Client(user.contexts.read().current.address) as client:
        until(lambda: len([s for s in client.parameter_servers() if s.state == "alive"]) == 2, "the servers are back")
    forward.await_said(f"forwarding to pod {successor} now")
    assert before < 136_000_000
    os.kill(download.pid, signal.SIGCONT)
    out, err = download.communicate(timeout=SECONDS)
    assert download.returncode == 0, err
    assert json.loads(out)["weights_sha256"] == sha256


def received(folder: Path) -> int:
    """Bytes of a download that is under way."""
    return sum(path.stat().st_size for path in folder.glob(".download-*/*"))


class PortForward:
    """`kubectl port-forward` on a port of one's own choice."""

    def __init__(self, kube: Kube, port: int) -> None:
        target = ("port-forward", "service/shoal-master", f"{port}:{MASTER_PORT}")
        command = ["kubectl", "--namespace", kube.namespace, *target]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self._process.stdout is not None
        assert b"Forwarding from" in self._process.stdout.readline()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def test_plain_port_forward_that_dies_with_the_pod_and_is_started_again_does_as_well(user, tmp_path):
    port = free_port()
    address = f"127.0.0.1:{port}"
    first = PortForward(user.kube, port)
    job_id = user.ask("submit", digits(tmp_path, steps=6000), "--master", address)["job_id"]
    watch = user.start("watch", job_id, "--master", address, "-o", "json")
    assert watch.stderr is not None
    assert watch.stderr.readline()
    first.end()
    replace_master(user.kube)
    second = PortForward(user.kube, port)
    out, err = watch.communicate(timeout=SECONDS)
    second.end()
    assert watch.returncode == 0
    assert json.loads(out)["phase"] == "SUCCEEDED"
    assert "waiting for up to" in err
    assert f"the master at {address} answers again" in err


def test_many_at_once_go_through_one_forward(user, connect):
    connect()
    address = user.contexts.read().current.address
    counts: list[int] = []

    def ask() -> None:
        with Client(address) as client:
            counts.append(len([client.parameter_servers() for _ in range(20)]))

    threads = [threading.Thread(target=ask, name="asking") for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert counts == [20] * 16


def test_ctrl_c_ends_it_and_the_next_command_says_what_to_do(user, connect):
    forward = connect("--release", RELEASE)
    assert user("ps").code == 0
    assert forward.end() == 130
    user("ps").fails_with(1, f"context '{user.kube.namespace}/{RELEASE}'", f"--release {RELEASE}")


def test_what_is_not_there_or_not_allowed_is_one_line(user, tmp_path):
    user("connect", "-n", "no-such-namespace").fails_with(102, "no release of Shoal in namespace no-such-namespace")
    user("connect", "-n", user.kube.namespace, "--release", "other").fails_with(102, "no release 'other'")
    user("connect", "-n", user.kube.namespace, "--service", "nothing").fails_with(102, 'services "nothing" not found')
    config = json.loads(user.kube.kubectl("config", "view", "--raw", "--minify", "-o", "json"))
    token = user.kube.kubectl("create", "token", "default").strip()
    for entry in config["users"]:
        entry["user"] = {"token": token}  # of an account that may do nothing
    weak = tmp_path / "kubeconfig"
    weak.write_text(json.dumps(config))
    done = user("connect", "-n", user.kube.namespace, "--kubeconfig", weak)
    done.fails_with(2, f"no right to list services in namespace {user.kube.namespace}")
