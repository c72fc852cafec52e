"""The contract: generated code is fresh, and no change may break a client."""

import importlib.util
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_specification = importlib.util.spec_from_file_location("protos_tool", ROOT / "tools" / "protos.py")
assert _specification is not None
assert _specification.loader is not None
protos = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(protos)

# What other programs were promised. Name, type and number of a field are free; name and presence are not.
GIVEN = {
    "shoal.master.v1.RegisterWorkerRequest": {"worker_id", "capabilities", "host", "port"},
    "shoal.master.v1.WorkerCapabilities": {"has_gpu", "supported_models", "max_concurrent_jobs"},
    "shoal.master.v1.RegisterWorkerResponse": {"success", "message", "assigned_worker_id"},
    "shoal.master.v1.SendHeartbeatRequest": {"worker_id", "status"},
    "shoal.master.v1.WorkerStatus": {"cpu_load", "memory_usage", "current_jobs"},
    "shoal.master.v1.SendHeartbeatResponse": {"success", "message"},
    "shoal.master.v1.RequestJobRequest": {"worker_id"},
    "shoal.master.v1.RequestJobResponse": {"assigned", "job_id", "parameters", "message"},
    "shoal.master.v1.JobParameters": {"dataset_path", "model_type", "hyperparameters"},
    "shoal.master.v1.CompleteJobRequest": {"worker_id", "job_id", "results"},
    "shoal.master.v1.JobResults": {"accuracy", "loss", "metrics", "success", "errors"},
    "shoal.master.v1.CompleteJobResponse": {"success", "message"},
    "shoal.worker.v1.TrainingJob": {"job_id", "parameters"},
    "shoal.worker.v1.TrainingConfig": {"default_learning_rate", "default_batch_size", "max_epochs", "optimizer"},
    "shoal.parameter_server.v1.PushGradientsRequest": {
        "worker_id",
        "job_id",
        "layer_name",
        "gradient_data",
        "version",
    },
    "shoal.parameter_server.v1.PushGradientsResponse": {"success", "message", "new_version"},
    "shoal.parameter_server.v1.PullParametersRequest": {"worker_id", "job_id", "layer_name", "version"},
    "shoal.parameter_server.v1.PullParametersResponse": {"success", "message", "parameter_data", "version"},
    "shoal.parameter_server.v1.GetParameterVersionRequest": {"worker_id", "job_id", "layer_name"},
}


@pytest.fixture(scope="module")
def contract() -> list[str]:
    return protos.contract()


def test_regenerating_the_code_changes_nothing():
    assert protos.stale() == [], "run `make protos`"


def test_the_recorded_contract_holds_and_has_every_addition(contract):
    recorded = protos.CONTRACT.read_text().splitlines()
    assert protos.breakages(recorded, contract) == []
    assert recorded == contract, "run `make protos`"


@pytest.mark.parametrize("message", GIVEN)
def test_the_given_fields_are_there(contract, message):
    have = {line.split()[4] for line in contract if line.startswith(f"field {message} ")}
    assert have >= GIVEN[message]


@pytest.mark.parametrize(
    ("file", "old", "new", "complaint"),
    [
        (
            "jobs",
            "  string job_id = 1;\n  string name = 2;",
            "  string job_id = 1;",
            "removed: field shoal.jobs.v1.Job 2",
        ),
        ("jobs", "string name = 2;", "string title = 2;", "changed: field shoal.jobs.v1.Job 2 = name"),
        ("jobs", "string name = 2;", "bytes name = 2;", "changed: field shoal.jobs.v1.Job 2 = name : string"),
        ("jobs", "string name = 2;", "repeated string name = 2;", "changed: field shoal.jobs.v1.Job 2"),
        ("jobs", "string name = 2;", "string name = 99;", "renumbered: field shoal.jobs.v1.Job 2 = name"),
        ("jobs", "rpc Get(", "rpc Fetch(", "removed: method shoal.jobs.v1.JobService Get"),
        ("jobs", "returns (stream Job)", "returns (Job)", "changed: method shoal.jobs.v1.JobService Watch"),
        ("jobs", "service JobService {", "service Jobs {", "removed: method shoal.jobs.v1.JobService Cancel"),
        ("master", "ROLE_WORKER = 1;", "ROLE_FISH = 1;", "changed: enum shoal.master.v1.Role 1 = ROLE_WORKER"),
        ("master", "  ROLE_WORKER = 1;\n", "", "removed: enum shoal.master.v1.Role 1"),
        ("master", "ROLE_WORKER = 1;", "ROLE_WORKER = 7;", "renumbered: enum shoal.master.v1.Role 1"),
        ("shard", "package shoal.shard.v1;", "package shoal.shard.v2;", "removed: method shoal.shard.v1.ShardService"),
    ],
)
def test_a_break_is_noticed(tmp_path, contract, file, old, new, complaint):
    changed = _changed(tmp_path, file, old, new)
    problems = protos.breakages(contract, changed)
    assert any(problem.startswith(complaint) for problem in problems), problems


def test_additions_pass(tmp_path, contract):
    changed = _changed(
        tmp_path,
        "jobs",
        "message GetRequest {",
        "message More { string text = 1; }\n\nmessage GetRequest { bool b = 9;",
    )
    assert len(changed) == len(contract) + 2
    assert protos.breakages(contract, changed) == []


def _changed(tmp_path: Path, file: str, old: str, new: str) -> list[str]:
    """The contract of the protos with one text replaced."""
    shutil.copytree(protos.PROTOS, tmp_path / "proto")
    path = tmp_path / "proto" / "shoal" / "wire" / "v1" / f"{file}.proto"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    lines: list[str] = protos.contract(tmp_path / "proto")
    return lines
