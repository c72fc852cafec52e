"""The last of the cluster tests, by its name: what an uninstall leaves."""

import pytest

from tests.cluster.conftest import RELEASE, Release
from tests.cluster.kube import command, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def test_an_uninstall_leaves_claims_and_nothing_else(release: Release) -> None:
    release.kube.helm("uninstall", RELEASE, "--wait")
    kinds = [
        kind
        for kind in command("kubectl", "api-resources", "--namespaced", "--verbs=list", "--output=name").split()
        if not kind.startswith(("events", "podmetrics"))
    ]

    def left() -> set[str]:
        found = release.kube.kubectl("get", ",".join(kinds), "--output=name", "--ignore-not-found").split()
        of_every_namespace = {"configmap/kube-root-ca.crt", "serviceaccount/default"}
        return set(found) - of_every_namespace

    claims = {
        "persistentvolumeclaim/data-shoal-ps-0",
        "persistentvolumeclaim/data-shoal-ps-1",
        "persistentvolumeclaim/datasets",
        "persistentvolumeclaim/shoal-master",
    }
    until(lambda: left() <= claims, "pods end")
    assert left() == claims
