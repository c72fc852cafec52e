"""The life of a release: `helm test` trains, an upgrade keeps jobs and weights. See test_uninstall.py for its end."""

import hashlib
from pathlib import Path

import pytest

from shoal.sdk import Client
from tests.cluster.conftest import (
    MASTER,
    RELEASE,
    SERVERS,
    WORKERS,
    Release,
    Undisturbed,
    finished,
    release_values,
)
from tests.cluster.kube import CHART, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def test_helm_test_trains(release: Release) -> None:
    release.scale(1)
    release.kube.ready(WORKERS, 1)
    told = release.kube.helm("test", RELEASE, "--timeout", "5m")
    assert "Phase:          Succeeded" in told


def test_an_upgrade_keeps_jobs_and_weights(
    release: Release, undisturbed: Undisturbed, client: Client, tmp_path: Path
) -> None:
    release.scale(1)
    release.kube.ready(WORKERS, 1)
    job_id = release.submit(client, "kept", epochs=2)
    finished(client, job_id)
    before = {pod["metadata"]["uid"] for pod in [*release.kube.pods(MASTER), *release.kube.pods(SERVERS)]}
    changed = "master.podAnnotations.changed=yes,parameterServers.podAnnotations.changed=yes"
    release.kube.helm("upgrade", RELEASE, str(CHART), *release_values(), "--set", changed)
    until(
        lambda: not before & {pod["metadata"]["uid"] for pod in release.kube.pods("app.kubernetes.io/part-of=shoal")},
        "every pod is replaced",
    )
    release.kube.ready(SERVERS, 2)
    release.kube.ready(MASTER, 1)
    with release.kube.forwarded("service/shoal-master", 7070) as address, Client(address) as again:
        assert again.get(job_id).succeeded
        until(lambda: len([s for s in again.parameter_servers() if s.state == "alive"]) == 2, "the servers are back")
        saved = again.download(job_id, tmp_path / "model")
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert saved.weights_sha256 == hashlib.sha256(weights).hexdigest() == undisturbed.sha256(epochs=2)
