"""A master under too much of everything serves heartbeats, and says no with a time to come again."""

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import time

import grpc
import pytest

from shoal.core.errors import Exhausted
from shoal.process.lifetime import DIE_WITH_PARENT
from shoal.wire.options import open_channel
from shoal.wire.status import error_of
from shoal.wire.v1 import jobs_pb2, master_pb2, master_pb2_grpc
from tests.integration.master.conftest import eventually, refused, running, settings_of

IDLE, SLOW = 500, 50
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.fixture
def many_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, max(soft, 4 * (IDLE + SLOW)))
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_heartbeats_are_served_while_many_idle_and_slow_connections_are_open(tmp_path, many_descriptors):
    ready = tmp_path / "ready.json"
    with (tmp_path / "errors.txt").open("w") as errors:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "shoal.master", "--port", "0", "--metrics-port", "0"),
                *("--store", "memory://", "--ready-file", str(ready)),
            ],
            stderr=errors,
            env={**os.environ, DIE_WITH_PARENT: str(os.getpid())},
        )
    try:
        eventually(ready.exists, seconds=60)
        port = json.loads(ready.read_text())["port"]
        with contextlib.ExitStack() as stack:
            for number in range(IDLE + SLOW):
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
                if number >= IDLE:
                    sock.sendall(PREFACE[: 1 + number % (len(PREFACE) - 1)])  # the rest does not come
            stub = master_pb2_grpc.MasterServiceStub(stack.enter_context(open_channel(f"127.0.0.1:{port}")))
            registration = master_pb2.RegisterWorkerRequest(worker_id="worker-1", incarnation="i")
            stub.RegisterWorker(registration, timeout=20)
            seconds = []
            for _ in range(50):
                began = time.monotonic()
                beat = master_pb2.SendHeartbeatRequest(worker_id="worker-1", incarnation="i")
                assert stub.SendHeartbeat(beat, timeout=5).success
                seconds.append(time.monotonic() - began)
        print(f"slowest of 50 heartbeats: {max(seconds) * 1000:.1f} ms")
        assert max(seconds) < 1
    finally:
        process.terminate()
        assert process.wait(timeout=20) == 0


def test_one_watch_too_many_is_turned_away_with_a_time_to_come_again(tmp_path):
    with running(settings_of(tmp_path, streams_limit=2)) as master:
        job_id = master.submit()
        watches = [master.jobs.Watch(jobs_pb2.WatchRequest(job_id=job_id), timeout=20) for _ in range(2)]
        for watch in watches:
            next(iter(watch))
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "all 2 streams") as caught:
            next(iter(master.jobs.Watch(jobs_pb2.WatchRequest(job_id=job_id), timeout=20)))
        error = error_of(caught.value)
        assert isinstance(error, Exhausted)
        assert error.retry_after_seconds == 1.0
        assert ("retry-after-ms", "1000") in [(key, value) for key, value in caught.value.trailing_metadata()]
        for watch in watches:
            watch.cancel()

        def there_is_room():
            again = master.jobs.Watch(jobs_pb2.WatchRequest(job_id=job_id), timeout=20)
            try:
                return bool(next(iter(again)))
            except grpc.RpcError:
                return False
            finally:
                again.cancel()

        eventually(there_is_room)


def test_one_member_too_many_is_turned_away_and_those_that_are_there_stay(tmp_path):
    with running(settings_of(tmp_path, members_limit=2)) as master:
        for name in ("worker-1", "worker-2"):
            master.register(name)
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "lists 2 members already") as caught:
            master.register("worker-3")
        error = error_of(caught.value)
        assert isinstance(error, Exhausted)
        assert error.retry_after_seconds > 0
        assert master.register("worker-2").success


def test_a_spec_that_is_too_long_is_turned_away_for_good(tmp_path):
    with running(settings_of(tmp_path, spec_bytes_limit=1_000)) as master:
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "this master takes 1000") as caught:
            master.submit("{model: {type: mlp}, name: digits}" + " " * 1_000)
        error = error_of(caught.value)
        assert isinstance(error, Exhausted)
        assert not error.retry_after_seconds
        assert master.submit()
