"""A process dies at every named point of `process/crashing.py`, one after the other, and nothing of it shows.

Each walk arms a process with one point, lets it die there (by SIGKILL, and its log says where) and starts it again,
armed with the next one. Meanwhile one job goes its way through all of that.
"""

import contextlib
import json
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
import pytest

from shoal.core.errors import DeadlineExceeded, Unavailable
from shoal.core.job import Phase
from shoal.local import Cluster
from shoal.process import crashing
from shoal.sdk import Client, JobView
from shoal.wire.options import open_channel
from shoal.wire.status import raised_from_call
from shoal.wire.v1 import master_pb2, master_pb2_grpc, worker_pb2, worker_pb2_grpc
from tests.faults.pacing import seconds_per_step

pytestmark = pytest.mark.timeout(300)
SECONDS = 120.0
LONG, BRIEF = 18.0, 6.0  # seconds of training: for walks through many points, and for one
T = TypeVar("T")

# Each walk's points in the order in which they are reached. A dot at the end stands for both sides.
BEFORE_A_JOB = ("take.", "prune.", "forget_manifests.", "register_worker:", "request_job:")
LIFE = ("submit.", "submit:", "begin.", "place.", "first_step.", "save_evaluations.", "add_manifest.")
END = ("close_training.", "succeed.", "complete_job:")
WISHES = ("pause.", "pause:", "resume.", "resume:", "cancel.", "cancel:", "reopen.")
MISFORTUNES = ("recover.", "add_event.", "condemn_manifest.", "append_logs.", "report_logs:", "fail.")
SERVER_UPDATES = (
    "create_share:",
    "register_worker:",
    "update.before_apply",
    "update.applied",
    "update.acknowledged",
)
SERVER_FILES = (
    "snapshot.opened",
    "snapshot.half_written",
    "snapshot.written",
    "snapshot.synced",
    "snapshot.renamed",
    "snapshot.folder_synced",
    "snapshot:",
    "delete_snapshots:",
)
SERVER_ENDS = ("fence:", "drop_share:")
WORKER = ("start_training:", "stop_training:", "leave:")


def points_of(names: tuple[str, ...]) -> tuple[str, ...]:
    """NAME. stands for both sides of a commit, NAME: for both sides of an acknowledgement."""
    sides = {".": ("before_commit", "committed"), ":": ("before_acknowledgement", "acknowledged")}
    return tuple(
        point
        for name in names
        for point in ([f"{name[:-1]}.{side}" for side in sides[name[-1]]] if name[-1] in sides else [name])
    )


def test_every_point_is_walked_through() -> None:
    masters = (*BEFORE_A_JOB, *LIFE, *END, *WISHES, *MISFORTUNES)
    assert sorted(points_of(masters)) == sorted(crashing.MASTER_POINTS)
    servers = (*SERVER_UPDATES, *SERVER_FILES, *SERVER_ENDS)
    assert sorted(points_of(servers)) == sorted(crashing.SERVER_POINTS)
    assert sorted(points_of(WORKER)) == sorted(crashing.WORKER_POINTS)


def spec_of(*, steps: int, **changes: object) -> dict[str, Any]:
    return {
        "name": "crashed",
        "model": {"type": "mlp", "hidden": [512, 512]},
        "training": {"world_size": 8, "batch_size": 64, "steps": steps, "seed": 5, "evaluate_every": 50},
        "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9},
        "resources": {"shards": 2, "min_workers": 1},
        "snapshots": {"every_steps": 20},
        **changes,
    }


@contextlib.contextmanager
def running(*, workers: int) -> Iterator[Cluster]:
    with Cluster(
        workers=workers,
        shards=2,
        master_options=("--lease-seconds", "20", "--heartbeat-seconds", "0.25", "--longest-poll-seconds", "1"),
    ) as cluster:
        yield cluster


@contextlib.contextmanager
def armed(point: str) -> Iterator[None]:
    """What is started within the block dies at this point."""
    os.environ[crashing.CRASH_AT] = point
    try:
        yield
    finally:
        del os.environ[crashing.CRASH_AT]


