"""What is counted as dead changes nothing any more when it wakes; what only lost its master goes on.

Every test counts that its fault happened.
"""

import contextlib
import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from shoal.core.job import Phase
from shoal.local import Cluster
from shoal.sdk.views import JobView
from shoal.wire.options import open_channel
from shoal.wire.v1 import shard_pb2, shard_pb2_grpc

SECONDS = 100.0
LEASE_SECONDS = 2.0
BUSY_SECONDS = 2.0  # more, because the machine does other things, too


def spec_of(*, steps: int = 4000, **resources: object) -> dict[str, Any]:
    return {
        "name": "fenced",
        "model": {"type": "mlp", "hidden": [128]},
        "training": {"world_size": 8, "batch_size": 8, "steps": steps, "seed": 11, "evaluate_every": 1000},
        "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9},
        "resources": {"shards": 2} | resources,
    }


@contextlib.contextmanager
def running(workers: int, *, worker_options: tuple[str, ...] = ()) -> Iterator[Cluster]:
    with Cluster(
        workers=workers,
        shards=2,
        master_options=("--lease-seconds", str(LEASE_SECONDS), "--heartbeat-seconds", "0.25"),
        worker_options=worker_options,
    ) as cluster:
        yield cluster


def until(condition: Callable[[], object], what: str, *, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


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
    assert job.attempt == 1, job.events


def process_of(cluster: Cluster, name: str) -> psutil.Process:
    (pid,) = [member.pid for member in cluster.members if member.name == name]
    return psutil.Process(pid)


@pytest.mark.parametrize("transport", ["auto", "grpc"])
@pytest.mark.parametrize("whom", ["worker", "agent"])
def test_who_was_frozen_for_longer_than_its_lease_is_refused_when_it_wakes_and_begins_anew(
    undisturbed: JobView, whom: str, transport: str
) -> None:
    """The whole worker, or its agent alone, while its trainer lives."""
    with running(2) as cluster, cluster.client() as client:
        job_id = client.submit(spec_of(min_workers=2, transport=transport)).job_id
        until(lambda: client.get(job_id).step >= 200, "no training")
        trainers = process_of(cluster, "worker-2").children()
        if whom == "worker":
            cluster.freeze_worker("worker-2")
        else:
            process_of(cluster, "worker-2").suspend()
        until(lambda: {w.worker_id: w.state for w in client.workers()}["worker-2"] == "lost", "its lease does not end")
        until(lambda: cluster.log("master").count("worker_fenced") >= 2, "it is not fenced off on both shards")
        if whom == "agent":  # a warm trainer waits; the one that trained was told by its shards
            until(lambda: sum(_rests(trainer) for trainer in trainers) >= 1, "the trainer does not stop")
        assert client.get(job_id).phase is Phase.RUNNING, "it must last longer than this: give it more steps"
        cluster.thaw_worker("worker-2")
        until(lambda: {w.worker_id: w.state for w in client.workers()}["worker-2"] == "alive", "it does not come back")
        assert "fenced_off" in cluster.log("worker-2")
        assert_same(client.wait(job_id, timeout=SECONDS), undisturbed)


def _rests(trainer: psutil.Process) -> bool:
    """It has ended: its agent, which is frozen, cannot take notice."""
    try:
        return trainer.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def version_on_shard(cluster: Cluster, name: str, job_id: str) -> int:
    (member,) = [member for member in cluster.members if member.name == name]
    address = json.loads(member.ready_file.read_text())
    with open_channel(f"{address['host']}:{address['port']}") as channel:
        request = shard_pb2.GetProgressRequest(job_id=job_id)
        return shard_pb2_grpc.ShardServiceStub(channel).GetProgress(request, timeout=10).version


def test_trainers_go_on_while_the_master_is_dead_for_two_leases(undisturbed: JobView) -> None:
    with running(2) as cluster:
        with cluster.client() as client:
            job_id = client.submit(spec_of(min_workers=2)).job_id
            until(lambda: client.get(job_id).step >= 200, "no training")
        cluster.kill_master()
        died_at = time.monotonic()
        versions = [version_on_shard(cluster, "ps-1", job_id)]
        while time.monotonic() - died_at < 2 * LEASE_SECONDS:
            time.sleep(LEASE_SECONDS / 4)
            versions.append(version_on_shard(cluster, "ps-1", job_id))
        grown = [later > earlier for earlier, later in itertools.pairwise(versions)]
        finished = versions[-1] == undisturbed.step
        assert all(grown) or finished, f"training stood still: {versions}"
        cluster.restart_master()
        with cluster.client() as client:
            job = client.wait(job_id, timeout=SECONDS)
        assert not any("fenced_off" in cluster.log(name) for name in cluster.workers)
    assert_same(job, undisturbed)


def test_a_trainer_that_stands_still_is_killed_and_started_again_and_the_job_tells(undisturbed: JobView) -> None:
    with running(1, worker_options=("--hang-seconds", "8")) as cluster, cluster.client() as client:
        job_id = client.submit(spec_of()).job_id
        until(lambda: client.get(job_id).step >= 200, "no training")
        stopped = process_of(cluster, "worker-1").children()
        for trainer in stopped:
            trainer.suspend()
        job = client.wait(job_id, timeout=SECONDS)
        assert stopped
    told = [event.message for event in job.events if event.reason == "TrainerRestarted"]
    assert any("the trainer made no progress for" in message for message in told), told
    assert_same(job, undisturbed)


def test_a_job_that_kills_its_trainers_does_not_disturb_another_one(undisturbed: JobView) -> None:
    """Its trainers are killed as soon as they are seen, until its attempts are used up."""
    killed: set[int] = set()
    with running(2, worker_options=("--trainer-restarts", "1", "--max-concurrent-jobs", "2")) as cluster:
        with cluster.client() as client:
            poison = client.submit({**spec_of(steps=1_000_000), "name": "poison", "max_attempts": 2}).job_id
            good = client.submit(spec_of()).job_id
            while not client.get(poison).ended:
                for worker in cluster.workers:
                    for pid in trainers_of_job(cluster.log(worker), poison) - killed:
                        killed.add(pid)
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                time.sleep(0.05)
            ended = client.get(poison)
            job = client.wait(good, timeout=SECONDS)
    assert len(killed) >= 8, "two attempts on two workers, and a restart on each"
    assert (ended.phase, ended.attempt) == (Phase.FAILED, 2)
    assert ended.results is not None
    assert "killed by SIGKILL" in ended.results.errors[0]
    told = [event.attempt for event in ended.events if event.reason == "TrainerFailed"]
    assert told == [1, 2], "the last errors of each attempt are kept"
    assert [event.reason for event in job.events if event.reason in ("TrainerFailed", "TrainerRestarted")] == []
    assert_same(job, undisturbed)


def test_where_trainers_keep_being_killed_the_others_go_on_with_the_attempt(undisturbed: JobView) -> None:
    """As on a machine that is short of memory."""
    killed: set[int] = set()
    with running(2, worker_options=("--trainer-restarts", "1")) as cluster, cluster.client() as client:
        job_id = client.submit(spec_of(min_workers=2)).job_id
        until(lambda: client.get(job_id).step >= 100, "no training")
        while len(killed) < 2 or not any(e.reason == "TrainersKilled" for e in client.get(job_id).events):
            for pid in trainers_of_job(cluster.log("worker-1"), job_id) - killed:
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)
            assert not client.get(job_id).ended, "the job was over before its trainers were killed"
        job = client.wait(job_id, timeout=SECONDS)
    assert len(killed) == 2, "one, and the one that was started again"
    assert_same(job, undisturbed)


