"""Pausing a job: its workers go to others, its weights stay, and it gets no workers until it is resumed."""

import grpc
import pytest

from shoal.wire.v1 import jobs_pb2
from tests.integration.master.conftest import begin, eventually, refused, running, settings_of


def pause(master, job_id):
    return master.jobs.Pause(jobs_pb2.PauseRequest(job_id=job_id), timeout=20).phase


def resume(master, job_id):
    return master.jobs.Resume(jobs_pb2.ResumeRequest(job_id=job_id), timeout=20).phase


def grants(master):
    return [(grant.job_id, grant.attempt) for grant in master.poll().grants]


@pytest.fixture
def job_id(master, shard):
    job_id = begin(master, shard)
    shard.commit(job_id, steps=1)
    master.phase_is(job_id, "RUNNING")
    return job_id


def test_a_paused_job_gives_its_worker_to_another_and_goes_on_with_its_weights_when_it_is_resumed(
    master, shard, job_id
):
    waiting = master.submit()
    assert pause(master, job_id) == "RUNNING"
    eventually(lambda: grants(master) == [(waiting, 1)])
    job = master.get(job_id)
    assert (job.phase, job.reason, job.paused, list(job.workers), job.attempt) == ("RUNNING", "Paused", True, [], 1)
    assert f"DropShare {job_id} delete_files=False" not in shard.calls
    master.cancel(waiting)
    eventually(lambda: grants(master) == [])
    assert grants(master) == [], "a free worker is no reason to go on"
    assert resume(master, job_id) == "RUNNING"
    eventually(lambda: grants(master) == [(job_id, 1)])
    job = master.get(job_id)
    assert (job.paused, job.attempt, shard.shares[job_id].version) == (False, 1, 1)
    reasons = [event.reason for event in job.events]
    assert [reason for reason in reasons if reason in ("Paused", "Resumed")][-1] == "Resumed"


def test_a_job_that_waits_can_be_paused_and_does_not_begin_until_it_is_resumed(master, shard):
    job_id = master.submit()
    assert pause(master, job_id) == "PENDING"
    master.register()
    master.add_shard(shard)
    job = eventually(lambda: (job := master.get(job_id)).message.startswith("paused") and job)
    assert (job.phase, job.reason, job.attempt) == ("PENDING", "Paused", 0)
    assert grants(master) == []
    resume(master, job_id)
    eventually(lambda: grants(master) == [(job_id, 1)])


def test_a_pause_outlives_the_master(tmp_path, shard):
    settings = settings_of(tmp_path)
    with running(settings) as master:
        job_id = begin(master, shard)
        pause(master, job_id)
        eventually(lambda: grants(master) == [])
    with running(settings) as master:
        master.register()
        master.add_shard(shard)
        assert master.get(job_id).paused
        assert grants(master) == []
        resume(master, job_id)
        eventually(lambda: grants(master) == [(job_id, 1)])


def test_both_wishes_can_be_repeated(master, job_id):
    for _ in range(2):
        pause(master, job_id)
    for _ in range(2):
        resume(master, job_id)
    events = [event.reason for event in master.get(job_id).events]
    assert (events.count("Resumed"), "Paused" in events) == (1, True)


def test_an_ended_job_is_not_paused_and_resumed_only_from_a_snapshot(master, job_id):
    master.cancel(job_id)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "has ended as CANCELLED"):
        pause(master, job_id)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "no snapshot to go on from"):
        resume(master, job_id)


def test_a_job_that_is_trained_by_clients_of_its_own_is_not_paused(master, shard):
    master.add_shard(shard)
    model = "{type: mlp, input_shape: [4], classes: 2}"
    job_id = master.submit(f"{{model: {model}, trainers: external}}")
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "its own clients"):
        pause(master, job_id)


def test_a_paused_job_can_be_cancelled(master, job_id):
    pause(master, job_id)
    assert master.cancel(job_id).phase == "CANCELLED"


def test_events_say_to_which_attempt_they_belong(master, job_id):
    master.complete(job_id, success=False, errors=["the first attempt fails"])
    master.phase_is(job_id, "STARTING", attempt=2)
    told = [(event.attempt, event.reason) for event in master.get(job_id).events]
    assert told[0] == (0, "Submitted")
    assert (1, "TrainerFailed") in told
    assert told[-1] == (2, "WorkersFound")
