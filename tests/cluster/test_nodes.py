"""A whole node is cut off, or loses its power, while a job trains.

Only the cluster's owner can do that, so the owner's commands are asked for: SHOAL_TEST_NODE_CUT and
SHOAL_TEST_NODE_REJOIN, SHOAL_TEST_NODE_KILL and SHOAL_TEST_NODE_START, each with {node} in it.
"""

from collections.abc import Iterator

import pytest

from shoal.sdk import Client
from tests.cluster.conftest import WORKERS, Release, Undisturbed, at_step, finished, reasons_of, trains_on
from tests.cluster.kube import command, node_command, nodes, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture
def far_worker(release: Release) -> Iterator[tuple[str, str]]:
    """A worker on another node than the first, where master and parameter servers are; its pod and node."""
    if len(nodes()) < 2:
        pytest.skip("the cluster has one node only: none can be lost")
    release.scale(2)
    release.kube.ready(WORKERS, 2)
    first = nodes()[0]
    placed = {pod: release.kube.node_of(pod) for pod in release.worker_pods()}
    far = [(pod, node) for pod, node in placed.items() if node != first]
    assert far, f"the pool is not spread over nodes: {placed}"
    yield far[0]
    release.kube.ready(WORKERS, 2)


@pytest.mark.parametrize(
    ("breaks", "mends"),
    [
        ("SHOAL_TEST_NODE_CUT", "SHOAL_TEST_NODE_REJOIN"),
        ("SHOAL_TEST_NODE_KILL", "SHOAL_TEST_NODE_START"),
    ],
)
def test_a_node_that_is_gone_does_not_show(
    release: Release,
    client: Client,
    undisturbed: Undisturbed,
    far_worker: tuple[str, str],
    breaks: str,
    mends: str,
) -> None:
    pod, node = far_worker
    to_break, to_mend = node_command(breaks, node), node_command(mends, node)
    if to_break is None or to_mend is None:
        pytest.skip(f"{breaks} and {mends} are not set: no node was taken away")
    job_id = release.submit(client, "node-gone", epochs=2)
    trains_on(client, job_id, 2)
    at_step(client, job_id, 20)
    command("sh", "-c", to_break)
    try:
        until(lambda: "WorkerLost" in reasons_of(client.get(job_id)), f"{pod} on {node} is missed")
        job = finished(client, job_id)
    finally:
        command("sh", "-c", to_mend)
    assert job.attempt == 1
    assert job.results is not None
    assert job.results.weights_sha256 == undisturbed.sha256(epochs=2)
