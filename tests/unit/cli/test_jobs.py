"""Commands about jobs against a master that plays a script (see tests/unit/sdk/fake_master.py for why)."""

import json

import pytest
import yaml

from shoal.wire.v1 import jobs_pb2, master_pb2
from tests.unit.cli.shell import Done, shoal
from tests.unit.sdk.fake_master import FakeMaster, Script, job

RUNNING = job("job-1", "RUNNING", 4, workers=[jobs_pb2.WorkerShare(worker_id="worker-1", last_rank=8)])
RESULTS = master_pb2.JobResults(success=True, accuracy=0.975, loss=0.1, steps=10, samples=80, weights_sha256="ab")
SUCCEEDED = job("job-1", "SUCCEEDED", 10, results=RESULTS)
FAILED = job("job-1", "FAILED", 4, results=master_pb2.JobResults(errors=["ValueError: labels\nout of range"]))
CANCELLED = job("job-1", "CANCELLED", 4)


def against(script: Script, *arguments: str) -> Done:
    with FakeMaster(script) as master:
        return shoal(*arguments, "-m", master.address)


@pytest.mark.parametrize(("last", "code"), [(SUCCEEDED, 0), (FAILED, 100), (CANCELLED, 103)])
@pytest.mark.parametrize("command", ["watch", "wait"])
def test_the_exit_code_tells_how_a_job_ended(command, last, code):
    done = against(Script(watch=[RUNNING, last]), command, "job-1", "-o", "json")
    assert done.code == code
    document = json.loads(done.out)
    assert (document["job_id"], document["phase"]) == ("job-1", last.phase)
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert errors == (
        ["error: job job-1 failed: ValueError: labels out of range; see 'shoal logs job-1'"] if code == 100 else []
    )


def test_watch_shows_sparse_lines_when_nobody_watches_live():
    done = against(Script(watch=[job("job-1", "PENDING"), RUNNING, RUNNING, RUNNING, SUCCEEDED]), "watch", "job-1")
    lines = done.err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["pending", "running", "succeeded"]
    assert lines[1] == "running: step 4/10  loss 0.5000  1 worker"


def test_waiting_too_long_has_its_own_code():
    done = against(Script(watch=[RUNNING], hold_watch=True), "wait", "job-1", "--timeout", "0.3")
    done.fails_with(124, "job-1 has not ended after 0.3 s")


def test_an_unknown_job_has_its_own_code():
    against(Script(), "get", "job-9").fails_with(102, "no job 'job-9'")


def test_one_job_reads_the_same_in_every_form():
    table = against(Script(watch=[SUCCEEDED]), "get", "job-1")
    assert table.out.split() == [
        *("JOB", "NAME", "PHASE", "STEP", "LOSS", "ACCURACY", "WORKERS", "SHARDS", "AGE"),
        *("job-1", "digits", "SUCCEEDED", "10/10", "0.5000", "0.9750", "0", "0", table.out.split()[-1]),
    ]
    as_json = json.loads(against(Script(watch=[SUCCEEDED]), "get", "job-1", "-o", "json").out)
    as_yaml = yaml.safe_load(against(Script(watch=[SUCCEEDED]), "get", "job-1", "-o", "yaml").out)
    assert as_json == as_yaml
    assert as_json["results"]["accuracy"] == 0.975


def test_an_empty_list_is_a_list():
    assert json.loads(against(Script(), "list", "-o", "json").out) == []
    assert against(Script(), "list").out.startswith("JOB")
    against(Script(), "list", "--phase", "sleeping").fails_with(2, "PENDING, STARTING")


def test_describe_tells_the_events():
    event = jobs_pb2.Event(
        unix_seconds=1.0, phase="RUNNING", attempt=2, reason="WorkerLost", message="worker-1 is gone"
    )
    state = job("job-1", "RUNNING", 4, events=[event], spec_json='{"name": "digits"}')
    done = against(Script(watch=[state]), "describe", "job-1")
    assert done.code == 0
    assert done.out.split("events:\n")[1].splitlines()[1].split() == [
        *("1970-01-01T00:00:01Z", "2", "RUNNING", "WorkerLost", "worker-1", "is", "gone")
    ]
    assert "name: digits" in done.out


def test_logs_are_lines():
    done = against(Script(logs=["one", "two"]), "logs", "job-1")
    assert done.out == "worker-1  one\nworker-1  two\n"
    objects = [
        json.loads(line) for line in against(Script(logs=["one"]), "logs", "job-1", "-o", "json").out.splitlines()
    ]
    assert [line["text"] for line in objects] == ["one"]


def test_members_are_listed():
    assert "worker-1  alive  127.0.0.1  no   12.5" in against(Script(), "workers").out
    assert json.loads(against(Script(), "ps", "-o", "json").out)[0]["server_id"] == "ps-1"


def test_cancel_tells_the_phase():
    assert against(Script(), "cancel", "job-1").out == "job-1 CANCELLED\n"


def test_a_damaged_download_is_one_line(tmp_path):
    against(Script(), "download", "job-1", str(tmp_path)).fails_with(1, "try again")


def test_snapshots_are_listed_newest_first_with_the_current_one_marked():
    table = against(Script(), "snapshots", "job-1")
    assert [line.split() for line in table.out.splitlines()] == [
        ["STEP", "AT", "ATTEMPT", "CURRENT", "FILES", "BYTES", "DAMAGED"],
        ["30", "1970-01-01T00:00:01Z", "2", "no", "1", "1000", "yes"],
        ["20", "1970-01-01T00:00:00Z", "1", "yes", "2", "2000", "no"],
    ]
    as_json = json.loads(against(Script(), "snapshots", "job-1", "-o", "json").out)
    assert as_json == yaml.safe_load(against(Script(), "snapshots", "job-1", "-o", "yaml").out)
    file = {"shard_index": 0, "server_id": "ps-0", "name": "file", "size": 1000, "sha256": "ab"}
    assert as_json[0]["files"] == [file]
    assert (as_json[0]["damaged"], as_json[1]["current"]) == ("file: truncated", True)


@pytest.mark.parametrize(("given", "asked"), [((), None), (("--from-step", "0"), 0), (("--from-step", "20"), 20)])
def test_a_job_is_resumed_from_the_step_that_was_given(given, asked):
    with FakeMaster(Script()) as master:
        done = shoal("resume", "job-1", *given, "-m", master.address)
        assert master.calls[f"Resume job-1 {asked}"] == 1
    assert (done.code, done.out) == (0, "job-1 PENDING\n")
    against(Script(), "resume", "job-1", "--from-step", "-1").fails_with(2, "from-step")
