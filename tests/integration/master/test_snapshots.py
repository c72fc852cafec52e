"""Manifests: committed when all shards have their file, gone back to when one is lost, kept and deleted; over real
gRPC, with shards whose steps the test commits.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from shoal.wire.v1 import jobs_pb2
from tests.integration.master.conftest import (
    CALL_SECONDS,
    RunningMaster,
    begin,
    eventually,
    refused,
    running,
    settings_of,
)
from tests.integration.master.fake_shards import FakeShard

EVERY_10 = "{model: {type: mlp}, snapshots: {every_steps: 10}, resources: {shards: 2}}"


class Disks:
    """Two parameter servers whose files outlive their processes."""

    def __init__(self) -> None:
        self.files: tuple[dict[tuple[str, str], bytes], ...] = ({}, {})
        self.shards = [FakeShard(f"ps-{index}", disk=self.files[index]) for index in range(2)]

    def commit(self, job_id: str, *, to: int) -> None:
        for shard in self.shards:
            shard.commit(job_id, steps=to - shard.shares[job_id].version)

    def replace(self, index: int) -> FakeShard:
        """The process dies; its successor, in another place, has the files."""
        self.shards[index].kill()
        self.shards[index] = FakeShard(f"ps-{index}", disk=self.files[index])
        return self.shards[index]

    def names(self, job_id: str) -> list[list[str]]:
        return [sorted(name for job, name in files if job == job_id) for files in self.files]

    def versions(self, job_id: str) -> list[int]:
        return [shard.shares[job_id].version for shard in self.shards if job_id in shard.shares]


@pytest.fixture
def disks() -> Iterator[Disks]:
    disks = Disks()
    yield disks
    for shard in disks.shards:
        shard.kill()


def snapshots(master: RunningMaster, job_id: str) -> Sequence[Any]:
    request = jobs_pb2.ListSnapshotsRequest(job_id=job_id)
    return list(master.jobs.ListSnapshots(request, timeout=CALL_SECONDS).snapshots)


def steps(master: RunningMaster, job_id: str) -> list[int]:
    return [snapshot.step for snapshot in snapshots(master, job_id)]


def resume(master: RunningMaster, job_id: str, from_step: int | None = None) -> str:
    request = jobs_pb2.ResumeRequest(job_id=job_id)
    if from_step is not None:
        request.from_step = from_step
    return master.jobs.Resume(request, timeout=CALL_SECONDS).phase


def begun(master: RunningMaster, disks: Disks, spec: str = EVERY_10) -> str:
    master.add_shard(disks.shards[1])
    return begin(master, disks.shards[0], spec=spec)


def at_step(master: RunningMaster, disks: Disks, job_id: str, step: int) -> None:
    """Commits steps until there is a manifest of this one: slowly, so that the master can ask before."""
    disks.commit(job_id, to=step - 2)
    asked = f"Snapshot {job_id} {master.get(job_id).attempt}"
    counts = [shard.calls.count(asked) for shard in disks.shards]
    eventually(lambda: all(shard.calls.count(asked) > count for shard, count in zip(disks.shards, counts, strict=True)))
    disks.commit(job_id, to=step)
    eventually(lambda: step in [snapshot.step for snapshot in snapshots(master, job_id) if snapshot.current])


def events(master: RunningMaster, job_id: str) -> list[tuple[str, str]]:
    return [(event.reason, event.message) for event in master.get(job_id).events]


def reasons(master: RunningMaster, job_id: str) -> list[str]:
    return [reason for reason, _ in events(master, job_id)]


def test_a_manifest_has_every_shards_file_and_only_the_newest_two_are_kept(master: RunningMaster, disks: Disks) -> None:
    job_id = begun(master, disks)
    assert snapshots(master, job_id) == []
    at_step(master, disks, job_id, 10)
    (first,) = snapshots(master, job_id)
    assert (first.step, first.attempt, first.current, first.damaged) == (10, 1, True, "")
    assert [(file.shard_index, file.server_id) for file in first.files] == [(0, "ps-0"), (1, "ps-1")]
    for index, file in enumerate(first.files):
        assert len(disks.files[index][job_id, file.file_name]) == file.size
    for step in (20, 30):
        at_step(master, disks, job_id, step)
    eventually(lambda: steps(master, job_id) == [30, 20])
    assert [snapshot.current for snapshot in snapshots(master, job_id)] == [True, False]
    kept = [[f"{job_id}-{index}-step-{step}-attempt-1.safetensors" for step in (20, 30)] for index in range(2)]
    eventually(lambda: disks.names(job_id) == kept)
    assert master.metric('shoal_snapshots_total{outcome="committed"}') == 3.0
    assert master.metric(f'shoal_job_snapshot_step{{job_id="{job_id}"}}') == 30.0
    with refused(grpc.StatusCode.NOT_FOUND, "is not known"):
        snapshots(master, "nobody")


def test_files_are_deleted_only_when_the_newer_manifest_is_committed(master: RunningMaster, disks: Disks) -> None:
    job_id = begun(master, disks)
    for step in (10, 20):
        at_step(master, disks, job_id, step)
    disks.shards[1].snapshots_refused = 1  # shard 0 writes its file of step 30, shard 1 does not
    disks.commit(job_id, to=28)
    eventually(lambda: disks.shards[1].calls.count(f"Snapshot {job_id} 1") == 3)
    disks.commit(job_id, to=30)
    eventually(lambda: "SnapshotFailed" in reasons(master, job_id))
    assert steps(master, job_id) == [20, 10]
    assert {name for name in disks.names(job_id)[1] if "step-10" in name}
    at_step(master, disks, job_id, 40)
    kept = [[f"{job_id}-{index}-step-{step}-attempt-1.safetensors" for step in (20, 40)] for index in range(2)]
    eventually(lambda: disks.names(job_id) == kept)  # the orphan of step 30 is gone, too


def test_a_snapshot_that_fails_is_told_once_and_training_goes_on(master: RunningMaster, disks: Disks) -> None:
    job_id = begun(master, disks)
    at_step(master, disks, job_id, 10)
    disks.shards[1].snapshots_refused = 2
    for number, step in enumerate((20, 30), start=2):
        disks.commit(job_id, to=step - 2)
        eventually(lambda number=number: disks.shards[1].calls.count(f"Snapshot {job_id} 1") == number)
        disks.commit(job_id, to=step)
        eventually(lambda number=number: master.metric('shoal_snapshots_total{outcome="failed"}') == number - 1)
    told = [message for reason, message in events(master, job_id) if reason == "SnapshotFailed"]
    assert told == ["at step 20: no space left on device; training goes on, and the snapshot before stays"]
    assert master.get(job_id).phase == "RUNNING"
    assert steps(master, job_id) == [10]
    at_step(master, disks, job_id, 40)
    assert steps(master, job_id) == [40, 10]


def test_a_snapshot_without_the_part_of_a_shard_is_none(master: RunningMaster, disks: Disks) -> None:
    """Shard 0 has trained a step before the first worker registered with shard 1."""
    job_id = begun(master, disks)
    disks.shards[1].snapshots_without_worker = 1
    disks.commit(job_id, to=8)
    eventually(lambda: disks.shards[1].calls.count(f"Snapshot {job_id} 1") >= 1)
    disks.commit(job_id, to=10)
    eventually(lambda: not disks.shards[1].snapshots_without_worker)
    at_step(master, disks, job_id, 20)
    assert steps(master, job_id) == [20]
    assert "SnapshotFailed" not in reasons(master, job_id)


def test_a_version_that_has_passed_is_asked_for_later(master: RunningMaster, disks: Disks) -> None:
    """Shard 1 has run ahead of what shard 0 tells; shard 0's copy is not waited for in vain."""
    job_id = begun(master, disks)
    disks.commit(job_id, to=8)
    disks.shards[1].commit(job_id, steps=2)
    eventually(lambda: (master.metric('shoal_snapshots_total{outcome="missed"}') or 0) >= 1)
    disks.shards[1].shares[job_id].version = 8
    at_step(master, disks, job_id, 20)
    assert steps(master, job_id) == [20]


