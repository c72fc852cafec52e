"""A job from its submission to each of its ends, over real gRPC."""

import contextlib
import time

import pytest

from shoal.wire.v1 import jobs_pb2, master_pb2
from tests.integration.master.conftest import begin, eventually, running, settings_of
from tests.integration.master.fake_shards import FakeShard, FakeWorker

TWO_SHARDS = "{model: {type: mlp}, resources: {shards: 2}}"


@pytest.fixture
def second_shard():
    shard = FakeShard("ps-1")
    yield shard
    shard.kill()


def test_the_whole_life(master, shard, second_shard):
    master.add_shard(second_shard)
    job_id = begin(master, shard, spec=TWO_SHARDS)
    grant = master.grants()[0]
    assert (grant.job_id, grant.attempt, grant.first_rank, grant.last_rank) == (job_id, 1, 0, 8)
    assert [(one.shard_id, one.port, one.index) for one in grant.shards] == [
        ("ps-0", shard.port, 0),
        ("ps-1", second_shard.port, 1),
    ]
    assert grant.parameters.spec_json == shard.shares[job_id].spec_json
    assert (second_shard.shares[job_id].index, second_shard.shares[job_id].shards) == (1, 2)
    starting = master.get(job_id)
    assert (starting.phase, starting.attempt, starting.started_unix_seconds) == ("STARTING", 1, 0.0)

    shard.commit(job_id, steps=3)
    first = master.phase_is(job_id, "RUNNING")
    assert first.started_unix_seconds > first.submitted_unix_seconds
    shard.commit(job_id, steps=2)
    shard.evaluate(job_id, correct=9, samples=10)
    seen = eventually(lambda: (job := master.get(job_id, with_losses=True)).evaluations and job.step == 5 and job)
    assert (seen.total_steps, seen.samples, seen.loss) == (100, 40, 0.2)
    assert list(seen.losses) == [1 / (step + 1) for step in range(5)]
    assert (seen.evaluations[0].version, seen.evaluations[0].accuracy) == (5, 0.9)
    assert seen.samples_per_second > 0
    assert [(one.worker_id, one.first_rank, one.last_rank) for one in seen.workers] == [("worker-1", 0, 8)]
    assert master.metric(f'shoal_job_step{{job_id="{job_id}"}}') == 5.0

    answer = master.complete(job_id, weights_sha256="ab")
    assert answer.success
    done = master.phase_is(job_id, "SUCCEEDED")
    assert (done.results.accuracy, done.results.weights_sha256, done.results.steps) == (0.97, "ab", 5)
    assert done.finished_unix_seconds >= done.started_unix_seconds
    assert [event.phase for event in done.events] == ["PENDING", "STARTING", "RUNNING", "RUNNING", "SUCCEEDED"]
    assert list(master.get(job_id, with_losses=True).losses) == list(seen.losses)
    assert not master.poll().assigned
    drop = f"DropShare {job_id} delete_files=False"
    eventually(lambda: shard.calls[-1] == drop and second_shard.calls[-1] == drop)
    assert f"Snapshot {job_id} 1" in second_shard.calls
    assert master.metric(f'shoal_job_step{{job_id="{job_id}"}}') is None
    assert master.metric('shoal_job_results_total{outcome="succeeded"}') == 1.0
    assert master.metric("shoal_steps_committed_total") == 5.0
    assert master.metric("shoal_samples_committed_total") == 40.0


def test_completing_an_unknown_job_is_said(master):
    master.register()
    answer = master.complete("no-such-job")
    assert not answer.success
    assert "'no-such-job' is not known" in answer.message


def test_completing_a_job_that_has_not_started_is_refused(master):
    master.register()
    job_id = master.submit()
    answer = master.complete(job_id, attempt=0)
    assert not answer.success
    assert "PENDING" in answer.message


