"""Input that is wrong before anything is started: one line, exit code 2, at once."""

import json
import socket
from pathlib import Path

import pytest
import yaml

from shoal.jobspec.spec import JobSpec
from tests.ports import free_port
from tests.unit.cli.shell import shoal

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@pytest.fixture
def spec(tmp_path):
    """Writes a job file with changes of one that is right."""

    def write(**changes: object) -> Path:
        document = yaml.safe_load((EXAMPLES / "digits.yaml").read_text()) | changes
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    return write


@pytest.mark.parametrize("command", ["run", "submit", "validate"])
def test_a_missing_file(command, tmp_path):
    shoal(command, tmp_path / "absent.yaml").fails_with(2, "absent.yaml", "No such file")


class TestJobFiles:
    def test_a_folder(self, tmp_path):
        shoal("run", tmp_path).fails_with(2, "directory")

    def test_binary_data(self, tmp_path):
        (tmp_path / "job.yaml").write_bytes(bytes(range(128, 256)))
        shoal("run", tmp_path / "job.yaml").fails_with(2, "is not text")

    def test_malformed_yaml_names_the_line(self, tmp_path):
        (tmp_path / "job.yaml").write_text("name: digits\nmodel: {type: mlp\ndata: x\n")
        shoal("run", tmp_path / "job.yaml").fails_with(2, "job.yaml", "line 3")

    def test_an_empty_file(self, tmp_path):
        (tmp_path / "job.yaml").write_text("")
        shoal("run", tmp_path / "job.yaml").fails_with(2, "mapping")

    def test_an_unknown_model_names_the_nearest(self, spec):
        shoal("run", spec(model={"type": "mpl"})).fails_with(2, "model.type", "did you mean 'mlp'?")

    def test_a_negative_learning_rate(self, spec):
        path = spec(optimizer={"name": "sgd", "learning_rate": -0.1})
        shoal("run", path).fails_with(2, "optimizer.learning_rate", "greater than 0", "-0.1")

    def test_an_unknown_hyperparameter_names_the_nearest(self, spec):
        path = spec(optimizer={"name": "sgd", "momentun": 0.9})
        shoal("run", path).fails_with(2, "optimizer.momentun", "did you mean 'momentum'?")

    def test_an_unknown_field_names_the_nearest(self, spec):
        shoal("run", spec(trainning={"epochs": 1})).fails_with(2, "trainning", "did you mean 'training'?")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--fault", "explode at step 3"), ("'explode at step 3'", "kill worker-N at step S")),
        (("--fault", "kill worker-7 at step 3"), ("no worker-7", "worker-2")),
        (("--workers", "0"), ("--workers",)),
        (("--workers", "two"), ("--workers",)),
        (("--transport", "pigeon"), ("--transport",)),
        (("--colour", "red"), ("--colour", "shoal run --help")),
        (("-o", "xml"), ("xml", "table")),
    ],
)
def test_wrong_options_of_run(arguments, parts):
    shoal("run", EXAMPLES / "digits.yaml", *arguments).fails_with(2, *parts)


def test_an_unknown_command_and_a_missing_argument():
    shoal("swim").fails_with(2, "swim")
    shoal("get").fails_with(2, "JOB", "shoal get --help")


def test_no_master_is_told_in_one_line():
    address = f"127.0.0.1:{free_port('127.0.0.1')}"
    for arguments in (("list",), ("get", "job-1"), ("workers",), ("submit", EXAMPLES / "digits.yaml")):
        shoal(*arguments, SHOAL_MASTER_ADDRESS=address).fails_with(1, address, "cannot be reached", "shoal up")


def test_the_option_wins_over_the_environment_before_and_behind_the_command():
    first, second = f"127.0.0.1:{free_port('127.0.0.1')}", "127.0.0.1:9"
    for arguments in (("--master", first, "list"), ("list", "-m", first)):
        shoal(*arguments, SHOAL_MASTER_ADDRESS=second).fails_with(1, first)


def test_an_address_that_is_none():
    shoal("list", "-m", "nowhere").fails_with(2, "'nowhere'", "HOST:PORT")


def test_a_taken_port_is_told_before_anything_starts(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        shoal("up", "--port", str(port), XDG_STATE_HOME=str(tmp_path)).fails_with(2, str(port), "--port")
    shoal("status", XDG_STATE_HOME=str(tmp_path)).fails_with(102, "shoal up")


def test_there_is_nothing_to_end(tmp_path):
    shoal("down", XDG_STATE_HOME=str(tmp_path)).fails_with(102, "no cluster")


def test_a_damaged_state_file_is_told(tmp_path):
    (tmp_path / "shoal").mkdir()
    (tmp_path / "shoal" / "cluster.json").write_text("{")
    shoal("status", XDG_STATE_HOME=str(tmp_path)).fails_with(1, "cluster.json")


def test_evaluate_tells_what_is_wrong_with_a_folder(tmp_path):
    shoal("evaluate", tmp_path / "absent").fails_with(102, "absent")
    shoal("evaluate", tmp_path).fails_with(102, "config.json")
    shoal("evaluate", EXAMPLES / "digits.yaml").fails_with(2, "not a folder")


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_valid(example):
    done = shoal("validate", example)
    assert (done.code, done.out, done.err) == (0, f"{example}: valid\n", "")


def test_validate_prints_the_whole_spec_in_both_forms():
    as_json = shoal("validate", EXAMPLES / "digits.yaml", "-o", "json")
    as_yaml = shoal("validate", EXAMPLES / "digits.yaml", "-o", "yaml")
    assert json.loads(as_json.out) == yaml.safe_load(as_yaml.out)
    assert JobSpec.model_validate(json.loads(as_json.out)).training.world_size == 8


def test_the_schema_is_the_specs():
    assert json.loads(shoal("schema").out) == json.loads(json.dumps(JobSpec.model_json_schema()))


def test_help_and_version_are_there():
    assert "run" in shoal("--help").out
    assert shoal("--version").out.startswith("shoal 0.")


def test_the_command_line_loads_neither_torch_nor_a_role():
    done = shoal("validate", EXAMPLES / "digits.yaml", PYTHONPROFILEIMPORTTIME="1")
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.err.splitlines() if line.startswith("import time:")}
    assert "shoal.cli.app" in loaded
    assert not loaded & {"torch", "sqlalchemy", "shoal.master", "shoal.worker", "shoal.ps"}