@pytest.mark.parametrize("lost", [0, 1])
def test_when_a_shard_is_lost_all_go_back_to_the_manifest(master: RunningMaster, disks: Disks, lost: int) -> None:
    job_id = begun(master, disks)
    at_step(master, disks, job_id, 10)
    at_step(master, disks, job_id, 20)
    disks.commit(job_id, to=24)
    eventually(lambda: master.get(job_id).step == 24)
    successor = disks.replace(lost)
    master.add_shard(successor)
    again = eventually(lambda: [grant for grant in master.poll().grants if grant.attempt == 2])
    assert [shard.port for shard in again[0].shards] == [shard.port for shard in disks.shards]
    assert disks.versions(job_id) == [20, 20]
    assert all(shard.shares[job_id].made_in_attempt == 2 for shard in disks.shards)
    assert "ParameterServerLost" in reasons(master, job_id)
    assert ("Restored", "all shards go on from the snapshot at step 20") in events(master, job_id)
    view = eventually(lambda: (job := master.get(job_id, with_losses=True)).step == 20 and job)
    assert list(view.losses) == [1 / (step + 1) for step in range(20)], "those of steps 20 to 23 are void"
    assert (view.attempt, view.failures) == (2, 0)
    assert view.phase == "STARTING", "no step of this attempt has been committed"
    disks.commit(job_id, to=21)
    master.phase_is(job_id, "RUNNING", attempt=2)
    at_step(master, disks, job_id, 30)
    assert [(snapshot.step, snapshot.attempt) for snapshot in snapshots(master, job_id)] == [(30, 2), (20, 1)]


