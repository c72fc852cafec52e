"""Registration, heartbeats and long polls, as a client in any language sees them."""

import threading
import time

import grpc
import pytest

from shoal.wire.options import open_channel
from shoal.wire.v1 import jobs_pb2, master_pb2, master_pb2_grpc
from tests.integration.master.conftest import eventually, refused, running, settings_of
from tests.integration.master.fake_shards import FakeShard


def workers(master):
    listed = master.jobs.ListWorkers(jobs_pb2.ListWorkersRequest(), timeout=10).workers
    return {worker.worker_id: worker for worker in listed}


def test_registration_tells_id_lease_and_heartbeat(master):
    answer = master.register()
    assert (answer.success, answer.assigned_worker_id) == (True, "worker-1")
    assert (answer.lease_seconds, answer.heartbeat_seconds) == (60.0, 0.1)


def test_a_duplicate_id_is_modified_and_the_newcomer_is_told(master):
    master.register()
    second = master.register(incarnation="another")
    assert second.success
    assert second.assigned_worker_id == "worker-1-2"
    assert "worker-1-2" in second.message
    assert master.heartbeat().success
    assert master.heartbeat("worker-1-2", incarnation="another").success
    assert set(workers(master)) == {"worker-1", "worker-1-2"}


def test_a_plain_duplicate_from_elsewhere_is_modified_too(master):
    master.register(incarnation="", host="a", port=1)
    assert master.register(incarnation="", host="b", port=1).assigned_worker_id == "worker-1-2"
    assert master.register(incarnation="", host="a", port=1).assigned_worker_id == "worker-1"


@pytest.mark.parametrize("worker_id", ["", "no spaces", "../etc"])
def test_an_id_that_can_not_be_is_refused(master, worker_id):
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "worker_id"):
        master.register(worker_id)


def test_a_heartbeat_of_an_unknown_worker_says_to_register_again(master):
    answer = master.heartbeat("nobody")
    assert not answer.success
    assert "worker not recognized" in answer.message
    master.register()
    assert not master.heartbeat(incarnation="old").success


def test_a_request_of_an_unknown_worker_says_to_register_again(master):
    answer = master.poll("nobody")
    assert (answer.assigned, answer.revision) == (False, 0)
    assert "worker not recognized" in answer.message


def test_heartbeats_bring_load_to_the_list_and_the_metrics(master):
    master.register()
    status = master_pb2.WorkerStatus(cpu_load=50, memory_usage=25, current_jobs=2)
    master.heartbeat(status=status)
    worker = workers(master)["worker-1"]
    assert (worker.state, worker.status) == ("alive", status)
    assert worker.seconds_since_heartbeat < 5
    assert master.metric('shoal_worker_cpu_ratio{worker="worker-1"}') == 0.5
    assert master.metric('shoal_worker_memory_ratio{worker="worker-1"}') == 0.25
    assert eventually(lambda: master.metric('shoal_workers{state="alive"}')) == 1.0


def test_a_silent_worker_is_lost_and_its_series_go(tmp_path):
    with running(settings_of(tmp_path, lease_seconds=0.5)) as master:
        master.register()
        master.heartbeat(status=master_pb2.WorkerStatus(cpu_load=50))
        eventually(lambda: workers(master)["worker-1"].state == "lost")
        assert not master.heartbeat().success
        assert master.metric('shoal_worker_cpu_ratio{worker="worker-1"}') is None
        assert master.metric('shoal_workers{state="lost"}') == 1.0
        with refused(grpc.StatusCode.ABORTED, "begin anew"):
            master.register()
        assert master.register(incarnation="another").assigned_worker_id == "worker-1"
        assert workers(master)["worker-1"].state == "alive"


def test_a_poll_returns_when_the_assignments_change(master, shard):
    master.register()
    known = master.poll().revision
    begun = time.monotonic()
    answers = []
    poll = threading.Thread(target=lambda: answers.append(master.poll(known=known, wait=15)))
    poll.start()
    master.add_shard(shard)
    job_id = master.submit()
    poll.join()
    assert time.monotonic() - begun < 10
    assert (answers[0].assigned, answers[0].job_id) == (True, job_id)
    assert answers[0].revision > known
    assert answers[0].grants[0].revision == answers[0].revision