def test_a_second_completion_changes_nothing_and_says_so(master, shard):
    job_id = begin(master, shard)
    shard.commit(job_id, steps=1)
    assert master.complete(job_id, accuracy=0.5).success
    done = master.phase_is(job_id, "SUCCEEDED")
    again = master.complete(job_id, accuracy=0.9)
    assert again.success
    assert "nothing changed" in again.message
    assert master.get(job_id) == done


def test_a_failure_reported_after_success_changes_nothing(master, shard):
    job_id = begin(master, shard)
    assert master.complete(job_id).success
    assert "nothing changed" in master.complete(job_id, success=False, errors=["late"]).message
    master.phase_is(job_id, "SUCCEEDED")


def test_a_completion_of_another_attempt_is_stale(master, shard):
    job_id = begin(master, shard)
    answer = master.complete(job_id, attempt=7)
    assert not answer.success
    assert "stale" in answer.message
    assert master.get(job_id).phase == "STARTING"


def test_a_completion_by_somebody_who_is_not_there_or_has_no_assignment_changes_nothing(master, shard):
    job_id = begin(master, shard)
    unknown = master.complete(job_id, incarnation="dead")
    assert (unknown.success, "not recognized" in unknown.message) == (False, True)
    nothing = master_pb2.WorkerCapabilities(supported_models=[], max_concurrent_jobs=1)
    master.register("idle", capabilities=nothing)
    idle = master.complete(job_id, worker_id="idle")
    assert (idle.success, "holds no assignment" in idle.message) == (False, True)
    assert master.get(job_id).phase == "STARTING"


def test_a_plain_client_can_do_a_job_with_the_given_fields_only(master, shard):
    master.register(incarnation="")
    master.add_shard(shard)
    job_id = master.submit()
    answer = eventually(lambda: (found := master.poll(incarnation="", wait=1)).assigned and found)
    request = master_pb2.CompleteJobRequest(
        worker_id="worker-1",
        job_id=answer.job_id,
        results=master_pb2.JobResults(accuracy=0.9, loss=0.2, metrics={"f1": 0.5}, success=True),
    )
    assert master.master.CompleteJob(request, timeout=10).success
    assert master.phase_is(job_id, "SUCCEEDED").results.metrics["f1"] == 0.5


def test_a_trainers_failure_leads_to_the_next_attempt_with_the_weights_kept(master, shard):
    job_id = begin(master, shard)
    shard.commit(job_id, steps=4)
    master.phase_is(job_id, "RUNNING")
    assert master.complete(job_id, success=False, errors=["ValueError: bad sample"]).success
    second = master.phase_is(job_id, "STARTING", attempt=2)
    reasons = [event.reason for event in second.events]
    assert reasons == ["Submitted", "WorkersFound", "FirstStep", "TrainerFailed", "WorkersFound"]
    assert "worker-1: ValueError: bad sample" in second.events[3].message
    grant = eventually(lambda: next((one for one in master.poll().grants if one.attempt == 2), None))
    assert grant.job_id == job_id
    assert shard.shares[job_id].version == 4
    assert not [call for call in shard.calls if call.startswith("DropShare")]
    assert not master.complete(job_id, attempt=1).success
    shard.commit(job_id, steps=1)
    master.phase_is(job_id, "RUNNING", attempt=2)


def test_a_job_that_always_fails_ends_after_its_attempts_with_the_last_errors(master, shard):
    job_id = begin(master, shard, spec="{model: {type: mlp}, max_attempts: 3}")
    for attempt in (1, 2, 3):
        eventually(lambda attempt=attempt: any(one.attempt == attempt for one in master.poll().grants))
        assert master.complete(job_id, attempt=attempt, success=False, errors=[f"crash {attempt}"]).success
    failed = master.phase_is(job_id, "FAILED")
    assert (failed.attempt, failed.reason) == (3, "TrainerFailed")
    assert list(failed.results.errors) == ["worker-1: crash 3"]
    assert not failed.results.success
    eventually(lambda: f"DropShare {job_id} delete_files=False" in shard.calls)
    again = master.complete(job_id, attempt=3, success=False, errors=["crash 3"])
    assert (again.success, "nothing changed" in again.message) == (True, True)