def test_a_share_that_an_interrupted_begin_left_does_not_go_on_with_older_ones(
    master: RunningMaster, disks: Disks
) -> None:
    """Attempt 2 made one anew, which nobody has trained yet, and was over before it made the other one."""
    job_id = begun(master, disks)
    disks.commit(job_id, to=4)
    master.phase_is(job_id, "RUNNING")
    assert master.complete(job_id, success=False, errors=["crash"]).success
    eventually(lambda: any(grant.attempt == 2 for grant in master.poll().grants))
    disks.shards[1].shares[job_id].version = 0
    disks.shards[1].shares[job_id].made_in_attempt = 2
    assert master.complete(job_id, attempt=2, success=False, errors=["crash"]).success
    eventually(lambda: any(grant.attempt == 3 for grant in master.poll().grants))
    assert disks.versions(job_id) == [0, 0]
    assert [shard.shares[job_id].made_in_attempt for shard in disks.shards] == [3, 3]


def test_evaluations_of_steps_that_are_done_again_are_void(master: RunningMaster, disks: Disks) -> None:
    job_id = begun(master, disks)
    at_step(master, disks, job_id, 10)
    disks.shards[0].evaluate(job_id, correct=5, samples=10)
    eventually(lambda: len(master.get(job_id).evaluations) == 1)
    master.add_shard(disks.replace(0))
    master.phase_is(job_id, "STARTING", attempt=2)
    eventually(lambda: master.get(job_id).step == 10)
    assert list(master.get(job_id).evaluations) == []
    master.cancel(job_id)
    assert list(master.get(job_id).evaluations) == [], "not in the store either"


def damage(disks: Disks, index: int, job_id: str, step: int) -> str:
    (name,) = [name for name in disks.names(job_id)[index] if f"step-{step}-" in name]
    disks.files[index][job_id, name] = disks.files[index][job_id, name][:-1]
    return name