def until(condition: Callable[[], T], what: str, *, seconds: float = SECONDS) -> T:
    deadline = time.monotonic() + seconds
    while not (met := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return met


def insist(call: Callable[[], T]) -> T:
    """Repeated until it is answered."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            return call()
        except (Unavailable, DeadlineExceeded):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def has_crashed(cluster: Cluster, name: str, point: str) -> None:
    """Waits for the death of a member; it must be the one that was asked for."""
    member = cluster.member(name)
    until(lambda: not member.running, f"{name} does not come to {point}")
    assert member.process.returncode == -signal.SIGKILL, (point, cluster.log(name)[-2000:])
    assert cluster.log(name).rstrip().endswith(f"crash point {point}"), (point, cluster.log(name)[-2000:])


class MasterWalk:
    """The master dies at each point, while the rest of the cluster stands still until the next one is there."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def through(
        self, names: tuple[str, ...], provoke: Callable[[], object] = lambda: None, *, aside: bool = True
    ) -> None:
        """`provoke` is called once the master is armed with the first point; `aside`: it waits for what comes of it."""
        first, *rest = points_of(names)
        self.restart(first)
        with ThreadPoolExecutor(1) as pool:
            provoked = pool.submit(provoke) if aside else None
            if not aside:
                provoke()
            for point in (first, *rest):
                if point != first:
                    self.restart(point)
                if provoked is not None and provoked.done():
                    provoked.result()
                has_crashed(self._cluster, "master", point)
            self.restart()
            if provoked is not None:
                provoked.result(SECONDS)

    def restart(self, point: str = "") -> None:
        cluster = self._cluster
        for worker in cluster.workers:
            cluster.freeze_worker(worker)
        if cluster.member("master").running:
            cluster.kill_master()
        if point:
            with armed(point):
                cluster.restart_master(wait=False)
            master = cluster.member("master")
            until(lambda: master.ready_file.exists() or not master.running, "the master does not start")
        else:
            cluster.restart_master()
        for worker in cluster.workers:
            cluster.thaw_worker(worker)


@pytest.fixture(scope="module")
def pace(cluster: Cluster) -> float:
    with cluster.client() as client:
        return seconds_per_step(client, spec_of(steps=1))


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, pace: float) -> JobView:
    return run(cluster, spec_of(steps=int(LONG / pace)))


@pytest.fixture(scope="module")
def brief(cluster: Cluster, pace: float) -> JobView:
    return run(cluster, spec_of(steps=int(BRIEF / pace)))


def like(undisturbed: JobView, **changes: object) -> dict[str, Any]:
    """The same job, to be disturbed."""
    assert undisturbed.results is not None
    return spec_of(steps=undisturbed.results.steps, **changes)


def run(cluster: Cluster, spec: dict[str, Any]) -> JobView:
    with cluster.client() as client:
        job_id = client.submit(spec).job_id
        assert client.wait(job_id, timeout=SECONDS).phase is Phase.SUCCEEDED
        return client.get(job_id, with_losses=True)


def assert_as_if_nothing_had_happened(cluster: Cluster, job_id: str, undisturbed: JobView) -> JobView:
    with cluster.client() as client:
        insist(lambda: client.wait(job_id, timeout=SECONDS))
        job = insist(lambda: client.get(job_id, with_losses=True))
        known = [view.job_id for view in client.list()]
    assert job.phase is Phase.SUCCEEDED, (job.phase, job.message, job.results)
    assert job.results is not None
    assert undisturbed.results is not None
    assert job.results.weights_sha256 == undisturbed.results.weights_sha256
    assert job.losses == undisturbed.losses
    assert job.evaluations == undisturbed.evaluations
    assert job.results.samples == undisturbed.results.samples
    assert [event.reason for event in job.events].count("Completed") == 1
    assert job.failures == 0
    assert known.count(job_id) == 1
    for server in cluster.shards:
        folder = cluster.folder / server / job_id
        until(lambda folder=folder: len(list(folder.iterdir())) == 1, f"more than the model stays in {folder}")
    assert list(cluster.folder.rglob("*.tmp")) == []
    return job


def newest_snapshot(client: Client, job_id: str) -> int:
    return next((view.step for view in insist(lambda: client.snapshots(job_id)) if view.current), 0)


