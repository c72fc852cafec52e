"""The chart as a dependency of another one."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.rendering import CHART, KUBERNETES, RELEASE, any_helm, helm, manifests, of_kind

DEPENDENCY = {"name": "shoal", "version": ">=0", "repository": f"file://{CHART}", "condition": "shoal.enabled"}


def parent(folder: Path, values: dict[str, Any], *dependencies: dict[str, Any]) -> Path:
    chart = folder / "parent"
    (chart / "templates").mkdir(parents=True)
    about = {"apiVersion": "v2", "name": "parent", "version": "1.0.0", "dependencies": list(dependencies)}
    (chart / "Chart.yaml").write_text(yaml.safe_dump(about))
    (chart / "values.yaml").write_text(yaml.safe_dump(values))
    return chart


@pytest.fixture(params=[3, 4], ids=["helm3", "helm4"])
def major(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def render(major: int, chart: Path, *arguments: str) -> list[dict[str, Any]]:
    built = helm(major, "dependency", "update", chart)
    assert built.returncode == 0, built.stderr
    done = helm(major, "template", RELEASE, chart, "--kube-version", KUBERNETES, *arguments)
    assert done.returncode == 0, done.stderr
    return manifests(done.stdout)


def test_it_works_with_what_parents_have(major: int, tmp_path: Path) -> None:
    values = {
        "tags": {"training": True},
        "global": {"imageRegistry": "mirror.example.com", "of": {"the": "parent"}},
        "shoal": {"enabled": True, "workers": {"pools": [{"name": "cpu"}]}},
    }
    documents = render(major, parent(tmp_path, values, {**DEPENDENCY, "tags": ["training"]}))
    names = {document["metadata"]["name"] for document in of_kind(tuple(documents), "Deployment", "StatefulSet")}
    assert names == {f"{RELEASE}-shoal-master", f"{RELEASE}-shoal-ps", f"{RELEASE}-shoal-worker-cpu"}
    deployment = of_kind(tuple(documents), "Deployment")[0]
    image = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image.startswith("mirror.example.com/shoal-master:")


def test_the_condition_switches_it_off(major: int, tmp_path: Path) -> None:
    assert render(major, parent(tmp_path, {"shoal": {"enabled": False}}, DEPENDENCY)) == []


def test_two_of_them_do_not_meet(major: int, tmp_path: Path) -> None:
    first, second = ({**DEPENDENCY, "alias": alias, "condition": f"{alias}.enabled"} for alias in ("red", "blue"))
    documents = tuple(render(major, parent(tmp_path, {"red": {}, "blue": {}}, first, second)))
    names = [(document["kind"], document["metadata"]["name"]) for document in documents]
    assert len(set(names)) == len(names)
    selectors = [d["spec"]["selector"]["matchLabels"] for d in of_kind(documents, "Deployment", "StatefulSet")]
    assert len(selectors) == 6
    assert not [(a, b) for a in selectors for b in selectors if a is not b and a.items() <= b.items()]


def test_ids_are_left_to_the_platform(major: int, tmp_path: Path) -> None:
    ids = {"runAsUser": "", "runAsGroup": "", "fsGroup": ""}
    documents = tuple(render(major, parent(tmp_path, {"shoal": {"podSecurityContext": ids}}, DEPENDENCY)))
    context = of_kind(documents, "Deployment")[0]["spec"]["template"]["spec"]["securityContext"]
    assert context.keys() == {"runAsNonRoot", "seccompProfile", "fsGroupChangePolicy"}


def test_a_wrong_value_is_named_with_the_chart(tmp_path: Path) -> None:
    chart = parent(tmp_path, {"shoal": {"replicas": 3}}, DEPENDENCY)
    major = any_helm()
    assert helm(major, "dependency", "update", chart).returncode == 0
    done = helm(major, "template", RELEASE, chart, "--kube-version", KUBERNETES)
    assert done.returncode != 0
    assert "shoal:\n- at '': additional properties 'replicas' not allowed" in done.stderr