def test_a_damaged_file_makes_the_manifest_before_the_current_one(master: RunningMaster, disks: Disks) -> None:
    job_id = begun(master, disks)
    for step in (10, 20):
        at_step(master, disks, job_id, step)
    name = damage(disks, 1, job_id, 20)
    master.add_shard(disks.replace(0))
    eventually(lambda: [grant for grant in master.poll().grants if grant.attempt == 2])
    assert disks.versions(job_id) == [10, 10]
    (told,) = [message for reason, message in events(master, job_id) if reason == "SnapshotDamaged"]
    assert told.startswith("the snapshot at step 20 cannot be used: ")
    assert name in told
    assert ("Restored", "all shards go on from the snapshot at step 10") in events(master, job_id)
    listed = [(snapshot.step, snapshot.current, bool(snapshot.damaged)) for snapshot in snapshots(master, job_id)]
    assert listed == [(20, False, True), (10, True, False)]
    at_step(master, disks, job_id, 20)
    assert [(snapshot.step, snapshot.attempt) for snapshot in snapshots(master, job_id)] == [(20, 2), (10, 1)]


def test_without_any_whole_manifest_the_job_begins_again(master: RunningMaster, disks: Disks) -> None:
    job_id = begun(master, disks)
    for step in (10, 20):
        at_step(master, disks, job_id, step)
        damage(disks, 0, job_id, step)
    master.add_shard(disks.replace(0))
    eventually(lambda: [grant for grant in master.poll().grants if grant.attempt == 2])
    assert disks.versions(job_id) == [0, 0]
    assert reasons(master, job_id).count("SnapshotDamaged") == 2
    assert "Restored" not in reasons(master, job_id)


def test_shards_that_are_all_there_keep_their_weights_when_a_trainer_fails(master: RunningMaster, disks: Disks) -> None:
    job_id = begun(master, disks)
    at_step(master, disks, job_id, 10)
    disks.commit(job_id, to=14)
    disks.shards[1].commit(job_id, steps=1)  # the replay window
    assert master.complete(job_id, success=False, errors=["ValueError: bad sample"]).success
    eventually(lambda: [grant for grant in master.poll().grants if grant.attempt == 2])
    assert disks.versions(job_id) == [14, 15]
    assert master.get(job_id).failures == 1
    assert "Restored" not in reasons(master, job_id)


def test_lost_machines_do_not_use_up_the_attempts_and_failures_do(master: RunningMaster, disks: Disks) -> None:
    job_id = begun(master, disks, EVERY_10.replace("{model", "{max_attempts: 2, model", 1))
    for attempt in range(2, 6):
        master.add_shard(disks.replace(attempt % 2))
        eventually(lambda attempt=attempt: [grant for grant in master.poll().grants if grant.attempt == attempt])
    assert master.get(job_id).failures == 0
    assert master.complete(job_id, attempt=5, success=False, errors=["first"]).success
    eventually(lambda: [grant for grant in master.poll().grants if grant.attempt == 6])
    assert master.complete(job_id, attempt=6, success=False, errors=["second"]).success
    failed = master.phase_is(job_id, "FAILED")
    assert (failed.attempt, failed.failures, list(failed.results.errors)) == (6, 2, ["worker-1: second"])


def test_a_restarted_master_goes_on_with_the_manifests_in_its_store(tmp_path: Path, disks: Disks) -> None:
    settings = settings_of(tmp_path, lease_seconds=3.0)
    with running(settings) as master:
        job_id = begun(master, disks)
        at_step(master, disks, job_id, 10)
    with running(settings) as master:
        master.register()
        for shard in disks.shards:
            master.add_shard(shard)
        assert steps(master, job_id) == [10]
        assert master.get(job_id).attempt == 1
        at_step(master, disks, job_id, 20)
        assert steps(master, job_id) == [20, 10]
        disks.commit(job_id, to=25)
    successor = disks.replace(1)  # while no master is there
    with running(settings) as master:
        master.register()
        master.add_shard(disks.shards[0])
        master.add_shard(successor)
        eventually(lambda: [grant for grant in master.poll().grants if grant.attempt == 2])
        assert disks.versions(job_id) == [20, 20]