def test_a_poll_for_which_nothing_changes_returns_the_same_revision_in_time(master):
    master.register()
    known = master.poll().revision
    begun = time.monotonic()
    answer = master.poll(known=known, wait=0.3)
    assert 0.25 < time.monotonic() - begun < 5
    assert (answer.assigned, answer.revision) == (False, known)


def test_a_poll_is_answered_before_its_deadline(master):
    master.register()
    known = master.poll().revision
    request = master_pb2.RequestJobRequest(
        worker_id="worker-1", incarnation="of-worker-1", known_revision=known, wait_seconds=30
    )
    assert master.master.RequestJob(request, timeout=1.0).revision == known
    assert workers(master)["worker-1"].state == "alive"


@pytest.mark.parametrize("wait", [-1.0, float("inf"), float("nan")])
def test_a_wait_that_is_no_time_is_refused(master, wait):
    master.register()
    request = master_pb2.RequestJobRequest(worker_id="worker-1", incarnation="of-worker-1", wait_seconds=wait)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "wait_seconds"):
        master.master.RequestJob(request, timeout=10)


def test_a_worker_whose_connection_breaks_is_lost_without_waiting_for_its_lease(master):
    master.register()
    known = master.poll().revision
    channel = open_channel(f"127.0.0.1:{master.port}")
    request = master_pb2.RequestJobRequest(
        worker_id="worker-1", incarnation="of-worker-1", known_revision=known, wait_seconds=30
    )
    call = master_pb2_grpc.MasterServiceStub(channel).RequestJob.future(request, timeout=30)
    labels = 'grpc_method="RequestJob",grpc_service="shoal.master.v1.MasterService",grpc_type="unary"'
    eventually(lambda: master.metric(f"grpc_server_started_total{{{labels}}}") == 2)
    begun = time.monotonic()
    channel.close()
    assert call.exception() is not None
    eventually(lambda: workers(master)["worker-1"].state == "lost")
    assert time.monotonic() - begun < 5


def test_a_plain_client_gets_one_job_or_none_at_once(master, shard):
    master.register(incarnation="")
    begun = time.monotonic()
    assert not master.poll(incarnation="").assigned
    assert time.monotonic() - begun < 2
    master.add_shard(shard)
    job_id = master.submit()
    answer = eventually(lambda: (found := master.poll(incarnation="", wait=1)).assigned and found)
    assert answer.job_id == job_id
    assert answer.parameters.model_type == "mlp"
    assert answer.parameters.dataset_path == "builtin://digits"
    assert answer.parameters.hyperparameters["optimizer.learning_rate"] == "0.1"
    assert not master.poll(incarnation="").assigned


def test_servers_are_listed_with_their_jobs(master, shard):
    master.register()
    master.add_shard(shard)
    job_id = master.submit()
    master.grants()
    servers = master.jobs.ListParameterServers(jobs_pb2.ListParameterServersRequest(), timeout=10).servers
    assert [(server.server_id, server.state, list(server.job_ids)) for server in servers] == [
        ("ps-0", "alive", [job_id])
    ]
    assert list(workers(master)["worker-1"].job_ids) == [job_id]


def test_a_live_server_keeps_its_name_and_a_dead_ones_successor_gets_it_at_once(master):
    first, second = FakeShard("ps-0"), FakeShard("ps-0")
    try:
        assert master.add_shard(first).assigned_worker_id == "ps-0"
        assert master.add_shard(second).assigned_worker_id == "ps-0-2"
    finally:
        first.kill()
        second.kill()
    third = FakeShard("ps-0")
    try:
        assert master.add_shard(third).assigned_worker_id == "ps-0"
        assert master.add_shard(third).assigned_worker_id == "ps-0"
    finally:
        third.kill()
