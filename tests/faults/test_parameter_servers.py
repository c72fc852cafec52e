"""Parameter servers are killed, frozen, ended and robbed of their files while a job runs: nothing of it shows.

Every test counts that its fault happened.
"""

import contextlib
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from shoal.core.job import Phase
from shoal.local import Cluster, FaultPlan
from shoal.local.faults import FaultRun
from shoal.sdk import Client, JobView

pytestmark = pytest.mark.timeout(300)
SECONDS = 200
STEPS = 4000  # of the quick kinds: some seconds on a quick machine, in which all faults must find their place
MLP = {"type": "mlp", "hidden": [128]}
KINDS: dict[str, dict[str, Any]] = {
    "momentum": {"model": MLP, "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}},
    "clipped": {
        "model": MLP,
        "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9},
        "training": {"clip_norm": 0.5},
        "schedule": {"name": "cosine", "warmup_steps": 50},
    },
    "adamw": {"model": MLP, "optimizer": {"name": "adamw", "learning_rate": 0.003}},
    "muon": {
        "model": {"type": "mlp", "hidden": [64]},
        "optimizer": {"name": "muon", "learning_rate": 0.01},
        "training": {"steps": 1600},
    },
    "adafactor": {
        "model": MLP,
        "optimizer": {"name": "adafactor", "learning_rate": 0.01},
        "training": {"steps": 1600},
    },
    "batch norm": {
        "model": {"type": "cnn", "channels": [4, 8], "hidden": 32, "input_shape": [1, 8, 8]},
        "optimizer": {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9},
        "training": {"world_size": 2, "batch_size": 4, "steps": 1600},
    },
}


def spec_of(
    kind: str = "momentum", *, steps: int = STEPS, every_steps: int = 50, **resources: object
) -> dict[str, Any]:
    case = KINDS[kind]
    training = {"world_size": 4, "batch_size": 8, "steps": steps, "seed": 11, "evaluate_every": 100}
    return {
        **case,
        "name": "disturbed",
        "training": training | case.get("training", {}),
        "resources": {"shards": 2} | resources,
        "snapshots": {"every_steps": every_steps},
    }


@contextlib.contextmanager
def running(*, workers: int = 2, shards: int = 2, folder: Path | None = None) -> Iterator[Cluster]:
    """A cluster of its own, with leases short enough for a test to wait for their end."""
    with Cluster(
        workers=workers,
        shards=shards,
        folder=folder,
        master_options=("--lease-seconds", "3", "--heartbeat-seconds", "0.5"),
    ) as cluster:
        yield cluster


Observer = Callable[[Client, JobView], object]


def run(cluster: Cluster, document: Mapping[str, Any], observe: Observer = lambda *_: None) -> JobView:
    with cluster.client() as client:
        job_id = client.submit(document).job_id
        for view in client.watch(job_id, timeout=SECONDS):
            if not view.ended:
                observe(client, view)
        job = client.get(job_id, with_losses=True)
        assert job.phase is Phase.SUCCEEDED, (job.phase, job.message, job.results)
        return job


@pytest.fixture(scope="module")
def disturbed() -> Iterator[Cluster]:
    """For tests that leave all of it running."""
    with running(shards=3) as cluster:
        yield cluster


_undisturbed: dict[str, JobView] = {}


@pytest.fixture
def undisturbed(cluster: Cluster) -> Callable[[str], JobView]:
    """The same job on one worker and one shard, without a fault; run once."""

    def of(kind: str) -> JobView:
        if kind not in _undisturbed:
            _undisturbed[kind] = run(cluster, spec_of(kind, max_workers=1, shards=1))
        return _undisturbed[kind]

    return of


def assert_same(job: JobView, undisturbed: JobView) -> None:
    assert job.results is not None
    assert undisturbed.results is not None
    assert job.results.weights_sha256 == undisturbed.results.weights_sha256
    assert job.losses == undisturbed.losses
    assert len(job.losses) == undisturbed.results.steps
    assert job.evaluations == undisturbed.evaluations
    assert job.results.samples == undisturbed.results.samples
    assert job.failures == 0


def reasons(job: JobView) -> list[str]:
    return [event.reason for event in job.events]


def newest_step(client: Client, job_id: str) -> int:
    return next((snapshot.step for snapshot in client.snapshots(job_id) if snapshot.current), 0)


class KillOnce:
    """Kills servers, which start again at once, when the job has a snapshot and has gone on from it."""

    def __init__(self, cluster: Cluster, *servers: str, before: Callable[[Client, JobView], object] = lambda *_: None):
        self.cluster, self.servers, self.before = cluster, servers, before
        self.from_step = 0

    def __call__(self, client: Client, view: JobView) -> None:
        step = newest_step(client, view.job_id)
        if self.from_step or view.attempt > 1 or view.step < 300 or not 0 < step < view.step:
            return
        self.before(client, view)
        for name in self.servers:
            self.cluster.kill_server(name)
        for name in self.servers:
            self.cluster.restart_server(name, wait=False)
        self.from_step = step


CASES = [
    ("momentum", 1, "auto"),
    ("momentum", 3, "grpc"),
    ("clipped", 2, "auto"),
    ("clipped", 3, "grpc"),
    ("adamw", 2, "grpc"),
    ("adamw", 3, "auto"),
    ("muon", 2, "auto"),
    ("adafactor", 2, "grpc"),
    ("batch norm", 2, "auto"),
    ("batch norm", 3, "grpc"),
]


@pytest.mark.parametrize(("kind", "shards", "transport"), CASES)
def test_a_killed_shard_does_not_show(
    disturbed: Cluster, undisturbed: Callable[[str], JobView], kind: str, shards: int, transport: str
) -> None:
    expected = undisturbed(kind)
    kill = KillOnce(disturbed, f"ps-{shards}")
    job = run(disturbed, spec_of(kind, shards=shards, transport=transport), kill)
    assert kill.from_step
    (restored,) = [event.message for event in job.events if event.reason == "Restored"]
    assert int(restored.split()[-1]) >= kill.from_step
    assert job.attempt == 2
    assert_same(job, expected)


@pytest.mark.parametrize("seed", range(3))
def test_kills_and_freezes_at_random_steps_do_not_show(undisturbed: Callable[[str], JobView], seed: int) -> None:
    """Of servers and workers; with snapshots and, early on, without any."""
    chance = random.Random(seed)
    plan = FaultPlan()
    for server in (1, 2, 1):
        plan = plan.kill_server(server, at_step=chance.randrange(20, STEPS - 100))
    plan = plan.freeze_server(chance.randint(1, 2), at_step=chance.randrange(20, STEPS - 100), for_seconds=1)
    plan = plan.kill_worker(1, at_step=chance.randrange(20, STEPS - 100)).add_worker(at_step=chance.randrange(200))
    print(seed, [str(fault) for fault in plan.faults])
    with running() as cluster:
        faults = FaultRun(plan, cluster)
        job = run(cluster, spec_of(), lambda _, view: faults.observe(step=view.step, ended=view.ended))
        for report in faults.reports():
            assert report.happened, report
    assert 2 <= job.attempt <= 4
    assert reasons(job).count("ParameterServerLost") == job.attempt - 1
    assert_same(job, undisturbed("momentum"))


def test_all_shards_killed_at_once_do_not_show(disturbed: Cluster, undisturbed: Callable[[str], JobView]) -> None:
    kill = KillOnce(disturbed, "ps-1", "ps-2")
    job = run(disturbed, spec_of(), kill)
    assert kill.from_step
    assert "Restored" in reasons(job)
    assert_same(job, undisturbed("momentum"))


def test_a_shard_frozen_beyond_its_lease_may_wake_and_does_not_show(undisturbed: Callable[[str], JobView]) -> None:
    plan = FaultPlan().freeze_server(1, at_step=400, for_seconds=7)
    with running() as cluster:
        faults = FaultRun(plan, cluster)
        job = run(cluster, spec_of(), lambda _, view: faults.observe(step=view.step, ended=view.ended))
        (report,) = faults.reports()
        assert report.happened, report
        assert "member_lost" in cluster.log("master")
    assert job.attempt == 2, "the attempt ended with the lease"
    assert "Restored" not in reasons(job), "it has its share still, and the others have not gone on"
    assert_same(job, undisturbed("momentum"))


def test_a_shard_frozen_for_less_than_its_lease_is_waited_for(undisturbed: Callable[[str], JobView]) -> None:
    plan = FaultPlan().freeze_server(2, at_step=300, for_seconds=1)
    with running() as cluster:
        faults = FaultRun(plan, cluster)
        job = run(cluster, spec_of(), lambda _, view: faults.observe(step=view.step, ended=view.ended))
        assert all(report.happened for report in faults.reports())
    assert job.attempt == 1
    assert_same(job, undisturbed("momentum"))


def test_a_server_told_to_end_does_so_in_time_and_the_job_goes_on_from_the_snapshot(
    undisturbed: Callable[[str], JobView],
) -> None:
    ended: list[float] = []

    def observe(client: Client, view: JobView) -> None:
        if view.step >= 300 and not ended and newest_step(client, view.job_id):
            (process,) = [member.process for member in cluster.members if member.name == "ps-1"]
            began = time.monotonic()
            psutil.Process(process.pid).send_signal(signal.SIGTERM)
            assert process.wait(timeout=SECONDS) == 0
            ended.append(time.monotonic() - began)
            cluster.restart_server("ps-1", wait=False)

    with running() as cluster:
        job = run(cluster, spec_of(), observe)
        log = cluster.log("master")
    assert ended
    assert ended[0] < 5
    assert "member_left" in log
    assert "member_lost" not in log
    assert "Restored" in reasons(job)
    assert_same(job, undisturbed("momentum"))


# -- files ----------------------------------------------------------------------------------------------------------


def files_of(cluster: Cluster, client: Client, job_id: str, server: str, *, newest_only: bool) -> list[Path]:
    found = [
        cluster.folder / server / job_id / file.name
        for snapshot in client.snapshots(job_id)
        if snapshot.current or not newest_only
        for file in snapshot.files
        if file.server_id == server
    ]
    return [path for path in found if path.exists()]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped bit": flip,
    "a truncated file": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "a missing file": Path.unlink,
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_costs_some_steps_and_nothing_else(
    disturbed: Cluster, undisturbed: Callable[[str], JobView], how: str
) -> None:
    damaged: list[Path] = []

    def damage(client: Client, view: JobView) -> None:
        for path in files_of(disturbed, client, view.job_id, "ps-2", newest_only=False):
            DAMAGES[how](path)
            damaged.append(path)

    kill = KillOnce(disturbed, "ps-1", "ps-2", before=damage)
    job = run(disturbed, spec_of(), kill)
    assert damaged
    told = [event.message for event in job.events if event.reason == "SnapshotDamaged"]
    assert told
    assert any(path.name in message for path in damaged for message in told)
    assert_same(job, undisturbed("momentum"))


def test_files_of_all_snapshots_gone_let_the_job_begin_again(
    disturbed: Cluster, undisturbed: Callable[[str], JobView]
) -> None:
    def remove(_: Client, view: JobView) -> None:
        disturbed.freeze_server("ps-2")  # so that no newer file comes
        for path in (disturbed.folder / "ps-2" / view.job_id).iterdir():
            path.unlink()

    kill = KillOnce(disturbed, "ps-2", before=remove)
    job = run(disturbed, spec_of(), kill)
    assert kill.from_step
    assert reasons(job).count("SnapshotDamaged") >= 1
    assert "Restored" not in reasons(job)
    assert_same(job, undisturbed("momentum"))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A cluster's folder, in which the files of ps-1 lie on a file system of 4 MiB."""
    disk = tmp_path / "cluster" / "ps-1"
    disk.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount: {mounted.stderr.strip()}")
    yield tmp_path / "cluster"
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_told_and_training_goes_on(undisturbed: Callable[[str], JobView], tiny_disk: Path) -> None:
    ballast = tiny_disk / "ps-1" / "ballast"
    seen: dict[str, int] = {}

    def observe(client: Client, view: JobView) -> None:
        if "filled" not in seen and newest_step(client, view.job_id):
            with contextlib.suppress(OSError), ballast.open("wb") as file:
                while True:
                    file.write(bytes(4096))
            seen["filled"] = newest_step(client, view.job_id)
        elif "filled" in seen and "failed" not in seen and "SnapshotFailed" in reasons(view):
            seen["failed"] = view.step
            seen["kept"] = newest_step(client, view.job_id)
            ballast.unlink()
        elif "failed" in seen and "again" not in seen and newest_step(client, view.job_id) > seen["kept"]:
            seen["again"] = newest_step(client, view.job_id)
            cluster.kill_server("ps-1")
            cluster.restart_server("ps-1", wait=False)

    with running(folder=tiny_disk) as cluster:
        job = run(cluster, spec_of(), observe)
    assert seen["failed"] > seen["filled"]
    assert seen["kept"] >= seen["filled"]
    assert seen["again"] > seen["kept"]
    (told,) = [event.message for event in job.events if event.reason == "SnapshotFailed"]
    assert "No space left on device" in told
    assert "Restored" in reasons(job)
    assert_same(job, undisturbed("momentum"))


# -- users -----------------------------------------------------------------------------------------------------------


def test_a_cancelled_job_is_resumed_and_ends_with_the_same_bits(
    disturbed: Cluster, undisturbed: Callable[[str], JobView]
) -> None:
    with disturbed.client() as client:
        job_id = client.submit(spec_of()).job_id
        for view in client.watch(job_id, timeout=SECONDS):
            if view.step >= 300 and newest_step(client, job_id):
                client.cancel(job_id)
        cancelled = client.get(job_id)
        assert cancelled.phase is Phase.CANCELLED
        step = newest_step(client, job_id)
        assert 0 < step < STEPS
        assert client.resume(job_id) is Phase.PENDING
        client.wait(job_id, timeout=SECONDS)
        job = client.get(job_id, with_losses=True)
        assert job.phase is Phase.SUCCEEDED
        assert job.attempt == 2
        assert_same(job, undisturbed("momentum"))
        assert client.snapshots(job_id) == ()
    folder = disturbed.folder / "ps-1" / job_id
    model = f"shard-00000-step-{STEPS:012d}.safetensors"
    deadline = time.monotonic() + 10
    while [path.name for path in folder.iterdir()] != [model]:
        assert time.monotonic() < deadline, list(folder.iterdir())
        time.sleep(0.05)
