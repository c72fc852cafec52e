import time

import pytest

from shoal.core.errors import DeadlineExceeded, Exhausted, InvalidInput, NotFound, Unavailable
from shoal.core.job import Phase
from shoal.sdk import Client
from tests.ports import free_port
from tests.unit.sdk.fake_master import FakeMaster, Script, job

SPEC = {"name": "digits", "model": {"type": "mlp"}}


def test_a_submit_whose_answer_was_lost_is_repeated_and_makes_one_job():
    with FakeMaster(Script(unavailable_calls=2)) as master, Client(master.address) as client:
        submitted = client.submit(SPEC)
    assert submitted.job_id == "job-1"
    assert not submitted.created
    assert master.calls["Submit"] == 3
    assert len(master.submitted) == 1


def test_two_submits_without_a_key_make_two_jobs_and_with_one_key_the_same():
    with FakeMaster(Script()) as master, Client(master.address) as client:
        assert client.submit(SPEC).job_id != client.submit(SPEC).job_id
        assert client.submit(SPEC, idempotency_key="k").job_id == client.submit(SPEC, idempotency_key="k").job_id


def test_a_submit_that_is_turned_away_comes_again_when_it_was_told_to():
    with FakeMaster(Script(turned_away=[0.3, 0.3])) as master, Client(master.address) as client:
        began = time.monotonic()
        assert client.submit(SPEC).created
        assert time.monotonic() - began >= 0.6
    assert master.calls["Submit"] == 3


def test_one_that_is_turned_away_for_good_or_for_longer_than_its_patience_does_not_come_again():
    for seconds in (0.0, 9.0):
        with FakeMaster(Script(turned_away=[seconds])) as master:
            with Client(master.address, patience_seconds=5) as client:
                with pytest.raises(Exhausted, match="all are taken"):
                    client.submit(SPEC)
        assert master.calls["Submit"] == 1


def test_a_wrong_spec_is_refused_before_anything_is_sent():
    with FakeMaster(Script()) as master, Client(master.address) as client:
        with pytest.raises(InvalidInput, match="did you mean 'mlp'") as caught:
            client.submit({"model": {"type": "mlpp"}})
        assert caught.value.field == "model.type"
    assert not master.submitted


def test_a_missing_spec_file_is_named(tmp_path):
    with Client("127.0.0.1:1") as client, pytest.raises(InvalidInput, match="absent.yaml: No such file"):
        client.submit(tmp_path / "absent.yaml")


def test_the_servers_error_class_arrives():
    with FakeMaster(Script()) as master, Client(master.address) as client:
        with pytest.raises(NotFound, match="no job 'job-9'"):
            client.get("job-9")
    assert master.calls["Get"] == 1


def test_no_master_is_one_line_that_says_what_to_do():
    with Client(f"127.0.0.1:{free_port('127.0.0.1')}", retry_seconds=0.2) as client:
        with pytest.raises(Unavailable, match="cannot be reached; start one with 'shoal up'") as caught:
            client.get("job-1")
    assert "\n" not in str(caught.value)


def test_reaching_out_tells_soon_that_nobody_is_there_and_nothing_if_somebody_is():
    with FakeMaster(Script()) as master, Client(master.address) as client:
        client.reach()
    assert master.calls == {}
    began = time.monotonic()
    with Client(master.address, retry_seconds=0.2, advice="try harder") as client:
        with pytest.raises(Unavailable, match=f"the master at {master.address} cannot be reached; try harder"):
            client.reach()
    with Client("nowhere.invalid:7070", retry_seconds=0) as client, pytest.raises(Unavailable, match="nowhere.invalid"):
        client.reach()
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("address", ["", "localhost", "localhost:", ":7070", "localhost:0", "localhost:x"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(InvalidInput, match="HOST:PORT"):
        Client(address)


def test_a_watch_goes_on_where_its_connection_broke():
    states = [job("job-1", "RUNNING", step) for step in range(9)] + [job("job-1", "SUCCEEDED", 10)]
    with FakeMaster(Script(watch=states, cut_streams_after=3)) as master, Client(master.address) as client:
        seen = list(client.watch("job-1"))
    assert [view.step for view in seen] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10]
    assert seen[-1].succeeded
    assert master.calls["Watch"] == 4


def test_a_watch_that_the_master_ends_early_is_asked_for_again():
    states = [job("job-1", "RUNNING", 1)]
    with FakeMaster(Script(watch=states)) as master, Client(master.address, patience_seconds=5) as client:
        stream = client.watch("job-1")
        assert next(stream).step == 1
        states.append(job("job-1", "FAILED", 1))
        assert next(stream).phase is Phase.FAILED


def test_a_watch_gives_up_when_nobody_answers_for_its_patience():
    with Client(f"127.0.0.1:{free_port('127.0.0.1')}", patience_seconds=0.3) as client:
        began = time.monotonic()
        with pytest.raises(Unavailable):
            list(client.watch("job-1"))
    assert 0.3 <= time.monotonic() - began < 10


def test_a_watch_outlives_a_master_that_comes_back():
    states = [job("job-1", "RUNNING", 1)]
    with FakeMaster(Script(watch=states, hold_watch=True)) as master:
        client = Client(master.address)
        stream = client.watch("job-1")
        assert next(stream).step == 1
    second = FakeMaster(Script(watch=[job("job-1", "SUCCEEDED", 10)]))
    second.port = master.port
    with second, client:
        assert next(stream).succeeded


def test_waiting_ends_at_its_timeout():
    states = [job("job-1", "RUNNING", 1)]
    with FakeMaster(Script(watch=states, hold_watch=True)) as master, Client(master.address) as client:
        with pytest.raises(DeadlineExceeded, match=r"job job-1 has not ended after 0\.4 s"):
            client.wait("job-1", timeout=0.4)


def test_logs_resume_without_losing_or_repeating_a_line():
    lines = [f"line {number}" for number in range(8)]
    with FakeMaster(Script(logs=lines, cut_streams_after=3)) as master, Client(master.address) as client:
        read = list(client.logs("job-1", follow=True))
        assert [line.text for line in client.logs("job-1", after=6)] == ["line 6", "line 7"]
    assert [line.text for line in read] == lines
    assert [line.sequence for line in read] == list(range(1, 9))


def test_answers_are_plain_nouns():
    done = job("job-1", "SUCCEEDED", 10, started_unix_seconds=5.0, finished_unix_seconds=7.5)
    with FakeMaster(Script(watch=[done])) as master, Client(master.address) as client:
        (view,) = client.list(phases=(Phase.SUCCEEDED,))
        assert client.list(phases=(Phase.FAILED,)) == ()
        (worker,) = client.workers()
        (server,) = client.parameter_servers()
        assert client.cancel("job-1") is Phase.CANCELLED
    assert (view.training_seconds, view.results) == (2.5, None)
    assert (worker.capabilities.supported_models, worker.load.cpu_percent) == (frozenset({"mlp"}), 12.5)
    assert server.server_id == "ps-1"


def test_a_closed_client_says_so():
    client = Client("127.0.0.1:1")
    client.close()
    with pytest.raises(Unavailable, match="closed"):
        client.get("job-1")
