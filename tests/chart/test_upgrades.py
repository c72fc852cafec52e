"""What an upgrade may change, and what must stay: Kubernetes refuses changes of some fields, and a change of any
field of a pod restarts it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.rendering import (
    CHART,
    WORKLOADS,
    Manifest,
    any_helm,
    manifests,
    of_kind,
    template,
)

# The rest of a StatefulSet's spec is fixed.
CHANGEABLE = {
    *("replicas", "template", "updateStrategy", "persistentVolumeClaimRetentionPolicy"),
    *("ordinals", "minReadySeconds", "revisionHistoryLimit"),
}
# Every value but what is documented as fixed: names, and the claims of the parameter servers.
CHANGES = {
    "commonLabels": {"team": "vision"},
    "commonAnnotations": {"owner": "vision"},
    "image": {"registry": "other.example.com", "tag": "v9"},
    "config": {"worker": {"log_level": "debug"}},
    "master": {"podLabels": {"a": "b"}, "store": {"existingSecret": {"name": "database"}}, "strategy": "RollingUpdate"},
    "parameterServers": {
        "replicas": 5,
        "podLabels": {"a": "b"},
        "persistence": {"retention": {"whenScaled": "Delete"}},
        "serviceAccount": {"name": "other"},
    },
    "workers": {"defaults": {"podLabels": {"a": "b"}, "updateStrategy": {"type": "OnDelete"}}},
}


def render(*arguments: str | Path, chart: Path = CHART) -> tuple[Manifest, ...]:
    return tuple(manifests(template(any_helm(), *arguments, chart=chart)))


@pytest.fixture
def next_chart(tmp_path: Path) -> Path:
    """The same chart in a later version, of the same version of Shoal."""
    chart = tmp_path / "shoal"
    shutil.copytree(CHART, chart)
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    (chart / "Chart.yaml").write_text(yaml.safe_dump(about | {"version": "9.9.9"}))
    return chart


def templates(documents: tuple[Manifest, ...]) -> dict[str, Any]:
    return {document["metadata"]["name"]: document["spec"]["template"] for document in of_kind(documents, *WORKLOADS)}


def test_fixed_fields_of_statefulsets_stay(next_chart: Path, tmp_path: Path) -> None:
    changes = tmp_path / "changes.yaml"
    changes.write_text(yaml.safe_dump(CHANGES))
    before, after = (
        {document["metadata"]["name"]: document["spec"] for document in of_kind(documents, "StatefulSet")}
        for documents in (render(), render("--values", changes, chart=next_chart))
    )
    assert before.keys() == after.keys() == {"vision-shoal-ps", "vision-shoal-worker-gpu"}
    for name, spec in before.items():
        fixed = {field: value for field, value in spec.items() if field not in CHANGEABLE}
        assert {"selector", "serviceName", "podManagementPolicy"} <= fixed.keys()
        assert fixed == {field: value for field, value in after[name].items() if field not in CHANGEABLE}
        assert spec["template"] != after[name]["template"]


def test_the_selector_of_the_deployment_stays(next_chart: Path, tmp_path: Path) -> None:
    changes = tmp_path / "changes.yaml"
    changes.write_text(yaml.safe_dump(CHANGES))
    before, after = (
        of_kind(documents, "Deployment")[0]["spec"]["selector"]
        for documents in (render(), render("--values", changes, chart=next_chart))
    )
    assert before == after


def test_the_claim_of_the_master_stays(next_chart: Path) -> None:
    before, after = (of_kind(d, "PersistentVolumeClaim")[0] for d in (render(), render(chart=next_chart)))
    assert before["spec"] == after["spec"]
    assert before["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_a_new_chart_alone_restarts_nothing(next_chart: Path) -> None:
    assert templates(render()) == templates(render(chart=next_chart))


@pytest.mark.parametrize(
    ("change", "restarted"),
    [
        ("config.master.lease_seconds=7", {"vision-shoal-master"}),
        ("config.ps.max_streams=7", {"vision-shoal-ps"}),
        ("config.worker.poll_seconds=7", {"vision-shoal-worker-gpu"}),
        ("master.service.annotations.a=b", set()),
        ("networkPolicy.enabled=false", set()),
        ("parameterServers.replicas=3", set()),
        ("workers.defaults.podDisruptionBudget.enabled=false", set()),
        ("monitoring.podMonitor.enabled=true", set()),
        ("test.enabled=false", set()),
    ],
)
def test_a_change_restarts_the_pods_that_it_is_for(change: str, restarted: set[str]) -> None:
    before, after = templates(render()), templates(render("--set", change))
    assert {name for name in before if before[name] != after[name]} == restarted