def test_a_master_may_die_at_any_point_of_a_jobs_life(undisturbed: JobView) -> None:
    with running(workers=1) as cluster, cluster.client() as client:
        walk = MasterWalk(cluster)
        walk.through(BEFORE_A_JOB)
        acknowledged: list[str] = []
        spec = like(undisturbed, resources={"shards": 2, "min_workers": 2})  # it does not begin yet

        def submit() -> None:
            acknowledged.append(insist(lambda: client.submit(spec, idempotency_key="once")).job_id)

        walk.through(LIFE[:2], submit)
        again = client.submit(spec, idempotency_key="once")
        assert ([again.job_id], again.created) == (acknowledged, False)
        assert [job.job_id for job in client.list()] == acknowledged
        cluster.add_worker()
        walk.through((*LIFE[2:], *END[:2]))

        def report() -> None:
            """As a worker that has not heard the answer: a master that comes back may end the job before it asks."""
            request = master_pb2.CompleteJobRequest(
                worker_id="worker-1", job_id=acknowledged[0], attempt=1, results=master_pb2.JobResults(success=True)
            )
            with open_channel(client.address) as channel, raised_from_call():
                assert master_pb2_grpc.MasterServiceStub(channel).CompleteJob(request, timeout=10).success

        walk.through(END[2:], lambda: insist(report))
        job = assert_as_if_nothing_had_happened(cluster, acknowledged[0], undisturbed)
        assert job.attempt == 1
        assert client.submit(spec, idempotency_key="once").job_id == job.job_id


def test_a_master_may_die_at_any_point_of_what_users_wish(undisturbed: JobView) -> None:
    with running(workers=1) as cluster, cluster.client() as client:
        walk = MasterWalk(cluster)
        job_id = client.submit(like(undisturbed)).job_id
        until(lambda: newest_snapshot(client, job_id), "no snapshot")
        walk.through(WISHES[:2], lambda: insist(lambda: client.pause(job_id)))
        paused = client.get(job_id)
        assert (paused.phase, paused.paused) == (Phase.RUNNING, True), "it must last longer than this"
        walk.through(WISHES[2:4], lambda: insist(lambda: client.resume(job_id)))
        assert not client.get(job_id).paused
        walk.through(WISHES[4:6], lambda: insist(lambda: client.cancel(job_id)))
        assert client.get(job_id).phase is Phase.CANCELLED
        walk.through(WISHES[6:], lambda: insist(lambda: client.resume(job_id)))
        job = assert_as_if_nothing_had_happened(cluster, job_id, undisturbed)
        wishes = [event.message for event in job.events if "on request" in event.message]
        assert [wish.partition(" on")[0] for wish in wishes] == ["paused", "resumed", "cancelled", "resumed"]


def test_a_master_may_die_at_any_point_of_what_goes_wrong(undisturbed: JobView) -> None:
    with running(workers=1) as cluster, cluster.client() as client:
        walk = MasterWalk(cluster)
        job_id = client.submit(like(undisturbed)).job_id
        until(lambda: newest_snapshot(client, job_id), "no snapshot")
        walk.through(MISFORTUNES[:1], lambda: cluster.kill_server("ps-1"))
        walk.through(MISFORTUNES[1:2], lambda: cluster.restart_server("ps-1", wait=False), aside=False)
        until(lambda: client.get(job_id).workers, "it does not go on")
        cluster.kill_server("ps-1")
        for path in (cluster.folder / "ps-1" / job_id).iterdir():
            path.write_bytes(path.read_bytes()[:-8])
        walk.through(MISFORTUNES[2:3], lambda: cluster.restart_server("ps-1", wait=False), aside=False)

        def report_logs() -> None:
            """As a worker that the master, which knows nobody at its start, has just heard of."""
            writer = f"writer-{uuid.uuid4().hex}"
            lines = [master_pb2.LogLine(worker_id=writer, text="a line")]
            with open_channel(cluster.address) as channel, raised_from_call():
                master = master_pb2_grpc.MasterServiceStub(channel)
                master.RegisterWorker(master_pb2.RegisterWorkerRequest(worker_id=writer, incarnation=writer), timeout=5)
                answer = master.ReportLogs(
                    master_pb2.ReportLogsRequest(worker_id=writer, incarnation=writer, job_id=job_id, lines=lines),
                    timeout=5,
                )
            assert answer.success, answer.message

        walk.through(MISFORTUNES[3:5], lambda: insist(report_logs))
        assert "a line" in [line.text for line in client.logs(job_id)]
        job = assert_as_if_nothing_had_happened(cluster, job_id, undisturbed)
        assert [event.reason for event in job.events].count("SnapshotDamaged") >= 1
        optimizer = {"name": "sgd", "learning_rate": 1e30}
        poison: list[str] = []
        poisonous = like(undisturbed, optimizer=optimizer, max_attempts=1)
        walk.through(MISFORTUNES[5:], lambda: poison.append(insist(lambda: client.submit(poisonous)).job_id))
        failed = client.wait(poison[0], timeout=SECONDS)
        assert failed.phase is Phase.FAILED
        assert [event.phase for event in failed.events].count(Phase.FAILED) == 1


