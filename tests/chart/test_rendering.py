"""The chart is accepted: by Helm 3 and 4, by the schemas of Kubernetes, by its own suites."""

import shutil
import subprocess
import tarfile
from pathlib import Path

import kubernetes_validate
import pytest

from tests.chart.rendering import CHART, KUBERNETES, VALUES, any_helm, helm, objects, program, rendered

# The oldest that Chart.yaml allows, two between, the newest that the schemas have.
VERSIONS = ("1.27", "1.30", "1.34", kubernetes_validate.latest_version())
NOT_KUBERNETES = {"monitoring.coreos.com/v1"}  # the Prometheus operator's: no schema


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("major", [3, 4])
def test_helm_finds_nothing_to_complain_of(major: int, values: str) -> None:
    done = helm(major, "lint", "--strict", CHART, "--kube-version", KUBERNETES, "--values", VALUES[values])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout


@pytest.mark.parametrize("values", VALUES)
def test_both_helms_make_the_same_objects(values: str) -> None:
    if program(3) is None or program(4) is None:
        pytest.skip("Helm 3 and 4 are not both on PATH: CHART NOT COMPARED between them")
    assert rendered(3, values) == rendered(4, values)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("values", VALUES)
def test_every_object_fits_the_schema_of_kubernetes(values: str, version: str) -> None:
    checked = 0
    for document in objects(values):
        if document["apiVersion"] in NOT_KUBERNETES:
            continue
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            name = f"{document['kind']}/{document['metadata']['name']}"
            where = ".".join(map(str, error.path))
            raise AssertionError(f"{name}: {where}: {error.message}") from error
        checked += 1
    assert checked >= 10


def test_an_object_of_the_chart_is_refused_by_the_schema_once_it_is_wrong() -> None:
    deployment = next(document for document in objects("default") if document["kind"] == "Deployment")
    wrong = {**deployment, "spec": {**deployment["spec"], "replicates": 1}}
    with pytest.raises(kubernetes_validate.ValidationError, match="replicates"):
        kubernetes_validate.validate(wrong, "1.34", strict=True)


def test_the_suites_of_helm_unittest_pass() -> None:
    command = _unittest()
    done = subprocess.run([*command, "--strict", str(CHART)], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Charts:      1 passed" in done.stdout


def _unittest() -> list[str]:
    """helm-unittest, by itself or as Helm's plugin. Skips the test where there is neither."""
    if shutil.which("untt"):
        return ["untt"]
    for name in ("helm", "helm3", "helm4"):
        if shutil.which(name):
            plugins = subprocess.run(
                [name, "plugin", "list"], capture_output=True, text=True, timeout=60, check=False
            ).stdout
            if any(line.startswith("unittest") for line in plugins.splitlines()):
                return [name, "unittest"]
    pytest.skip("helm-unittest is on PATH neither as untt nor as a plugin of Helm: THE CHART'S SUITES ARE NOT RUN")


def test_a_packaged_chart_has_what_it_needs_and_no_tests(tmp_path: Path) -> None:
    done = helm(any_helm(), "package", CHART, "--destination", tmp_path)
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(tmp_path.glob("shoal-*.tgz"))) as archive:
        names = set(archive.getnames())
    assert {"shoal/files/train.py", "shoal/templates/tests/train.yaml", "shoal/values.schema.json"} <= names
    assert not {name for name in names if name.startswith(("shoal/tests/", "shoal/ci/"))}