def test_a_finished_job_keeps_its_model_and_nothing_else(master: RunningMaster, disks: Disks) -> None:
    job_id = begun(master, disks)
    for step in (10, 20):
        at_step(master, disks, job_id, step)
    assert master.complete(job_id).success
    master.phase_is(job_id, "SUCCEEDED")
    eventually(lambda: disks.names(job_id) == [[f"{job_id}-{index}.safetensors"] for index in range(2)])
    assert snapshots(master, job_id) == []
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "is SUCCEEDED"):
        resume(master, job_id)


def cancelled(master: RunningMaster, disks: Disks) -> str:
    """A job with snapshots at 10 and 20 that ran on to 25."""
    job_id = begun(master, disks)
    for step in (10, 20):
        at_step(master, disks, job_id, step)
    disks.commit(job_id, to=25)
    eventually(lambda: master.get(job_id).step == 25)
    master.cancel(job_id)
    eventually(lambda: disks.versions(job_id) == [])
    return job_id


def test_a_cancelled_job_keeps_its_newest_snapshot_and_is_resumed_from_it(master: RunningMaster, disks: Disks) -> None:
    job_id = cancelled(master, disks)
    kept = [[f"{job_id}-{index}-step-20-attempt-1.safetensors"] for index in range(2)]
    eventually(lambda: disks.names(job_id) == kept)
    ended = master.get(job_id)
    assert (ended.phase, ended.step) == ("CANCELLED", 25)
    assert resume(master, job_id) == "PENDING"
    eventually(lambda: [grant for grant in master.poll().grants if grant.attempt == 2])
    assert disks.versions(job_id) == [20, 20]
    going_on = master.get(job_id)
    assert (going_on.job_id, going_on.attempt, going_on.finished_unix_seconds) == (job_id, 2, 0.0)
    assert ("Resumed", "resumed on request, from the snapshot at step 20") in events(master, job_id)
    at_step(master, disks, job_id, 30)
    assert master.complete(job_id, attempt=2).success
    master.phase_is(job_id, "SUCCEEDED")


def test_a_job_is_resumed_from_the_beginning_on_request(master: RunningMaster, disks: Disks) -> None:
    job_id = cancelled(master, disks)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "no snapshot at step 10; there are 20"):
        resume(master, job_id, 10)
    assert resume(master, job_id, 0) == "PENDING"
    eventually(lambda: [grant for grant in master.poll().grants if grant.attempt == 2])
    assert disks.versions(job_id) == [0, 0]
    assert snapshots(master, job_id) == []
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "cancel it first"):
        resume(master, job_id, 20)


def test_a_failed_job_is_resumed_with_all_its_attempts(master: RunningMaster, disks: Disks) -> None:
    job_id = begun(master, disks, EVERY_10.replace("{model", "{max_attempts: 1, model", 1))
    at_step(master, disks, job_id, 10)
    assert master.complete(job_id, success=False, errors=["bad"]).success
    assert master.phase_is(job_id, "FAILED").failures == 1
    assert resume(master, job_id) == "PENDING"
    eventually(lambda: [grant for grant in master.poll().grants if grant.attempt == 2])
    assert (master.get(job_id).failures, disks.versions(job_id)) == (0, [10, 10])


def test_snapshots_of_jobs_that_ended_long_ago_are_deleted_with_their_files(tmp_path: Path, disks: Disks) -> None:
    with running(settings_of(tmp_path)) as master:
        job_id = cancelled(master, disks)
    with running(settings_of(tmp_path, ended_snapshots_seconds=0)) as master:
        assert snapshots(master, job_id) == []
        for shard in disks.shards:
            master.add_shard(shard)
        eventually(lambda: disks.names(job_id) == [[], []])
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "no snapshot to go on from"):
            resume(master, job_id)


