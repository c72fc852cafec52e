"""A master that stops and comes back on the same file: nothing that was acknowledged is lost."""

import contextlib
import sqlite3

import pytest

from shoal.wire.v1 import master_pb2
from tests.integration.master.conftest import begin, eventually, running, settings_of
from tests.integration.master.fake_shards import FakeShard

# Kept short, so that what waits for a lease shows in a test; long enough to register in.
LEASE_SECONDS = 3.0


@pytest.fixture
def settings(tmp_path):
    return settings_of(tmp_path, lease_seconds=LEASE_SECONDS)


def beat(master, *workers, shards=()):
    for name in workers:
        master.heartbeat(name)
    for shard in shards:
        master.heartbeat(shard.server_id, incarnation=shard.incarnation)


def test_pending_and_ended_jobs_are_there_again(settings, shard):
    with running(settings) as master:
        ended = begin(master, shard)
        shard.commit(ended, steps=3)
        master.complete(ended, weights_sha256="ab")
        before = master.phase_is(ended, "SUCCEEDED")
        losses = list(master.get(ended, with_losses=True).losses)
        pending = master.submit("{model: {type: mlp}, resources: {gpu: true}}", key="k")
    with running(settings) as master:
        assert master.get(ended) == before
        assert list(master.get(ended, with_losses=True).losses) == losses
        assert master.get(pending).phase == "PENDING"
        assert master.submit("{model: {type: mlp}, resources: {gpu: true}}", key="k") == pending
        assert "nothing changed" in master.complete(ended).message


def test_a_running_job_goes_on_with_the_same_attempt_ranks_and_shards(settings, shard):
    with running(settings) as master:
        job_id = begin(master, shard, workers=("worker-1", "worker-2"))
        shard.commit(job_id, steps=3)
        master.phase_is(job_id, "RUNNING")
        before = {name: master.poll(name) for name in ("worker-1", "worker-2")}
    with running(settings) as master:
        assert not master.heartbeat().success
        master.register("worker-2")
        second = master.poll("worker-2")
        assert second.revision > before["worker-2"].revision
        grant, held = second.grants[0], before["worker-2"].grants[0]
        assert (grant.job_id, grant.attempt, grant.shards) == (held.job_id, held.attempt, held.shards)
        assert (grant.first_rank, grant.last_rank) == (held.first_rank, held.last_rank)
        master.register("worker-1")
        master.add_shard(shard)
        shard.commit(job_id, steps=2)
        seen = eventually(lambda: (job := master.get(job_id, with_losses=True)).step == 5 and job)
        assert (seen.phase, seen.attempt, len(seen.losses)) == ("RUNNING", 1, 5)
        assert master.metric("shoal_steps_committed_total") <= 2.0
        assert [call for call in shard.calls if call.startswith("CreateShare")] == [f"CreateShare {job_id} 1"]
        assert master.complete(job_id).success
        master.phase_is(job_id, "SUCCEEDED")


def test_a_trainers_restart_is_told_once_though_two_masters_hear_of_it(settings, shard):
    def restarts(master, job_id):
        return [event.message for event in master.get(job_id).events if event.reason == "TrainerRestarted"]

    def report(master, job_id, times):
        crashed = master_pb2.JobProgress(job_id=job_id, attempt=1, restarts=times, last_crash="it was killed")
        assert master.heartbeat(progress=[crashed]).success

    with running(settings) as master:
        job_id = begin(master, shard)
        report(master, job_id, 1)
        eventually(lambda: restarts(master, job_id))
    with running(settings) as master:
        master.register()
        master.add_shard(shard)
        report(master, job_id, 1)
        report(master, job_id, 2)
        eventually(lambda: len(restarts(master, job_id)) > 1)
        assert restarts(master, job_id) == [f"worker-1: it was killed; it was started again ({n})" for n in (1, 2)]


def test_a_worker_that_does_not_come_back_loses_its_ranks_after_one_lease(settings, shard):
    with running(settings) as master:
        job_id = begin(master, shard, workers=("worker-1", "worker-2"))
        shard.commit(job_id, steps=1)
        master.phase_is(job_id, "RUNNING")
    with running(settings) as master:
        master.register("worker-1")
        master.add_shard(shard)
        assert len(master.get(job_id).workers) == 2
        moved = eventually(
            lambda: beat(master, "worker-1", shards=[shard]) or (len((job := master.get(job_id)).workers) == 1 and job)
        )
        assert (moved.workers[0].worker_id, moved.workers[0].last_rank, moved.attempt) == ("worker-1", 8, 1)


def test_a_server_that_does_not_come_back_ends_the_attempt_after_one_lease(settings):
    shard = FakeShard("ps-0")
    with running(settings) as master:
        job_id = begin(master, shard)
        shard.commit(job_id, steps=1)
        master.phase_is(job_id, "RUNNING")
    shard.kill()
    with running(settings) as master:
        assert master.get(job_id).phase == "RUNNING"
        assert master.phase_is(job_id, "RECOVERING").reason == "ParameterServerLost"


def test_a_server_that_comes_back_without_the_share_ends_the_attempt(settings):
    with contextlib.ExitStack() as stack:
        other = FakeShard("ps-1")
        stack.callback(other.kill)
        shard = FakeShard("ps-0")
        stack.callback(shard.kill)
        with running(settings) as master:
            master.add_shard(other)
            job_id = begin(master, shard, spec="{model: {type: mlp}, resources: {shards: 2}}")
            shard.commit(job_id, steps=5)
            other.commit(job_id, steps=5)
            master.phase_is(job_id, "RUNNING")
        other.kill()
        successor = FakeShard("ps-1", port=other.port)
        stack.callback(successor.kill)
        with running(settings) as master:
            master.register()
            master.add_shard(shard)
            master.add_shard(successor)
            master.phase_is(job_id, "STARTING", attempt=2)
            eventually(lambda: job_id in successor.shares and shard.shares[job_id].version == 0)


def test_results_that_were_acknowledged_are_kept_and_the_snapshot_is_written_later(settings, shard):
    with running(settings) as master:
        job_id = begin(master, shard)
        shard.snapshots_refused = 2
        assert master.complete(job_id, accuracy=0.75).success
    with running(settings) as master:
        master.add_shard(shard)
        assert master.phase_is(job_id, "SUCCEEDED").results.accuracy == 0.75


def test_an_attempt_that_had_no_shares_yet_gets_them(settings):
    shard = FakeShard("ps-0")
    with contextlib.ExitStack() as stack:
        with running(settings) as master:
            master.register()
            master.add_shard(shard)
            shard.kill()  # the master does not know yet
            job_id = master.submit()
            master.phase_is(job_id, "STARTING")
        successor = FakeShard("ps-0")
        stack.callback(successor.kill)
        with running(settings) as master:
            master.add_shard(successor)
            master.register()
            eventually(lambda: any(grant.job_id == job_id for grant in master.poll().grants))
            assert master.get(job_id).attempt == 1
            assert successor.calls == [f"CreateShare {job_id} 1"]


def test_a_live_job_whose_spec_this_program_can_not_read_fails_with_the_reason(settings, tmp_path):
    with running(settings) as master:
        job_id = master.submit()
    with contextlib.closing(sqlite3.connect(tmp_path / "shoal.db")) as connection:
        connection.execute('UPDATE jobs SET spec_json = \'{"model": {"type": "of-the-future"}}\'')
        connection.commit()
    with running(settings) as master:
        failed = master.phase_is(job_id, "FAILED")
        assert failed.reason == "SpecNotReadable"
        assert "of-the-future" in failed.results.errors[0]
