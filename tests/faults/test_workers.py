"""Workers are killed, frozen, woken, slowed and added while a job runs: the weights come out the same.

Every test counts that its fault happened.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from shoal.core.job import Phase
from shoal.local import Cluster, FaultPlan
from shoal.local.faults import FaultRun
from shoal.sdk.views import JobView

SECONDS = 100


def spec_of(*, steps: int = 1500, transport: str = "auto", **resources: object) -> dict[str, Any]:
    return {
        "name": "disturbed",
        "model": {"type": "mlp", "hidden": [128]},
        "training": {"world_size": 8, "batch_size": 8, "steps": steps, "seed": 11, "evaluate_every": 500},
        "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9},
        "resources": {"shards": 2, "transport": transport} | resources,
    }


@contextlib.contextmanager
def running(workers: int) -> Iterator[Cluster]:
    """A cluster of its own, with leases short enough for a test to wait for their end."""
    with Cluster(
        workers=workers,
        shards=2,
        master_options=("--lease-seconds", "3", "--heartbeat-seconds", "0.5", "--rebalance-seconds", "1"),
    ) as cluster:
        yield cluster


def run(cluster: Cluster, document: dict[str, Any], observe: Callable[[JobView], object] = lambda _: None) -> JobView:
    with cluster.client() as client:
        job_id = client.submit(document).job_id
        for view in client.watch(job_id, timeout=SECONDS):
            observe(view)
        job = client.get(job_id, with_losses=True)
        assert job.phase is Phase.SUCCEEDED, (job.phase, job.message, job.results)
        return job


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> JobView:
    return run(cluster, spec_of(max_workers=1))


def assert_same(job: JobView, undisturbed: JobView) -> None:
    assert job.results is not None
    assert undisturbed.results is not None
    assert job.results.weights_sha256 == undisturbed.results.weights_sha256
    assert job.losses == undisturbed.losses
    assert job.evaluations == undisturbed.evaluations
    assert job.results.samples == undisturbed.results.samples
    assert job.attempt == 1, "survivors went on with the same attempt"


PLANS = {
    "kill": FaultPlan().kill_worker(1, at_step=200),
    "kill two of three": FaultPlan().kill_worker(1, at_step=200).kill_worker(3, at_step=600),
    "freeze for good": FaultPlan().freeze_worker(2, at_step=300),
    "freeze beyond the lease, then wake": FaultPlan().freeze_worker(2, at_step=300, for_seconds=5),
    "add": FaultPlan().add_worker(at_step=100),
    "kill and add": FaultPlan().kill_worker(2, at_step=200).add_worker(at_step=250).kill_worker(1, at_step=900),
}


@pytest.mark.parametrize("transport", ["auto", "grpc"])
@pytest.mark.parametrize("name", PLANS)
def test_the_weights_do_not_show_what_happened_to_workers(undisturbed: JobView, name: str, transport: str) -> None:
    with running(3) as cluster:
        faults = FaultRun(PLANS[name], cluster)
        job = run(
            cluster,
            spec_of(transport=transport),
            lambda view: faults.observe(step=view.step, ended=view.ended),
        )
        for report in faults.reports():
            assert report.happened, report
    assert_same(job, undisturbed)


def trainers_of(cluster: Cluster, worker: str) -> list[psutil.Process]:
    (pid,) = [member.pid for member in cluster.members if member.name == worker]
    return psutil.Process(pid).children()


def test_a_killed_trainer_is_replaced_by_its_agent_within_the_attempt(undisturbed: JobView) -> None:
    killed: list[int] = []

    def observe(view: JobView) -> None:
        if view.step >= 300 and not killed and not view.ended:
            for trainer in trainers_of(cluster, "worker-1"):
                killed.append(trainer.pid)
                trainer.kill()

    with running(2) as cluster:
        job = run(cluster, spec_of(), observe)
        assert killed
        assert "trainer_crashed" in cluster.log("worker-1")
    (told,) = [event.message for event in job.events if event.reason == "TrainerRestarted"]
    assert told == "worker-1: the trainer was killed by SIGKILL; it was started again (1)"
    assert_same(job, undisturbed)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_told_to_end_hands_its_ranks_back_and_ends_in_time(undisturbed: JobView, workers: int) -> None:
    """SIGTERM; where it was the only one, the job waits for the next."""
    ended: list[float] = []

    def observe(view: JobView) -> None:
        if view.step >= 300 and not ended and not view.ended:
            (leaver,) = [psutil.Process(member.pid) for member in cluster.members if member.name == "worker-1"]
            began = time.monotonic()
            leaver.terminate()
            (process,) = [member.process for member in cluster.members if member.name == "worker-1"]
            assert process.wait(timeout=SECONDS) == 0
            ended.append(time.monotonic() - began)
            if workers == 1:
                cluster.add_worker()

    with running(workers) as cluster:
        job = run(cluster, spec_of(), observe)
        assert ended
        assert ended[0] < 10, "it waited for something"
        log = cluster.log("master")
    assert "member_left" in log
    assert "member_lost" not in log
    expected = "NoWorkers" if workers == 1 else "WorkerLeft"
    assert expected in [event.reason for event in job.events]
    assert_same(job, undisturbed)


def test_a_slow_worker_gets_fewer_ranks(undisturbed: JobView) -> None:
    """SIGSTOP for 4 of every 5 parts of 50 ms: a machine that is five times slower."""
    done = threading.Event()
    seen: list[tuple[int, int]] = []

    def slow_down(pid: int) -> None:
        while not done.is_set():
            os.killpg(pid, signal.SIGSTOP)
            done.wait(0.04)
            os.killpg(pid, signal.SIGCONT)
            done.wait(0.01)

    def observe(view: JobView) -> None:
        shares = {share.worker_id: share.last_rank - share.first_rank for share in view.workers}
        if len(shares) == 2:
            seen.append((shares["worker-1"], shares["worker-2"]))
            if seen[-1][0] >= seen[-1][1] + 2:
                done.set()  # proven: the rest of the job need not be slow

    with running(2) as cluster:
        (pid,) = [member.pid for member in cluster.members if member.name == "worker-2"]
        throttle = threading.Thread(target=slow_down, args=(pid,))
        throttle.start()
        try:
            job = run(cluster, spec_of(min_workers=2), observe)
        finally:
            done.set()
            throttle.join()
    assert any(fast >= slow + 2 for fast, slow in seen), seen
    assert_same(job, undisturbed)


def test_the_unit_of_a_frozen_worker_is_computed_by_an_idle_one_before_its_lease_ends(undisturbed: JobView) -> None:
    """With a lease of a minute nothing but a second copy of the work can bring the job on."""
    frozen_at: list[tuple[int, float]] = []
    ahead: list[float] = []

    def observe(view: JobView) -> None:
        if view.step >= 200 and not frozen_at:
            cluster.freeze_worker("worker-2")
            frozen_at.append((view.step, time.monotonic()))
        elif frozen_at and not ahead and view.step >= frozen_at[0][0] + 10:
            ahead.append(time.monotonic() - frozen_at[0][1])
            cluster.thaw_worker("worker-2")

    with Cluster(workers=2, shards=2, master_options=("--lease-seconds", "60")) as cluster:
        job = run(cluster, spec_of(min_workers=2), observe)
    assert frozen_at
    assert ahead
    assert ahead[0] < 30
    assert_same(job, undisturbed)