@pytest.fixture(scope="module")
def one_worker() -> Iterator[Cluster]:
    with running(workers=1) as cluster:
        yield cluster


def restart_server(cluster: Cluster, point: str = "") -> None:
    with armed(point) if point else contextlib.nullcontext():
        cluster.restart_server("ps-1", wait=False)


@pytest.mark.parametrize("names", [SERVER_UPDATES, SERVER_FILES], ids=["updates", "files"])
def test_a_parameter_server_may_die_at_any_point(undisturbed: JobView, names: tuple[str, ...]) -> None:
    with running(workers=2) as cluster, cluster.client() as client:
        job_id = client.submit(like(undisturbed, resources={"shards": 2, "min_workers": 2})).job_id
        cluster.kill_server("ps-1")
        for point in points_of(names):
            restart_server(cluster, point)
            has_crashed(cluster, "ps-1", point)
        restart_server(cluster)
        job = assert_as_if_nothing_had_happened(cluster, job_id, undisturbed)
        assert job.attempt > 1


def trains_on_both(job: JobView) -> bool:
    return job.phase is Phase.RUNNING and job.step > 0 and len(job.workers) == 2


@pytest.mark.parametrize("point", points_of(SERVER_ENDS))
def test_a_parameter_server_may_die_when_a_worker_or_a_job_ends(
    one_worker: Cluster, undisturbed: JobView, brief: JobView, point: str
) -> None:
    cluster = one_worker
    cluster.kill_server("ps-1")
    expected = undisturbed if point.startswith("fence") else brief  # long enough for a worker to come and go
    with cluster.client() as client:
        job_id = client.submit(like(expected)).job_id
        restart_server(cluster, point)
        if point.startswith("fence"):
            until(lambda: client.get(job_id).workers, "it has no worker")
            cluster.add_worker()
            until(lambda: trains_on_both(client.get(job_id)), "it does not train on both workers")
            cluster.kill_worker(cluster.workers[-1])
        has_crashed(cluster, "ps-1", point)
        restart_server(cluster)
    assert_as_if_nothing_had_happened(cluster, job_id, expected)


def leave(cluster: Cluster, name: str) -> None:
    address = json.loads(cluster.member(name).ready_file.read_text())
    with open_channel(f"{address['host']}:{address['port']}") as channel, contextlib.suppress(grpc.RpcError):
        worker_pb2_grpc.WorkerServiceStub(channel).Leave(worker_pb2.LeaveRequest(wait_seconds=10), timeout=20)


@pytest.mark.parametrize("point", points_of(WORKER))
def test_a_worker_may_die_at_any_point(one_worker: Cluster, brief: JobView, point: str) -> None:
    cluster = one_worker
    with armed(point):
        name = cluster.add_worker()
    with cluster.client() as client:
        spec = like(brief, resources={"shards": 2, "min_workers": 2})
        if point.startswith("stop"):
            spec["training"]["steps"] = 10**9  # it is cancelled
        job_id = client.submit(spec).job_id
        until(lambda: not cluster.member(name).running or len(client.get(job_id).workers) == 2, "no workers")
        if point.startswith("stop"):
            # A trainer that still starts may take longer to end than the master waits for the answer.
            until(lambda: trains_on_both(client.get(job_id)), "no steps")
            client.cancel(job_id)
        elif point.startswith("leave"):
            leave(cluster, name)
        has_crashed(cluster, name, point)
        if point.startswith("stop"):
            assert client.get(job_id).phase is Phase.CANCELLED
        else:
            assert_as_if_nothing_had_happened(cluster, job_id, brief)
