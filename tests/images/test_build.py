"""tools/images.py, with an engine that builds nothing, and docker/measure.py on files whose size is known."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGINE = """#!/bin/sh
test "$1" = run || echo "$(basename "$0") $*" >>"$ENGINE_LOG"
case "$1" in
  info) test -z "$ENGINE_DEAD" ;;
  run) printf '%s' "$ENGINE_SIZE" ;;
  from) echo container-1 ;;
  build) test -z "$ENGINE_BROKEN" || exit 125 ;;
esac
"""


class Engines:
    """Programs that are called as docker, podman and buildah are, and what they were called with."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.log = folder / "log"
        for name in ("docker", "podman", "buildah", "wrapper"):
            (self.bin / name).write_text(ENGINE)
            (self.bin / name).chmod(0o755)
        self.size = {"total": 240_000_000, "torch": 0, "torch_version": ""}

    def images(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": f"{self.bin}:{os.environ['PATH']}", "ENGINE_LOG": str(self.log), **environment}
        environment["ENGINE_SIZE"] = json.dumps(self.size)
        command = [sys.executable, ROOT / "tools" / "images.py", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def engines(tmp_path: Path) -> Engines:
    return Engines(tmp_path)


def test_the_first_engine_that_works_builds_all_three(engines):
    done = engines.images("--tag", "t1", "--prefix", "registry.example.org/team/")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "registry.example.org/team/shoal-master:t1",
        "registry.example.org/team/shoal-parameter-server:t1",
        "registry.example.org/team/shoal-worker:t1",
    ]
    builds = [call for call in engines.calls() if call.startswith("docker build")]
    assert [call.split("--target ")[1].split()[0] for call in builds] == ["master", "parameter-server", "worker"]
    for name in ("VERSION=0", "REVISION=", "CREATED=20"):
        assert f"--build-arg {name}" in builds[0]


def test_a_client_without_its_engine_is_passed_over(engines):
    done = engines.images(ENGINE_DEAD="yes")
    assert done.returncode == 1
    assert (
        done.stderr == "error: none of docker, podman, buildah works here; install one, or name another by --builder\n"
    )


def test_a_command_of_ones_own_takes_the_arguments_of_buildah_build(engines):
    done = engines.images("worker", "--builder", f"{engines.bin}/wrapper build-image", "--build-arg", "CUDA=1")
    assert done.returncode == 0, done.stderr
    build, *others = engines.calls()
    assert build.startswith("wrapper build-image --build-arg VERSION=")
    assert "--build-arg CUDA=1 --file docker/Dockerfile --target worker --tag shoal-worker:" in build
    assert [call.split()[:2] for call in others] == [["buildah", "from"], ["buildah", "rm"]]


@pytest.mark.parametrize(
    ("size", "arguments", "code"),
    [
        ({"total": 250_000_000, "torch": 0, "torch_version": ""}, ["master"], 0),
        ({"total": 250_000_001, "torch": 0, "torch_version": ""}, ["master"], 1),
        ({"total": 850_000_000, "torch": 600_000_000, "torch_version": "2.13.0"}, ["worker"], 0),
        ({"total": 850_000_001, "torch": 600_000_000, "torch_version": "2.13.0"}, ["worker"], 1),
        ({"total": 990_000_000, "torch": 600_000_000, "torch_version": "2.13.0"}, ["parameter-server"], 1),
        (
            {"total": 990_000_000, "torch": 600_000_000, "torch_version": "2.13.0"},
            ["worker", "--build-arg", "EXTRAS=tables"],
            0,
        ),
    ],
)
def test_an_image_that_is_too_large_fails(engines, size, arguments, code):
    engines.size = size
    done = engines.images("--builder", "podman", *arguments)
    assert done.returncode == code, done.stderr
    assert ("250 may be" in done.stderr) == bool(code)
    assert f"{size['total'] / 1e6:.1f} MB" in done.stdout
    assert ("torch 2.13.0 600.0 MB" in done.stdout) == bool(size["torch"])


def test_a_build_that_fails_ends_it_with_one_line(engines):
    done = engines.images("--tag", "t1", ENGINE_BROKEN="yes")
    assert (done.returncode, done.stderr) == (1, "error: docker failed on shoal-master:t1: exit code 125\n")


def test_a_builder_that_does_not_exist_is_told(engines):
    done = engines.images("--builder", "/nowhere/wrapper build")
    assert (done.returncode, done.stderr) == (1, "error: /nowhere/wrapper: No such file or directory\n")


def test_a_target_that_does_not_exist_is_refused(engines):
    done = engines.images("workers")
    assert done.returncode == 2
    assert "no target workers; known: master, parameter-server, worker" in done.stderr


# -- docker/measure.py ------------------------------------------------------------------------------------------------


@pytest.fixture
def measure() -> ModuleType:
    spec: Any = importlib.util.spec_from_file_location("measure", ROOT / "docker" / "measure.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_files_are_counted_as_a_layer_holds_them(measure, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "folder" / "small").write_bytes(b"x")
    (tmp_path / "folder" / "large").write_bytes(b"x" * 1025)
    (tmp_path / "folder" / "again").hardlink_to(tmp_path / "folder" / "large")
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "large")
    assert sum(measure.sizes(tmp_path)) == 512 * (1 + 2 + 4 + 1 + 1)
    assert sum(measure.sizes(tmp_path / "folder" / "small")) == 1024


def test_torch_is_what_it_requires_too_and_nothing_else(measure):
    names = measure.requirements_of("torch")
    assert {"torch", "sympy", "mpmath", "networkx", "jinja2"} <= names
    assert not names & {"numpy", "pytest", "safetensors", "shoal"}
    parts = {path.name for path in measure.parts_of(names)}
    assert {"torch", "torchgen", "sympy", "typing_extensions.py"} <= parts


def test_an_extra_that_is_asked_for_is_followed(measure):
    names = measure.requirements_of("shoal")
    assert "greenlet" not in names, "that is of shoal[master], which nobody asked for here"
    assert "pydantic-core" in names