def test_a_server_that_comes_back_is_cleaned_of_what_no_manifest_has_but_not_of_what_is_unknown(
    tmp_path: Path, disks: Disks
) -> None:
    with running(settings_of(tmp_path)) as master:
        job_id = cancelled(master, disks)
        eventually(lambda: all(len(names) == 1 for names in disks.names(job_id)))
        disks.files[0][job_id, "orphan"] = b"1"
        disks.files[0]["of-another-store", "file"] = b"1"
        kept = disks.names(job_id)[0][:]
        kept.remove("orphan")
        master.add_shard(disks.replace(0))
        eventually(lambda: disks.names(job_id)[0] == kept)
        assert disks.names("of-another-store") == [["file"], []]


def test_files_of_pruned_jobs_are_deleted_when_their_servers_are_there(tmp_path: Path, disks: Disks) -> None:
    with running(settings_of(tmp_path)) as master:
        job_id = cancelled(master, disks)
        other = begun(master, disks)
        master.cancel(other)
    with running(settings_of(tmp_path, ended_jobs_kept=1)) as master:
        master.add_shard(disks.shards[0])
        eventually(lambda: disks.names(job_id)[0] == [])
        assert disks.names(job_id)[1]
        master.add_shard(disks.shards[1])
        eventually(lambda: disks.names(job_id) == [[], []])


def test_a_policy_of_never_takes_none(master: RunningMaster, disks: Disks) -> None:
    job_id = begun(master, disks, EVERY_10.replace("every_steps: 10", "every_steps: 0"))
    disks.commit(job_id, to=50)
    eventually(lambda: master.get(job_id).step == 50)
    assert not any(call.startswith("Snapshot") for call in disks.shards[0].calls)


# -- weights of another job --------------------------------------------------------------------------------------------


def warm(job_id: str, step: int | None = None) -> str:
    at = "" if step is None else f", step: {step}"
    return f"{{model: {{type: mlp}}, initial_weights: {{job: {job_id}{at}}}, resources: {{shards: 2}}}}"


def test_a_job_begins_with_the_model_of_a_finished_one(master: RunningMaster, disks: Disks) -> None:
    source = begun(master, disks)
    disks.commit(source, to=7)
    eventually(lambda: master.get(source).step == 7)
    assert master.complete(source).success
    master.phase_is(source, "SUCCEEDED")
    job_id = master.submit(warm(source))
    eventually(lambda: any(grant.job_id == job_id for grant in master.poll().grants))
    for shard in disks.shards:
        initial = shard.shares[job_id].initial
        assert initial is not None
        assert (initial.job_id, [entry.port for entry in initial.files]) == (source, [s.port for s in disks.shards])
        assert [entry.file.file_name for entry in initial.files] == [f"{source}-{n}.safetensors" for n in range(2)]
    assert '"initial_weights":{"job":"' + source + '","step":7}' in master.get(job_id).spec_json


def test_a_job_begins_with_a_snapshot_of_a_cancelled_one(master: RunningMaster, disks: Disks) -> None:
    source = cancelled(master, disks)
    job_id = master.submit(warm(source))
    eventually(lambda: any(grant.job_id == job_id for grant in master.poll().grants))
    initial = disks.shards[1].shares[job_id].initial
    assert initial is not None
    assert [entry.file.version for entry in initial.files] == [20, 20]


@contextlib.contextmanager
def refused_initial(*parts: str) -> Iterator[None]:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "initial_weights: ", *parts):
        yield


def test_weights_that_are_not_there_are_refused_at_the_submit(master: RunningMaster, disks: Disks) -> None:
    with refused_initial("job 'nobody' is not known here"):
        master.submit(warm("nobody"))
    live = begun(master, disks)
    with refused_initial("is STARTING; weights are taken of jobs that have ended"):
        master.submit(warm(live))
    master.cancel(live)
    with refused_initial("(CANCELLED) has no snapshot"):
        master.submit(warm(live))
    source = cancelled(master, disks)
    with refused_initial("has no snapshot at step 15; it has 20"):
        master.submit(warm(source, 15))