def test_a_failure_that_repeating_can_not_mend_ends_the_job_at_once(master, shard):
    job_id = begin(master, shard)
    master.complete(job_id, success=False, errors=["no such file"], failure=master_pb2.FAILURE_FATAL)
    assert master.phase_is(job_id, "FAILED").attempt == 1


def test_where_trainers_keep_being_killed_others_go_on_with_the_attempt(master, shard):
    master.register("worker-2")
    job_id = begin(master, shard)
    eventually(lambda: [one.last_rank - one.first_rank for one in master.poll("worker-2").grants] == [4])
    killed = {"success": False, "errors": ["killed by SIGKILL"], "failure": master_pb2.FAILURE_KILLED}
    for _ in range(2):  # the answer to the first is lost
        answer = master.complete(job_id, **killed)
    assert answer.success or answer.message.startswith("stale")
    eventually(lambda: not master.poll().grants)
    eventually(lambda: [one.last_rank - one.first_rank for one in master.poll("worker-2").grants] == [8])
    job = master.get(job_id)
    assert (job.attempt, job.failures) == (1, 0)
    assert [event.message for event in job.events if event.reason == "TrainersKilled"] == [
        "worker-1: its trainers kept being killed; others go on"
    ]

    assert master.complete(job_id, worker_id="worker-2", **killed).success
    second = eventually(lambda: (job := master.get(job_id)).attempt == 2 and job)
    assert second.failures == 1, "it was the last one"
    eventually(lambda: [one.attempt for one in master.poll().grants] == [2])


def test_an_attempt_that_all_who_are_left_have_given_up_begins_anew(master, shard):
    master.register("worker-2")
    job_id = begin(master, shard)
    eventually(lambda: master.poll("worker-2").grants)
    assert master.complete(job_id, success=False, errors=["killed"], failure=master_pb2.FAILURE_KILLED).success
    eventually(lambda: not master.poll().grants)
    master.heartbeat("worker-2", presence=master_pb2.PRESENCE_LEAVING)
    eventually(lambda: [one.attempt for one in master.poll().grants] == [2])
    job = master.get(job_id)
    assert job.failures == 0
    assert "worker-1" in next(e.message for e in job.events if e.reason == "TrainersKilled" and "left" in e.message)


def test_a_failure_seen_by_a_shard_ends_the_attempt(master, shard):
    job_id = begin(master, shard)
    shard.commit(job_id, steps=1)
    shard.fail(job_id, "three gradients in a row were not finite")
    second = master.phase_is(job_id, "STARTING", attempt=2)
    assert any("not finite" in event.message for event in second.events if event.reason == "ShardFailed")


@pytest.mark.parametrize("when", ["pending", "starting", "running"])
def test_cancel_ends_a_job_in_any_live_phase(master, shard, when):
    job_id = master.submit() if when == "pending" else begin(master, shard)
    if when == "running":
        shard.commit(job_id, steps=2)
        master.phase_is(job_id, "RUNNING")
    assert master.cancel(job_id).phase == "CANCELLED"
    done = master.get(job_id)
    assert (done.phase, done.step) == ("CANCELLED", 2 if when == "running" else 0)
    if when != "pending":
        assert not master.poll().assigned
        eventually(lambda: f"DropShare {job_id} delete_files=False" in shard.calls)
        assert not master.complete(job_id, attempt=2).success


def test_cancelling_an_ended_job_changes_nothing_and_says_so(master, shard):
    job_id = begin(master, shard)
    master.complete(job_id)
    done = master.phase_is(job_id, "SUCCEEDED")
    answer = master.cancel(job_id)
    assert answer.phase == "SUCCEEDED"
    assert "already ended" in answer.message
    assert master.get(job_id) == done


def test_a_snapshot_that_fails_for_a_while_is_written_in_the_end(master, shard):
    job_id = begin(master, shard)
    shard.snapshots_refused = 2
    master.complete(job_id)
    master.phase_is(job_id, "SUCCEEDED")
    assert shard.snapshots_refused == 0, "both refusals happened"


