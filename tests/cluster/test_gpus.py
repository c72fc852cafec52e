"""A worker that asks for a GPU waits until a node has one."""

import json
import uuid
from collections.abc import Iterator

import pytest

from tests.cluster.conftest import RELEASE, Release, release_values
from tests.cluster.kube import CHART, command, nodes, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

_POD = "shoal-worker-gpu-0"


@pytest.fixture
def resource(release: Release) -> Iterator[str]:
    """A kind of GPU that no node has: the release gets a second pool whose pod asks for one."""
    name = f"shoal.test/gpu-{uuid.uuid4().hex[:6]}"
    pools = [{"name": "cpu"}, {"name": "gpu", "gpu": {"count": 1, "resourceName": name}}]
    release.kube.helm(
        "upgrade", RELEASE, str(CHART), *release_values(), "--set-json", f"workers.pools={json.dumps(pools)}"
    )
    yield name
    release.kube.helm("upgrade", RELEASE, str(CHART), *release_values())
    until(lambda: _POD not in release.worker_pods(), "the pool is removed")


def test_a_worker_that_asks_for_a_gpu_waits_for_a_node_that_has_one(release: Release, resource: str) -> None:
    def placement() -> str:
        conditions = release.kube.get("pod", _POD)["status"].get("conditions", [])
        return next((c.get("message", "") for c in conditions if c["type"] == "PodScheduled"), "")

    until(lambda: _POD in release.worker_pods() and f"Insufficient {resource}" in placement(), "the pod waits")
    node = nodes()[-1]
    path = "/status/capacity/" + resource.replace("~", "~0").replace("/", "~1")
    advertise = [{"op": "add", "path": path, "value": "1"}]
    patch = ("kubectl", "patch", "node", node, "--subresource=status", "--type=json", "--patch")
    command(*patch, json.dumps(advertise))
    try:
        release.kube.kubectl("wait", "--for=condition=Ready", f"pod/{_POD}", "--timeout=120s")
        assert release.kube.node_of(_POD) == node
    finally:
        command(*patch, json.dumps([{"op": "remove", "path": path}]))
