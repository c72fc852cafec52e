"""What users ask: submit, validate, list, logs, download, and the answers to wrong input."""

import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from shoal.wire.v1 import jobs_pb2, master_pb2
from tests.integration.master.conftest import begin, eventually, refused, running, settings_of


def test_the_same_key_gives_the_same_job(master):
    request = jobs_pb2.SubmitRequest(spec_json="model: {type: mlp}", idempotency_key="k")
    first = master.jobs.Submit(request, timeout=10)
    second = master.jobs.Submit(request, timeout=10)
    assert (first.created, second.created) == (True, False)
    assert first.job_id == second.job_id


def test_of_many_submits_at_once_with_one_key_one_creates(master):
    request = jobs_pb2.SubmitRequest(spec_json="model: {type: mlp}", idempotency_key="k")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: master.jobs.Submit(request, timeout=20), range(16)))
    assert sum(answer.created for answer in answers) == 1
    assert len({answer.job_id for answer in answers}) == 1


def test_the_same_key_with_another_spec_is_refused(master):
    master.submit(key="k")
    with refused(grpc.StatusCode.ALREADY_EXISTS, "'k'"):
        master.submit("{model: {type: mlp}, priority: 1}", key="k")


@pytest.mark.parametrize(
    ("spec", "field", "parts"),
    [
        ("{model: {type: mpl}}", "model.type", ["mpl", "mlp"]),
        ("{model: {type: mlp, hiden: [1]}}", "model.hiden", ["hiden", "hidden"]),
        ("{model: {type: mlp}, optimizer: {name: sgd, momentun: 0.9}}", "optimizer.momentun", ["momentum"]),
        ("{model: {type: mlp}, optimizer: {name: sgd, learning_rate: -1}}", "optimizer.learning_rate", ["-1"]),
        ("{model: {type: mlp}, optimizer: {name: sgdd}}", "optimizer.name", ["sgdd", "sgd"]),
        ("{model: {type: mlp}, trainig: {}}", "trainig", ["training"]),
        ("{}", "model", ["missing"]),
        ("{model: {type: mlp}", "", ["line 1"]),
        ("just text", "", ["mapping"]),
        ("", "", ["mapping"]),
    ],
)
@pytest.mark.parametrize("call", ["Submit", "Validate"])
def test_a_wrong_spec_is_refused_by_field_with_the_nearest_name(master, call, spec, field, parts):
    request = {"Submit": jobs_pb2.SubmitRequest, "Validate": jobs_pb2.ValidateRequest}[call](spec_json=spec)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, *parts) as caught:
        getattr(master.jobs, call)(request, timeout=10)
    trailing = dict(caught.value.trailing_metadata())
    assert trailing["shoal-error"] == "InvalidInput"
    assert trailing.get("shoal-field", "") == field


def test_validate_fills_in_the_clusters_defaults(tmp_path):
    changes = {"default_learning_rate": 0.25, "default_batch_size": 7, "max_epochs": 3, "optimizer": "adam"}
    with running(settings_of(tmp_path, **changes)) as master:
        request = jobs_pb2.ValidateRequest(spec_json="model: {type: mlp}")
        resolved = json.loads(master.jobs.Validate(request, timeout=10).resolved_spec_json)
    assert resolved["optimizer"]["name"] == "adam"
    assert resolved["optimizer"]["learning_rate"] == 0.25
    assert (resolved["training"]["batch_size"], resolved["training"]["epochs"]) == (7, 3)


@pytest.mark.parametrize("call", ["Get", "Watch", "Cancel", "Logs", "Download"])
def test_an_unknown_job_is_not_found(master, call):
    request = getattr(jobs_pb2, f"{call}Request")(job_id="no-such-job")
    with refused(grpc.StatusCode.NOT_FOUND, "'no-such-job'"):
        answer = getattr(master.jobs, call)(request, timeout=10)
        if call in ("Watch", "Logs", "Download"):
            list(answer)


def test_jobs_are_listed_newest_first_by_phase_and_limit(master):
    ids = [master.submit() for _ in range(3)]
    master.cancel(ids[1])

    def listed(**fields):
        return [job.job_id for job in master.jobs.List(jobs_pb2.ListRequest(**fields), timeout=10).jobs]

    assert listed() == ids[::-1]
    assert listed(limit=1) == [ids[2]]
    assert listed(phases=["CANCELLED"]) == [ids[1]]
    assert listed(phases=["pending"]) == [ids[2], ids[0]]
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "DONE", "SUCCEEDED"):
        listed(phases=["DONE"])


def report(master, job_id, *texts, attempt=1, incarnation="of-worker-1"):
    return master.master.ReportLogs(
        master_pb2.ReportLogsRequest(
            worker_id="worker-1",
            job_id=job_id,
            attempt=attempt,
            incarnation=incarnation,
            lines=[master_pb2.LogLine(unix_seconds=5.0, text=text) for text in texts],
        ),
        timeout=10,
    )


