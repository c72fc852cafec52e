"""skaffold.yaml: which images it builds, and that the chart takes them."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
IMAGES = {"shoal-master", "shoal-parameter-server", "shoal-worker"}
PROFILES = ["", "kind", "minikube", "gpu"]

needs_skaffold = pytest.mark.skipif(
    not (shutil.which("skaffold") and shutil.which("helm")),
    reason="skaffold and helm are not on PATH: NOBODY CHECKS HERE THAT skaffold.yaml WORKS",
)


def skaffold(home: Path, *arguments: str, profile: str, project: Path = ROOT) -> str:
    """Standard output of one command that needs neither a cluster nor an engine. Fails the test if it fails."""
    home.mkdir(exist_ok=True)
    environment = {**os.environ, "HOME": str(home), "KUBECONFIG": os.devnull, "SKAFFOLD_UPDATE_CHECK": "false"}
    environment["PATH"] = f"{helm_of_today(home)}:{environment['PATH']}"
    command = ["skaffold", *arguments, *(["--profile", profile] if profile else [])]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def helm_of_today(home: Path) -> Path:
    """A folder with a `helm` that renders for a Kubernetes of today, where no cluster is asked which one it is.

    A helm that was not built by its makers takes every cluster for Kubernetes 1.20, which the chart refuses.
    """
    folder = home / "bin"
    folder.mkdir(exist_ok=True)
    real = shutil.which("helm")
    wrapper = folder / "helm"
    wrapper.write_text(
        f'#!/bin/sh\ncase " $* " in *" template "*) exec {real} "$@" --kube-version 1.34 ;; esac\nexec {real} "$@"\n'
    )
    wrapper.chmod(0o755)
    return folder


@needs_skaffold
@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_one_that_skaffold_takes(tmp_path, profile):
    config = yaml.safe_load(skaffold(tmp_path / "home", "diagnose", "--yaml-only", profile=profile))
    artifacts = {artifact["image"]: artifact["docker"] for artifact in config["build"]["artifacts"]}
    assert artifacts.keys() == IMAGES
    assert {f"shoal-{docker['target']}" for docker in artifacts.values()} == IMAGES
    asked = artifacts["shoal-worker"]["buildArgs"].get("CUDA")
    assert asked == ("1" if profile == "gpu" else None)


@needs_skaffold
@pytest.mark.parametrize("profile", PROFILES)
def test_the_chart_is_rendered_with_the_images_that_are_built(tmp_path, profile):
    tagged, plain = tmp_path / "tagged.yaml", tmp_path / "plain.yaml"
    for source, into in (("tag", tagged), ("none", plain)):
        options = ("--offline=true", f"--digest-source={source}", f"--output={into}")
        skaffold(tmp_path / "home", "render", *options, profile=profile)
    chart_tag = yaml.safe_load((ROOT / "helm/shoal/Chart.yaml").read_text())["appVersion"]
    assert images_in(plain) == {f"{name}:{chart_tag}" for name in IMAGES}
    assert {image.partition(":")[0] for image in images_in(tagged)} == IMAGES
    assert images_in(tagged) != images_in(plain)
    assert ("nvidia.com/gpu: 1" in plain.read_text()) == (profile in ("", "gpu"))


@needs_skaffold
def test_a_commit_whose_hash_looks_like_a_number_is_a_tag(tmp_path):
    project, home = tmp_path / "project", tmp_path / "home"
    project.mkdir()
    for name in ("skaffold.yaml", "docker", "helm"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, project / name)
    git(project, "init", "--quiet")
    git(project, "add", "--all")
    tree = git(project, "write-tree")
    hashes = (git(project, "commit-tree", tree, "-m", f"try {number}") for number in range(2000))
    number = next(made for made in hashes if made[:7].isdigit())  # each has a chance of one in 27
    git(project, "reset", "--quiet", "--hard", number)
    rendered = tmp_path / "rendered.yaml"
    skaffold(
        home, "render", "--offline=true", "--digest-source=tag", f"--output={rendered}", profile="", project=project
    )
    assert images_in(rendered) == {f"{name}:git-{number[:7]}" for name in IMAGES}


def git(project: Path, *arguments: str) -> str:
    who = ("-c", "user.name=tests", "-c", "user.email=tests@example.com")
    done = subprocess.run(["git", *who, *arguments], cwd=project, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def images_in(manifests: Path) -> set[str]:
    """Of every container."""
    return set(re.findall(r"^ *image: \"?([^\"\n]+)", manifests.read_text(), flags=re.MULTILINE))
