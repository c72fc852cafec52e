"""The chart as Helm renders it, once for each program and values file."""

import functools
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "shoal"
KUBERNETES = "1.34.0"  # to render for; Helm's own guess depends on how it was built
RELEASE, NAMESPACE = "vision", "ml"
_SECONDS = 60

VALUES = {
    **{path.name.removesuffix("-values.yaml"): path for path in sorted(CHART.glob("ci/*-values.yaml"))},
    **{f"deploy-{path.parent.name}": path for path in sorted(ROOT.glob("deploy/*/values.yaml"))},
}
WORKLOADS = ("Deployment", "StatefulSet")
ROLES = {"master": "master", "parameter-server": "ps", "worker": "worker"}  # component, and the settings' section

Manifest = dict[str, Any]


@functools.cache
def program(major: int) -> str | None:
    """The name of a Helm of that major version on PATH."""
    for name in (f"helm{major}", "helm"):
        if shutil.which(name):
            told = subprocess.run([name, "version"], capture_output=True, text=True, timeout=_SECONDS, check=True)
            if re.search(rf'Version:"v{major}\.', told.stdout):
                return name
    return None


def helm(major: int, *arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs it. Skips the test, with the reason, where it is not installed."""
    name = program(major)
    if name is None:
        pytest.skip(f"Helm {major} is not on PATH (as helm or helm{major}): CHART NOT TESTED with it")
    return subprocess.run(
        [name, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=_SECONDS, check=False
    )


def any_helm() -> int:
    """The major version of a Helm that is there, for tests that need only one. Skips the test where there is none."""
    for major in (3, 4):
        if program(major):
            return major
    pytest.skip("no Helm is on PATH: CHART NOT TESTED")


def template(major: int, *arguments: str | Path, chart: Path = CHART, release: str = RELEASE) -> str:
    done = helm(major, "template", release, chart, "--namespace", NAMESPACE, "--kube-version", KUBERNETES, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(*arguments: str, chart: Path = CHART) -> str:
    """What Helm says of values that it does not take."""
    done = helm(any_helm(), "template", RELEASE, chart, "--kube-version", KUBERNETES, *arguments)
    assert done.returncode != 0
    return done.stderr


def manifests(text: str) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(text) if document]


@functools.cache
def rendered(major: int, values: str) -> tuple[Manifest, ...]:
    """The objects of one values file; not to be changed by a test."""
    return tuple(manifests(template(major, "--values", VALUES[values])))


def objects(values: str) -> tuple[Manifest, ...]:
    """With whichever Helm there is."""
    return rendered(any_helm(), values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pod:
    """A pod that the chart makes, by itself or from a workload's template."""

    owner: str  # kind/name
    metadata: dict[str, Any]
    spec: dict[str, Any]

    @property
    def component(self) -> str:
        return str(self.metadata["labels"]["app.kubernetes.io/component"])

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec["containers"], *self.spec.get("initContainers", [])]

    def matches(self, selector: dict[str, Any]) -> bool:
        """A selector of `matchLabels`; those of the chart have nothing else."""
        return selector["matchLabels"].items() <= self.metadata["labels"].items()


def pods(documents: tuple[Manifest, ...]) -> Iterator[Pod]:
    for document in documents:
        owner = f"{document['kind']}/{document['metadata']['name']}"
        if document["kind"] in WORKLOADS:
            pod = document["spec"]["template"]
            yield Pod(owner=owner, metadata=pod["metadata"], spec=pod["spec"])
        elif document["kind"] == "Pod":
            yield Pod(owner=owner, metadata=document["metadata"], spec=document["spec"])


def of_kind(documents: tuple[Manifest, ...], *kinds: str) -> list[Manifest]:
    return [document for document in documents if document["kind"] in kinds]
