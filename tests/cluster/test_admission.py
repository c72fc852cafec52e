"""The API server takes the chart's pods under the restricted Pod Security Standard, and only as they are; and its
ServiceAccounts may what the golden files say."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.admission import (
    LABELS,
    VALUES,
    apply_accounts,
    mutations,
    objects_are_taken,
    pods_of,
    refusals,
    rendered,
    rights,
)
from tests.cluster.kube import Kube, command, until

pytestmark = pytest.mark.cluster

GOLDEN = Path(__file__).with_name("golden")
RELEASE = "shoal"


@pytest.fixture(scope="module")
def space() -> Iterator[Kube]:
    """A namespace that enforces the restricted standard, and has nothing in it."""
    assert os.environ.get("KUBECONFIG"), "KUBECONFIG names the cluster to test on"
    kube = Kube(namespace=f"shoal-admission-{uuid.uuid4().hex[:6]}")
    command("kubectl", "create", "namespace", kube.namespace)
    try:
        command("kubectl", "label", "namespace", kube.namespace, *LABELS)
        kube.kubectl("wait", "--for=create", "serviceaccount/default", "--timeout=60s")
        yield kube
    finally:
        command("kubectl", "delete", "namespace", kube.namespace, "--wait=false")


@pytest.mark.parametrize("values", VALUES)
def test_every_object_is_taken_without_a_warning(space: Kube, values: str) -> None:
    documents = rendered(VALUES[values], release=RELEASE, namespace=space.namespace)
    assert objects_are_taken(space, documents) == ""


@pytest.mark.parametrize("values", VALUES)
def test_every_pod_is_admitted(space: Kube, values: str) -> None:
    pods = list(pods_of(rendered(VALUES[values], release=RELEASE, namespace=space.namespace)))
    assert len(pods) >= 3
    assert refusals(space, pods) == {}


@pytest.mark.parametrize("values", VALUES)
def test_no_pod_is_admitted_without_any_one_of_its_hardening_fields(space: Kube, values: str) -> None:
    pods = pods_of(rendered(VALUES[values], release=RELEASE, namespace=space.namespace))
    tried = [mutation for pod in pods for mutation in mutations(pod)]
    assert len(tried) >= 4 * 3
    refused = refusals(space, [mutation.pod for mutation in tried])
    for mutation in tried:
        name = mutation.pod["metadata"]["name"]
        assert name in refused, f"{name} is admitted without {mutation.field}"
        assert "violates PodSecurity" in refused[name]
        assert mutation.told in refused[name]


def test_service_accounts_may_what_the_golden_files_say(space: Kube) -> None:
    accounts = apply_accounts(space, rendered(VALUES["default"], release=RELEASE, namespace=space.namespace))
    assert accounts == sorted(path.stem for path in GOLDEN.glob("*.txt"))
    for account in accounts:
        golden = (GOLDEN / f"{account}.txt").read_text()
        # The authorizer learns of a new Role within a moment.
        until(lambda account=account, golden=golden: rights(space, account) == golden, f"{account} may {golden}")
        assert rights(space, account) == golden