def test_logs_are_kept_in_order_and_can_be_resumed(master):
    master.register()
    job_id = master.submit()
    assert report(master, job_id, "one", "two").success
    assert report(master, job_id, "three").success
    lines = list(master.jobs.Logs(jobs_pb2.LogsRequest(job_id=job_id), timeout=10))
    assert [(line.sequence, line.line.text) for line in lines] == [(1, "one"), (2, "two"), (3, "three")]
    assert (lines[0].line.worker_id, lines[0].line.unix_seconds) == ("worker-1", 5.0)
    resumed = master.jobs.Logs(jobs_pb2.LogsRequest(job_id=job_id, after=2), timeout=10)
    assert [line.line.text for line in resumed] == ["three"]


def test_following_logs_ends_when_the_job_has_ended(master):
    master.register()
    job_id = master.submit()
    report(master, job_id, "one")
    got = []
    request = jobs_pb2.LogsRequest(job_id=job_id, follow=True)
    reader = threading.Thread(
        target=lambda: got.extend(line.line.text for line in master.jobs.Logs(request, timeout=30))
    )
    reader.start()
    eventually(lambda: got == ["one"])
    report(master, job_id, "two")
    eventually(lambda: got == ["one", "two"])
    master.cancel(job_id)
    reader.join(10)
    assert not reader.is_alive()


def test_logs_of_unknown_jobs_and_workers_are_refused(master):
    master.register()
    unknown = report(master, "no-such-job", "x")
    assert (unknown.success, "'no-such-job'" in unknown.message) == (False, True)
    dead = report(master, master.submit(), "x", incarnation="dead")
    assert (dead.success, "not recognized" in dead.message) == (False, True)


def test_only_the_newest_log_lines_are_kept_and_long_ones_cut(tmp_path):
    with running(settings_of(tmp_path, log_lines_kept=5, log_line_characters=100)) as master:
        master.register()
        job_id = master.submit()
        report(master, job_id, *(f"{number} " + "x" * 500 for number in range(20)))
        lines = list(master.jobs.Logs(jobs_pb2.LogsRequest(job_id=job_id), timeout=10))
    assert [line.line.text.split()[0] for line in lines] == ["15", "16", "17", "18", "19"]
    assert {len(line.line.text) for line in lines} == {100}


def test_download_relays_every_file_in_pieces(master, shard):
    job_id = begin(master, shard)
    shard.commit(job_id, steps=3)
    master.complete(job_id, weights_sha256="ab" * 32)
    master.phase_is(job_id, "SUCCEEDED")
    head, first, *rest = master.jobs.Download(jobs_pb2.DownloadRequest(job_id=job_id), timeout=30)
    config = json.loads(head.config_json)
    assert head.weights_sha256 == "ab" * 32
    assert config["model_type"] == "mlp"
    assert config["shoal"]["job_id"] == job_id
    assert config["shoal"]["spec"]["optimizer"]["name"] == "sgd"
    assert config["shoal"]["results"]["accuracy"] == 0.97
    data = b"".join(message.data for message in rest)
    assert max(len(message.data) for message in rest) <= 1 << 20
    assert (first.file.shard_index, first.file.size) == (0, len(data))
    assert hashlib.sha256(data).hexdigest() == first.file.sha256


def test_a_download_begins_where_it_is_asked_to(master, shard):
    job_id = begin(master, shard)
    master.complete(job_id)
    master.phase_is(job_id, "SUCCEEDED")
    ((_, name), data), *_ = shard.files.items()

    def rest(offset):
        request = jobs_pb2.DownloadRequest(job_id=job_id, file_name=name, offset=offset)
        head, first, *messages = master.jobs.Download(request, timeout=30)
        assert head.config_json
        assert (first.file.file_name, first.file.size, first.offset) == (name, len(data), offset)
        return b"".join(message.data for message in messages)

    for offset in (0, 1, 1 << 20, len(data) - 1, len(data)):
        assert rest(offset) == data[offset:]
    with refused(grpc.StatusCode.INVALID_ARGUMENT, f"offset {len(data) + 1} is behind the end"):
        rest(len(data) + 1)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "no file 'other'"):
        list(master.jobs.Download(jobs_pb2.DownloadRequest(job_id=job_id, file_name="other"), timeout=10))


def test_only_the_model_of_a_succeeded_job_can_be_downloaded(master):
    job_id = master.submit()
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "PENDING"):
        list(master.jobs.Download(jobs_pb2.DownloadRequest(job_id=job_id), timeout=10))


def test_a_download_that_is_cut_short_is_an_error_and_not_a_short_file(master, shard):
    job_id = begin(master, shard)
    master.complete(job_id)
    master.phase_is(job_id, "SUCCEEDED")
    for key, data in shard.files.items():
        shard.files[key] = data[:-1]
    with refused(grpc.StatusCode.DATA_LOSS, "bytes came"):
        list(master.jobs.Download(jobs_pb2.DownloadRequest(job_id=job_id), timeout=30))


def test_a_completion_without_results_or_with_an_impossible_accuracy_is_refused(master, shard):
    job_id = begin(master, shard)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "results"):
        master.master.CompleteJob(master_pb2.CompleteJobRequest(worker_id="worker-1", job_id=job_id), timeout=10)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "accuracy"):
        master.complete(job_id, accuracy=97.0)
    assert master.get(job_id).phase == "STARTING"