def test_a_snapshot_that_can_not_be_written_fails_the_job_loudly(tmp_path, shard):
    with running(settings_of(tmp_path, snapshot_tries=2)) as master:
        job_id = begin(master, shard)
        shard.snapshots_refused = 100
        master.complete(job_id)
        failed = master.phase_is(job_id, "FAILED")
        assert failed.reason == "SnapshotFailed"
        assert "no space left" in failed.results.errors[0]


def test_ranks_move_when_a_worker_joins_and_when_one_is_lost(tmp_path, shard):
    with running(settings_of(tmp_path, lease_seconds=1.0)) as master:

        def ranks():
            listed = master.get(job_id).workers
            return {one.worker_id: (one.first_rank, one.last_rank) for one in listed}

        def beat(*names):
            for name in names:
                assert master.heartbeat(name).success
            for name, incarnation in (("ps-0", shard.incarnation),):
                assert master.heartbeat(name, incarnation=incarnation).success

        job_id = begin(master, shard)
        shard.commit(job_id, steps=1)
        master.register("worker-2")
        eventually(lambda: beat("worker-1", "worker-2") or len(ranks()) == 2)
        assert ranks() == {"worker-1": (0, 4), "worker-2": (4, 8)}
        eventually(lambda: beat("worker-2") or ranks() == {"worker-2": (0, 8)})
        job = master.get(job_id)
        assert job.attempt == 1
        assert [event.reason for event in job.events if event.reason.startswith("Worker")] == [
            "WorkersFound",
            "WorkerJoined",
            "WorkerLost",
        ]
        assert [(one.first_rank, one.last_rank) for one in master.poll("worker-2").grants] == [(0, 8)]


def test_a_slow_worker_gets_fewer_ranks(tmp_path, shard):
    with running(settings_of(tmp_path, rebalance_seconds=0.1)) as master:
        job_id = begin(master, shard, workers=("worker-1", "worker-2"))
        for name, seconds in (("worker-1", 0.01), ("worker-2", 0.03)):
            progress = master_pb2.JobProgress(job_id=job_id, attempt=1, step=5, seconds_per_unit=seconds)
            master.heartbeat(name, progress=[progress])
        shares = eventually(lambda: (job := master.get(job_id)).workers[0].last_rank == 6 and job.workers)
        assert [(one.worker_id, one.first_rank, one.last_rank) for one in shares] == [
            ("worker-1", 0, 6),
            ("worker-2", 6, 8),
        ]
        assert shares[1].seconds_per_unit == 0.03


def test_two_jobs_share_the_workers_and_the_second_gets_them_back(master, shard):
    job_id = begin(master, shard, workers=("worker-1", "worker-2"))
    second = master.submit()
    master.phase_is(second, "STARTING")
    eventually(lambda: len(master.get(job_id).workers) == 1 and len(master.get(second).workers) == 1)
    master.cancel(job_id)
    eventually(lambda: len(master.get(second).workers) == 2)


def test_a_lost_parameter_server_ends_the_attempt_and_its_successor_begins_it_anew(tmp_path):
    with contextlib.ExitStack() as stack:
        master = stack.enter_context(running(settings_of(tmp_path)))
        other = FakeShard("ps-1")
        stack.callback(other.kill)
        shard = FakeShard("ps-0")
        master.add_shard(other)
        job_id = begin(master, shard, spec=TWO_SHARDS)
        shard.commit(job_id, steps=9)
        other.commit(job_id, steps=9)
        master.phase_is(job_id, "RUNNING")
        begun = time.monotonic()
        shard.kill()
        waiting = master.phase_is(job_id, "RECOVERING")
        assert waiting.reason == "ParameterServerLost"
        assert time.monotonic() - begun < 10
        successor = FakeShard("ps-0")
        stack.callback(successor.kill)
        master.add_shard(successor)
        master.phase_is(job_id, "STARTING", attempt=2)
        eventually(lambda: any(one.attempt == 2 for one in master.poll().grants))
        assert (successor.shares[job_id].version, other.shares[job_id].version) == (0, 0)
        assert other.shares[job_id].attempt == 2


