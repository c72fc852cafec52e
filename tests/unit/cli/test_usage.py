"""Input that is wrong before anything is started: one line, exit code 2, at once."""

import json
import socket
from pathlib import Path

import pytest
import yaml

from shoal.jobspec.spec import JobSpec
from shoal.sdk.contexts import Context, ContextFile
from tests.ports import free_port
from tests.unit.cli.shell import Done, shoal
from tests.unit.sdk.fake_master import FakeMaster, Script

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
    for arguments in (("list",), ("watch", "job-1"), ("workers",), ("submit", EXAMPLES / "digits.yaml")):
        shoal(*arguments, SHOAL_MASTER_ADDRESS=address).fails_with(1, address, "cannot be reached", "shoal up")


def test_an_address_that_is_none():
    shoal("list", "-m", "nowhere").fails_with(2, "'nowhere'", "HOST:PORT")


class TestWhichMaster:
    """Nobody listens anywhere: the error tells which address was meant."""

    OPTION, CONTEXT, VARIABLE, CURRENT = (f"127.0.0.1:{port}" for port in (free_port(), free_port(), 9, 10))

    @pytest.fixture
    def file(self, tmp_path):
        file = ContextFile(tmp_path / "contexts.yaml")
        file.store(Context(name="named", address=self.CONTEXT, command="shoal connect -n named"))
        file.store(Context(name="current", address=self.CURRENT, command="shoal connect -n current"))
        return file

    def meant(self, *arguments: str, file: ContextFile | None = None, variable: str = "") -> Done:
        variables = {"XDG_STATE_HOME": "/nonexistent"}
        if file is not None:
            variables["SHOAL_CONTEXTS"] = str(file.path)
        if variable:
            variables["SHOAL_MASTER_ADDRESS"] = variable
        return shoal(*arguments, **variables)

    @pytest.mark.parametrize("arguments", [("--master", OPTION, "list"), ("list", "-m", OPTION)])
    def test_the_option_wins_before_and_behind_the_command(self, file, arguments):
        done = self.meant(*arguments, "--context", "named", file=file, variable=self.VARIABLE)
        done.fails_with(1, self.OPTION, "--master")

    @pytest.mark.parametrize("arguments", [("--context", "named", "list"), ("list", "--context", "named")])
    def test_then_the_context_that_is_named(self, file, arguments):
        done = self.meant(*arguments, file=file, variable=self.VARIABLE)
        done.fails_with(1, self.CONTEXT, "context 'named', which needs 'shoal connect -n named' to run")

    def test_then_the_environment(self, file):
        self.meant("list", file=file, variable=self.VARIABLE).fails_with(1, self.VARIABLE, "$SHOAL_MASTER_ADDRESS")

    def test_then_the_current_context(self, file):
        self.meant("list", file=file).fails_with(1, self.CURRENT, "context 'current', which needs", "contexts use")

    def test_then_the_default(self):
        done = self.meant("list")
        if done.code:  # unless somebody serves there
            done.fails_with(1, "127.0.0.1:7070", "shoal up", "shoal connect")

    def test_a_context_that_does_not_exist_is_told_with_those_that_do(self, file):
        self.meant("list", "--context", "other", file=file).fails_with(102, "'other'", "current, named")

    def test_a_damaged_file_is_told_where_it_is_needed_and_only_there(self, file):
        file.path.write_text("contexts: nonsense")
        self.meant("list", file=file).fails_with(1, str(file.path), "correct it or delete it")
        self.meant("list", file=file, variable=self.VARIABLE).fails_with(1, self.VARIABLE)


class TestContexts:
    def test_nothing_is_known_at_first(self, tmp_path):
        variables = {"SHOAL_CONTEXTS": str(tmp_path / "contexts.yaml")}
        assert json.loads(shoal("contexts", "list", "-o", "json", **variables).out) == []
        shoal("contexts", "use", "x", **variables).fails_with(102, "no context 'x'", "shoal connect")

    def test_they_are_listed_used_and_removed(self, tmp_path):
        file = ContextFile(tmp_path / "shoal" / "contexts.yaml")
        for name in ("first", "second"):
            file.store(Context(name=name, address="127.0.0.1:1", command=f"shoal connect --name {name}"))
        variables = {"XDG_CONFIG_HOME": str(tmp_path), "SHOAL_CONTEXTS": ""}
        table = shoal("contexts", "list", **variables).out.splitlines()
        assert [line.split()[:3] for line in table] == [
            ["NAME", "ADDRESS", "CURRENT"],
            ["second", "127.0.0.1:1", "yes"],
            ["first", "127.0.0.1:1", "no"],
        ]
        assert "first" in shoal("contexts", "use", "first", **variables).out
        assert yaml.safe_load(shoal("contexts", "list", "-o", "yaml", **variables).out)[0]["name"] == "first"
        removed = shoal("contexts", "remove", "first", "-o", "json", **variables)
        assert json.loads(removed.out) == {"current": "second"}
        assert shoal("contexts", "remove", "second", **variables).out == "there is no context now\n"

    def test_without_a_command_the_help_is_shown(self):
        done = shoal("contexts")
        assert (done.code, done.err) == (2, "")
        assert "remove" in done.out


class TestWithoutExtras:
    """What is not installed is told in one line, and only by what needs it."""

    @pytest.fixture
    def without(self, tmp_path):
        def variables(module: str) -> dict[str, str]:
            (tmp_path / f"{module}.py").write_text(
                f'raise ModuleNotFoundError("No module named {module!r}", name="{module}")'
            )
            return {"PYTHONPATH": str(tmp_path)}

        return variables

    @pytest.mark.parametrize("module", ["numpy", "safetensors"])
    def test_download_names_what_to_install(self, without, tmp_path, module):
        with FakeMaster(Script()) as master:
            variables = without(module)
            done = shoal("download", "job-1", tmp_path / "model", "-m", master.address, **variables)
            done.fails_with(1, f"needs {module}", "pip install 'shoal[download]'")
            assert shoal("list", "-m", master.address, **variables).code == 0
            assert shoal("submit", EXAMPLES / "digits.yaml", "-m", master.address, **variables).code == 0

    def test_connect_names_what_to_install(self, without):
        shoal("connect", **without("kubernetes")).fails_with(1, "needs kubernetes", "pip install 'shoal[kubernetes]'")


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
    assert not loaded & {"torch", "numpy", "safetensors", "kubernetes", "sqlalchemy"}
    assert not loaded & {"shoal.master", "shoal.worker", "shoal.ps"}
