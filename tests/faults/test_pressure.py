"""Disk, store, descriptors and memory run out while a job runs: others are told in one line, the job goes on.

Every test counts that its fault happened.
"""

import contextlib
import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from shoal.core.errors import Unavailable
from shoal.core.job import Phase
from shoal.local import Cluster
from shoal.sdk import Client, JobView
from tests.postgres import PostgresServer

pytestmark = pytest.mark.timeout(240)
SECONDS = 100.0
LEASE_SECONDS = 2.0
T = TypeVar("T")
# In a process of its own: gRPC lets two clients of one process share a connection.
NEWCOMER = """
import sys
from shoal.core.errors import ShoalError
from shoal.sdk import Client
try:
    print(Client(sys.argv[1], timeout_seconds=1, retry_seconds=0, patience_seconds=0).list())
except ShoalError as error:
    print(error)
"""


def spec_of(*, steps: int = 3000, hidden: int = 128, **resources: object) -> dict[str, Any]:
    return {
        "name": "pressed",
        "model": {"type": "mlp", "hidden": [hidden]},
        "training": {"world_size": 8, "batch_size": 8, "steps": steps, "seed": 11, "evaluate_every": 500},
        "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9},
        "resources": {"shards": 2} | resources,
    }


def until(condition: Callable[[], T], what: str) -> T:
    deadline = time.monotonic() + SECONDS
    while not (met := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return met


@contextlib.contextmanager
def running(*, folder: Path | None = None, store: str = "", server_options: tuple[str, ...] = ()) -> Iterator[Cluster]:
    options = ("--lease-seconds", str(LEASE_SECONDS), "--heartbeat-seconds", "0.25", "--store-timeout-seconds", "2")
    with Cluster(
        workers=2,
        shards=2,
        folder=folder,
        master_options=(*options, *(("--store", store) if store else ())),
        server_options=server_options,
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> JobView:
    with cluster.client() as client:
        return client.wait(client.submit(spec_of(max_workers=1)).job_id, timeout=SECONDS)


def assert_same(job: JobView, undisturbed: JobView) -> None:
    assert job.phase is Phase.SUCCEEDED, (job.phase, job.message, job.results)
    assert job.results is not None
    assert undisturbed.results is not None
    assert job.results.weights_sha256 == undisturbed.results.weights_sha256
    assert job.results.samples == undisturbed.results.samples
    assert (job.attempt, job.failures) == (1, 0), job.events


def refusal_of(address: str) -> str:
    """Of a submit by a client that does not ask twice; it must come at once, as one line."""
    with Client(address, retry_seconds=0, patience_seconds=0) as client:
        began = time.monotonic()
        with pytest.raises(Unavailable) as caught:
            client.submit(spec_of(steps=10))
        assert time.monotonic() - began < 5
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A cluster's folder, in which the master's files lie on a file system of 4 MiB."""
    disk = tmp_path / "cluster" / "master"
    disk.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount: {mounted.stderr.strip()}")
    yield tmp_path / "cluster"
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_under_the_store_refuses_submits_and_lets_the_job_end(
    undisturbed: JobView, tiny_disk: Path
) -> None:
    ballast = tiny_disk / "master" / "ballast"
    with running(folder=tiny_disk) as cluster, cluster.client() as client:
        job_id = client.submit(spec_of()).job_id
        until(lambda: client.get(job_id).step >= 100, "no training")
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(bytes(4096))
        told = until(lambda: _refusal_when_full(cluster.address), "submits are taken")
        assert told == "the job store cannot be used: database or disk is full"
        before = client.get(job_id).step
        until(lambda: client.get(job_id).step > before or client.get(job_id).step == 3000, "the job stands still")
        until(lambda: client.get(job_id).step == 3000, "the job does not come to its end")
        assert client.get(job_id).phase is Phase.RUNNING, "its end cannot be stored yet"
        ballast.unlink()
        assert_same(client.wait(job_id, timeout=SECONDS), undisturbed)
        assert client.wait(client.submit(spec_of(steps=10)).job_id, timeout=SECONDS).phase is Phase.SUCCEEDED


def _refusal_when_full(address: str) -> str:
    """'' as long as what the store has left in its file is enough."""
    with Client(address, retry_seconds=0, patience_seconds=0) as client:
        try:
            job_id = client.submit(spec_of(steps=10, min_workers=8)).job_id
        except Unavailable as error:
            return str(error)
        with contextlib.suppress(Unavailable):
            client.cancel(job_id)
        return ""


def test_while_the_store_is_away_submits_fail_fast_and_nobody_is_punished(
    undisturbed: JobView, postgres: PostgresServer
) -> None:
    with postgres.database() as url, running(store=url) as cluster, cluster.client() as client:
        job_id = client.submit(spec_of(steps=3000)).job_id
        until(lambda: client.get(job_id).step >= 100, "no training")
        postgres.stop()
        try:
            gone_at = time.monotonic()
            told = refusal_of(cluster.address)
            assert told.startswith("the job store cannot be used:")
            while time.monotonic() < gone_at + 2 * LEASE_SECONDS:  # longer than any member's lease
                time.sleep(LEASE_SECONDS / 4)
            assert cluster.member("master").running, "the store was away for less than the lead lasts"
        finally:
            postgres.start()
        assert_same(client.wait(job_id, timeout=SECONDS), undisturbed)
        log = cluster.log("master")
    assert "store_unavailable" in log or "lease_not_renewed" in log
    assert "member_lost" not in log
    assert not any("fenced_off" in line for line in log.splitlines())


@pytest.mark.parametrize("role", ["master", "ps-1", "worker-1"])
def test_without_free_descriptors_newcomers_wait_and_the_job_goes_on(undisturbed: JobView, role: str) -> None:
    with running() as cluster, cluster.client() as client:
        job_id = client.submit(spec_of(steps=3000)).job_id
        until(lambda: client.get(job_id).step >= 100, "no training")
        process = psutil.Process(cluster.member(role).pid)
        port = int(cluster.address.rpartition(":")[2]) if role == "master" else _port_of(cluster, role)
        allowed = process.num_fds() + 8
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (allowed, allowed))
        with contextlib.ExitStack() as stack:
            for _ in range(2 * 8):
                stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            until(lambda: "File descriptor limit reached" in cluster.log(role), "it has descriptors left")
            if role == "master":
                asked = subprocess.run(
                    [sys.executable, "-c", NEWCOMER, cluster.address], capture_output=True, text=True
                )
                told = asked.stdout.splitlines()
                assert len(told) == 1, (told, asked.stderr)
                assert "has not answered in 1 s" in told[0] or "cannot be reached" in told[0]
            before = client.get(job_id).step
            until(lambda: client.get(job_id).step > before or client.get(job_id).ended, "the job stands still")
        assert_same(client.wait(job_id, timeout=SECONDS), undisturbed)
        with cluster.client() as newcomer:
            assert [job.job_id for job in newcomer.list()] == [job_id]


def test_a_worker_that_cannot_start_a_trainer_says_so_and_is_used_again_when_it_can(undisturbed: JobView) -> None:
    with running() as cluster, cluster.client() as client:
        job_id = client.submit(spec_of(steps=3000)).job_id
        until(lambda: client.get(job_id).step >= 100, "no training")
        agent = psutil.Process(cluster.member("worker-1").pid)
        soft, hard = resource.prlimit(agent.pid, resource.RLIMIT_NOFILE)
        trainers = agent.children()
        resource.prlimit(
            agent.pid, resource.RLIMIT_NOFILE, (agent.num_fds() - 6, hard)
        )  # a dead trainer gives some back
        for trainer in trainers:
            trainer.kill()
        until(lambda: "trainer_not_started" in cluster.log("worker-1"), "its trainer was started")
        assert "no trainer can be started on this worker: Too many open files" in cluster.log("worker-1")
        until(lambda: [share.worker_id for share in client.get(job_id).workers] == ["worker-2"], "ranks stay there")
        assert_same(client.wait(job_id, timeout=SECONDS), undisturbed)
        resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, (soft, hard))
        until(lambda: [w.capabilities.max_concurrent_jobs for w in client.workers()] == [1, 1], "worker-1 has no slot")
        again = client.submit(spec_of(steps=3000)).job_id
        until(lambda: len(client.get(again).workers) == 2, "worker-1 is not used again")
        assert_same(client.wait(again, timeout=SECONDS), undisturbed)
        assert "member_lost" not in cluster.log("master")


def _port_of(cluster: Cluster, name: str) -> int:
    address: dict[str, Any] = json.loads(cluster.member(name).ready_file.read_text())
    return int(address["port"])


def test_a_job_that_is_too_large_for_its_shards_is_refused_and_others_go_on(undisturbed: JobView) -> None:
    with running(server_options=("--memory-bytes", "10000000")) as cluster, cluster.client() as client:
        job_id = client.submit(spec_of(max_workers=1)).job_id
        until(lambda: client.get(job_id).step >= 10, "no training")
        too_large = client.wait(client.submit({**spec_of(hidden=100_000), "max_attempts": 2}).job_id, timeout=SECONDS)
        assert too_large.phase is Phase.FAILED
        assert "MB are free on this parameter server: ask for more shards" in too_large.message
        assert_same(client.wait(job_id, timeout=SECONDS), undisturbed)
