"""docker/Dockerfile and what is copied into it, as far as that shows without a build."""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
IMAGES = {"master": "shoal.master", "parameter-server": "shoal.ps", "worker": "shoal.worker"}
LABELS = ("title", "description", "licenses", "source", "version", "revision", "created")


@dataclass(kw_only=True)
class Stage:
    parent: str
    lines: list[tuple[str, str]] = field(default_factory=list)  # (instruction, its arguments)

    def all(self, instruction: str) -> list[str]:
        return [arguments for name, arguments in self.lines if name == instruction]


def stages() -> dict[str, Stage]:
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, Stage] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, arguments = line.split(maxsplit=1)
        if instruction == "FROM":
            parent, _, name = arguments.split()
            found[name] = Stage(parent=parent)
        elif found:
            found[name].lines.append((instruction, arguments))
    return found


STAGES = stages()


def test_hadolint_finds_nothing():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_its_role_as_a_user_without_rights(image):
    stage = STAGES[image]
    assert stage.parent == "base"
    assert [json.loads(form) for form in stage.all("ENTRYPOINT")] == [["python", "-m", IMAGES[image]]]
    (user,) = stage.all("USER")
    assert all(int(part) >= 10_000 for part in user.split(":"))
    assert STAGES["base"].all("STOPSIGNAL") == ["SIGTERM"]


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_says_what_it_is(image):
    (labels,) = STAGES[image].all("LABEL")
    given = dict(pair.split("=", 1) for pair in shlex.split(labels))
    assert set(given) == {f"org.opencontainers.image.{name}" for name in LABELS}
    assert given["org.opencontainers.image.title"] == f"shoal-{image}"


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_a_finished_environment_and_nothing_of_the_stage_that_made_it(image):
    copied = [arguments.split() for arguments in STAGES[image].all("COPY")]
    assert [source for _, *source in copied] == [["/opt/shoal", "/opt/shoal"]] * 2
    assert copied[-1][0] == "--from=package", "Shoal's own layer is the last: it changes most"
    assert not any("pip" in command for command in STAGES[image].all("RUN"))


def test_no_index_is_written_down():
    for path in (ROOT / "skaffold.yaml", *(ROOT / "docker").iterdir()):
        assert not path.is_file() or "://" not in path.read_text(), path


# -- what the build gets to see ---------------------------------------------------------------------------------------


def ignored(path: str) -> bool:
    """By .dockerignore: the last pattern that fits the path or a folder above it decides."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            regex = re.escape(line.removeprefix("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
            regex = regex.replace(r"\[", "[").replace(r"\]", "]")
            if re.fullmatch(f"{regex}(/.*)?", path):
                verdict = not line.startswith("!")
    return verdict


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".venv/bin/python",
        "tests/conftest.py",
        "docker/Dockerfile",
        "services/shoal.egg-info/PKG-INFO",
        "services/shoal/__pycache__/__init__.cpython-311.pyc",
        "services/shoal/core/__pycache__/job.cpython-311.pyc",
        "runs/x/model.safetensors",
        ".env",
    ],
)
def test_the_context_leaves_out(path):
    assert ignored(path)


def test_the_context_has_the_package():
    package = ROOT / "services" / "shoal"
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert files
    assert not [path for path in files if ignored(str(path.relative_to(ROOT)))]


def test_everything_that_is_copied_exists_and_is_in_the_context():
    sources = []
    for stage in STAGES.values():
        for arguments in stage.all("COPY"):
            if not arguments.startswith("--from="):
                sources += arguments.split()[:-1]
        for arguments in stage.all("RUN"):
            sources += re.findall(r"--mount=type=bind,source=([^,\s]+)", arguments)
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source == "services" or not ignored(source), source


# -- the scripts that the build runs ----------------------------------------------------------------------------------


def script(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "docker" / name, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def test_requirements_are_those_of_the_extras():
    done = script("requirements.py", "torch,gpu,")
    names = {re.split(r"[<>=\[]", line)[0] for line in done.stdout.splitlines()}
    assert {"grpcio", "torch", "numpy", "nvidia-ml-py"} <= names
    assert not names & {"datasets", "SQLAlchemy", "typer"}


def test_an_extra_that_does_not_exist_ends_the_build():
    done = script("requirements.py", "torch,tabels")
    assert done.returncode == 1
    assert "no extra 'tabels'; known: master, torch, tables" in done.stderr


@pytest.mark.parametrize(
    ("asked", "version", "cuda", "code", "said"),
    [
        ("", "2.13.0+cpu", None, 0, "torch 2.13.0+cpu, without CUDA"),
        ("", "2.13.0+cu130", "13.0", 0, "warning: several GB for CUDA"),
        ("1", "2.13.0+cu130", "13.0", 0, "torch 2.13.0+cu130, for CUDA 13.0"),
        ("1", "2.13.0+cpu", None, 1, "CUDA=1, but pip found torch 2.13.0+cpu, without CUDA"),
        ("0", "2.13.0+cpu", None, 1, "CUDA=0: 1 is expected, or nothing"),
    ],
)
def test_the_build_of_torch_is_the_one_asked_for(tmp_path, asked, version, cuda, code, said):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(f"from . import version\n__version__ = {version!r}\n")
    (tmp_path / "torch" / "version.py").write_text(f"cuda = {cuda!r}\n")
    done = script("check_torch.py", asked, PYTHONPATH=str(tmp_path))
    assert done.returncode == code
    assert said in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("dependencies", "started"),
    [
        ("master-dependencies", ["shoal.master.app", "shoal.master.store.opening", "shoal.cli.app"]),
        ("torch-dependencies", ["shoal.ps.app"]),
        ("torch-dependencies", ["shoal.worker.app", "shoal.worker.trainer.app"]),
    ],
)
def test_what_a_role_loads_has_bytecode_in_its_image(dependencies, started):
    """Importing writes it; what is not imported in the build would be compiled again at every start."""
    (imports,) = re.findall(r'-c "(import [^"]+)"', " ".join(STAGES[dependencies].all("RUN")))
    ready = loaded(imports)
    needed = {name for name in loaded(f"import {', '.join(started)}") if name.partition(".")[0] != "shoal"}
    missing = sorted(needed - ready)
    assert len(missing) < 0.02 * len(needed), f"add to the imports of stage {dependencies}: {missing}"


def loaded(statement: str) -> set[str]:
    """Modules outside the standard library that the statement loads from .py files."""
    code = (
        f"{statement}; import sys; print(*(name for name, module in list(sys.modules.items())"
        " if (getattr(module, '__file__', None) or '').endswith('.py')"
        " and name.partition('.')[0] not in sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())
