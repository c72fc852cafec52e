"""Who counts as dead is cut off on the shards; a master that another one has followed ends by itself."""

import grpc

from shoal.core.errors import Deposed
from shoal.wire.v1 import master_pb2, worker_pb2
from tests.integration.master.conftest import RunningMaster, begin, eventually, refused, running, settings_of
from tests.integration.master.fake_shards import FakeWorker

LEASE_SECONDS = 1.0


def state_of(master, worker_id="worker-1"):
    from shoal.wire.v1 import jobs_pb2

    listed = master.jobs.ListWorkers(jobs_pb2.ListWorkersRequest(), timeout=20).workers
    return {worker.worker_id: worker.state for worker in listed}[worker_id]


def test_a_lost_worker_is_fenced_off_on_its_jobs_shards_and_its_reports_are_refused(tmp_path, shard):
    with running(settings_of(tmp_path, lease_seconds=LEASE_SECONDS)) as master:
        job_id = begin(master, shard)
        eventually(
            lambda: (
                master.heartbeat(shard.server_id, incarnation=shard.incarnation).success and state_of(master) == "lost"
            )
        )
        eventually(lambda: "of-worker-1" in shard.fenced)
        assert not master.heartbeat().success
        assert not master.complete(job_id).success
        with refused(grpc.StatusCode.ABORTED, "begin anew"):
            master.register()
        assert master.get(job_id).phase == "STARTING"
        assert master.metric("shoal_incarnations_fenced_total") >= 1


def test_whose_name_another_incarnation_gets_is_fenced_off(master, shard):
    begin(master, shard)
    master.heartbeat(presence=master_pb2.PRESENCE_LEFT)
    master.register(incarnation="successor")
    eventually(lambda: "of-worker-1" in shard.fenced)
    assert "successor" not in shard.fenced


def test_a_worker_that_does_not_come_back_after_a_restart_of_the_master_is_fenced_off_by_name(tmp_path, shard):
    settings = settings_of(tmp_path, lease_seconds=LEASE_SECONDS)
    with running(settings) as master:
        begin(master, shard)
    with running(settings) as master:
        master.add_shard(shard)
        eventually(lambda: master.heartbeat(shard.server_id, incarnation=shard.incarnation) and shard.fenced)
    assert shard.fenced == {"worker-1"}


def test_a_master_whom_a_shard_refuses_for_a_later_one_ends_by_itself(tmp_path, shard):
    master = RunningMaster(settings_of(tmp_path))
    begin(master, shard)
    shard.epochs.check(2)
    error = master.stops_by_itself()
    assert isinstance(error, Deposed)
    assert "led in epoch 1: another leads now, in epoch 2" in str(error)


class Answering(FakeWorker):
    """Says who it is, and never calls."""

    def __init__(self, incarnation: str) -> None:
        self.incarnation = incarnation
        self.asked: list[worker_pb2.GetStatusRequest] = []
        super().__init__()

    def GetStatus(self, request, context):
        self.asked.append(request)
        return worker_pb2.GetStatusResponse(success=True, incarnation=self.incarnation)


def probes(master, finding):
    return master.metric(f'shoal_probes_total{{finding="{finding}"}}') or 0


def test_a_silent_worker_that_answers_keeps_its_lease_once(tmp_path):
    worker = Answering("of-worker-1")
    try:
        with running(settings_of(tmp_path, lease_seconds=LEASE_SECONDS)) as master:
            master.register(host="127.0.0.1", port=worker.port)
            eventually(lambda: probes(master, "alive") == 1)
            assert state_of(master) == "suspect", "it was asked before it counts as lost"
            eventually(lambda: state_of(master) == "lost")
            assert [request.master_epoch for request in worker.asked] == [1]
    finally:
        worker.close()


def test_a_silent_worker_in_whose_place_another_process_answers_is_lost(tmp_path):
    worker = Answering("another")
    try:
        with running(settings_of(tmp_path, lease_seconds=LEASE_SECONDS)) as master:
            master.register(host="127.0.0.1", port=worker.port)
            eventually(lambda: state_of(master) == "lost")
            assert probes(master, "gone") == 1
    finally:
        worker.close()


def test_a_worker_where_nobody_listens_is_lost_as_soon_as_its_poll_breaks(tmp_path):
    """Not after the grace of a worker that may call again."""
    worker = Answering("of-worker-1")
    worker.close()
    with running(settings_of(tmp_path, suspect_grace_seconds=50.0)) as master:
        master.register(host="127.0.0.1", port=worker.port)
        known = master.poll().revision
        request = master_pb2.RequestJobRequest(
            worker_id="worker-1", incarnation="of-worker-1", known_revision=known, wait_seconds=30
        )
        call = master.master.RequestJob.future(request, timeout=30)
        labels = 'grpc_method="RequestJob",grpc_service="shoal.master.v1.MasterService",grpc_type="unary"'
        eventually(lambda: master.metric(f"grpc_server_started_total{{{labels}}}") == 2)
        call.cancel()
        eventually(lambda: state_of(master) == "lost", seconds=10)
        assert probes(master, "gone") == 1