def test_a_successor_in_the_same_place_is_noticed_before_any_lease_ends(tmp_path, second_shard):
    with contextlib.ExitStack() as stack:
        master = stack.enter_context(running(settings_of(tmp_path)))
        shard = FakeShard("ps-0")
        master.add_shard(second_shard)
        job_id = begin(master, shard, spec=TWO_SHARDS)
        shard.kill()
        successor = FakeShard("ps-0", port=shard.port)
        stack.callback(successor.kill)
        assert master.add_shard(successor).assigned_worker_id == "ps-0"
        master.phase_is(job_id, "STARTING", attempt=2)


def test_a_trainer_that_fails_by_a_dead_shard_is_not_held_against_the_job(master, shard):
    other = FakeShard("ps-1")
    master.add_shard(other)
    job_id = begin(master, shard, spec="{model: {type: mlp}, resources: {shards: 2}, max_attempts: 1}")
    other.kill()
    assert master.complete(job_id, success=False, errors=["the shard closed the link"]).success
    waiting = master.phase_is(job_id, "RECOVERING")
    assert waiting.reason == "ParameterServerLost"
    successor = FakeShard("ps-1")
    try:
        master.add_shard(successor)
        master.phase_is(job_id, "STARTING", attempt=2)
    finally:
        master.cancel(job_id)
        successor.kill()


def test_an_external_job_needs_no_worker_and_any_client_completes_it(master, shard):
    master.add_shard(shard)
    job_id = master.submit(
        "{model: {type: mlp, input_shape: [64], classes: 10}, trainers: external, training: {steps: 5}}"
    )
    master.phase_is(job_id, "STARTING")
    eventually(lambda: job_id in shard.shares)
    shard.commit(job_id, steps=2)
    master.phase_is(job_id, "RUNNING")
    assert master.complete(job_id, worker_id="anybody", attempt=0, incarnation="").success
    assert master.phase_is(job_id, "SUCCEEDED").results.steps == 2


def test_grants_are_pushed_to_workers_that_can_be_dialled(master, shard):
    worker = FakeWorker()
    try:
        master.register(host="127.0.0.1", port=worker.port)
        master.register("worker-2", host="127.0.0.1", port=1)  # nobody listens there: that must not matter
        master.add_shard(shard)
        job_id = master.submit()
        started = eventually(lambda: worker.started)[0]
        assert (started.job.job_id, started.grant.attempt) == (job_id, 1)
        assert started.job.parameters.model_type == "mlp"
        assert len(master.grants("worker-2")) == 1
        master.cancel(job_id)
        stopped = eventually(lambda: worker.stopped)[0]
        assert (stopped.job_id, stopped.attempt) == (job_id, 1)
    finally:
        worker.close()


def test_a_waiting_job_says_what_it_waits_for(master, shard):
    job_id = master.submit()
    waiting = eventually(lambda: (job := master.get(job_id)).message and job)
    assert (waiting.phase, waiting.reason) == ("PENDING", "NotEnoughParameterServers")
    master.add_shard(shard)
    eventually(lambda: master.get(job_id).reason == "NotEnoughWorkers")
    master.register()
    master.phase_is(job_id, "STARTING")


def test_watch_shows_each_change_and_ends_with_the_job(master, shard):
    job_id = begin(master, shard)
    stream = master.jobs.Watch(jobs_pb2.WatchRequest(job_id=job_id), timeout=30)
    seen = [next(stream).phase]
    shard.commit(job_id, steps=1)
    completed = False
    for job in stream:
        seen.append(job.phase)
        if job.phase == "RUNNING" and not completed:
            completed = master.complete(job_id).success
    assert seen[0] == "STARTING"
    assert seen[-1] == "SUCCEEDED"