def trainers_of_job(log: str, job_id: str) -> set[int]:
    lines = (line for line in log.splitlines() if "job_started" in line and f"job_id={job_id}" in line)
    return {int(line.rpartition("pid=")[2].split()[0]) for line in lines}


def test_a_job_of_higher_priority_takes_workers_and_both_end_with_their_bits(undisturbed: JobView) -> None:
    with running(2) as cluster, cluster.client() as client:
        low = client.submit(spec_of()).job_id
        until(lambda: len(client.get(low).workers) == 2 and client.get(low).step >= 200, "it does not get both workers")
        high = client.submit({**spec_of(), "name": "urgent", "priority": 5}).job_id
        until(lambda: client.get(high).workers, "it gets no worker")
        fewer = client.get(low)
        assert fewer.phase is Phase.RUNNING, "it must last longer than this: give it more steps"
        assert len(fewer.workers) == 1
        jobs = [client.wait(job_id, timeout=SECONDS) for job_id in (low, high)]
    for job in jobs:
        assert_same(job, undisturbed)


def test_a_paused_job_frees_its_workers_within_a_step_and_ends_with_the_same_bits(undisturbed: JobView) -> None:
    with running(1) as cluster, cluster.client() as client:
        job_id = client.submit(spec_of()).job_id
        until(lambda: client.get(job_id).step >= 200, "no training")
        began = time.monotonic()
        client.pause(job_id)
        until(lambda: not client.get(job_id).workers, "it keeps its worker")
        seconds = time.monotonic() - began
        (worker,) = client.workers()
        assert worker.job_ids == ()
        until(lambda: "job_stopped" in cluster.log("worker-1"), "its trainer goes on")
        at = version_on_shard(cluster, "ps-1", job_id)
        short = client.wait(client.submit(spec_of(steps=50)).job_id, timeout=SECONDS)
        assert short.phase is Phase.SUCCEEDED
        assert version_on_shard(cluster, "ps-1", job_id) == at, "it made steps while it was paused"
        client.resume(job_id)
        assert_same(client.wait(job_id, timeout=SECONDS), undisturbed)
    print(f"paused at step {at}, free after {seconds:.3f} s")  # a figure for the report
    assert seconds < 2


@pytest.mark.parametrize("role", ["worker-1", "ps-1", "master"])
def test_every_role_ends_within_two_seconds_of_sigterm(role: str) -> None:
    """While a job runs. A worker hands its ranks back first."""
    with running(2) as cluster, cluster.client() as client:
        job_id = client.submit(spec_of(steps=1_000_000)).job_id
        until(lambda: client.get(job_id).step >= 50, "no training")
        (member,) = [member for member in cluster.members if member.name == role]
        began = time.monotonic()
        member.process.terminate()
        assert member.process.wait(timeout=SECONDS) == 0
        seconds = time.monotonic() - began
        print(f"{role} ended after {seconds:.2f} s")  # a figure for the report
        assert seconds < 2 + BUSY_SECONDS
