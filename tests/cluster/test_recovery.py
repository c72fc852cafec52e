"""Parameter servers and the master are deleted and replaced while jobs train: no job is lost, no bit is another."""

from collections.abc import Callable
from typing import Any

import pytest

from shoal.core.errors import Unavailable
from shoal.sdk import Client, JobView
from tests.cluster.conftest import (
    MASTER,
    RELEASE,
    SERVERS,
    WORKERS,
    Release,
    Undisturbed,
    User,
    at_step,
    fashion_mnist,
    finished,
    master_pod,
    reasons_of,
    release_values,
)
from tests.cluster.kube import CHART, until
from tests.connected import Connected

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def snapshotted(name: str, **training: Any) -> dict[str, Any]:
    return fashion_mnist(name, **training) | {"snapshots": {"every_steps": 50}}


def has_snapshot(client: Client, job_id: str) -> int:
    """Waits for one that the job has gone on from; its step."""

    def look() -> int:
        job = client.get(job_id)
        assert not job.ended, "it was over before there was a snapshot"
        return next((s.step for s in client.snapshots(job_id) if s.current and s.step < job.step), 0)

    return until(look, "a snapshot")


def replaced(release: Release, selector: str, before: set[str]) -> bool:
    return not before & {pod["metadata"]["uid"] for pod in release.kube.pods(selector)}


def uids(release: Release, selector: str) -> set[str]:
    return {pod["metadata"]["uid"] for pod in release.kube.pods(selector)}


def restored(client: Client, job_id: str, times: int) -> JobView:
    def look() -> JobView | None:
        job = client.get(job_id)
        assert not job.ended, [f"{event.reason}: {event.message}" for event in job.events]
        return job if reasons_of(job).count("Restored") == times else None

    return until(look, f"the job goes on from a snapshot, {times} times")


def test_pods_of_parameter_servers_and_of_the_master_are_deleted(
    release: Release, user: User, connect: Callable[..., Connected], undisturbed: Undisturbed
) -> None:
    kube = release.kube
    release.scale(2)
    kube.ready(WORKERS, 2)
    connect()
    at_once = ("--grace-period=0", "--force")  # as if the node had taken the process with it
    with Client(user.contexts.read().current.address) as client:
        job_id = client.submit(snapshotted("servers-gone", epochs=2)).job_id
        at_step(client, job_id, 100)
        has_snapshot(client, job_id)
        kube.kubectl("delete", "pod", "shoal-ps-1", *at_once)
        first = restored(client, job_id, 1)
        at_step(client, job_id, first.step + 30)

        before = master_pod(kube)["metadata"]
        kube.kubectl("delete", "pod", before["name"], *at_once)
        kube.ready(MASTER, 1)
        assert master_pod(kube)["metadata"]["uid"] != before["uid"]
        still = client.get(job_id)
        assert (still.attempt, still.ended) == (2, False), "the master's end costs no attempt"

        has_snapshot(client, job_id)
        kube.kubectl("delete", "pod", "shoal-ps-0", "--wait=false")  # with its grace
        restored(client, job_id, 2)
        job = finished(client, job_id)
    assert job.attempt == 3
    assert job.failures == 0
    assert job.results is not None
    assert job.results.samples == 2 * 60_000
    assert job.results.weights_sha256 == undisturbed.sha256(epochs=2)


def test_a_rolling_restart_of_master_and_parameter_servers_by_an_upgrade_loses_nothing(
    release: Release, user: User, connect: Callable[..., Connected], undisturbed: Undisturbed
) -> None:
    kube = release.kube
    release.scale(2)
    kube.ready(WORKERS, 2)
    connect()
    with Client(user.contexts.read().current.address) as client:
        running = client.submit(snapshotted("upgraded", epochs=3)).job_id
        at_step(client, running, 100)
        has_snapshot(client, running)
        waiting = client.submit(snapshotted("waits", steps=200) | {"priority": -1}).job_id
        before = uids(release, MASTER) | uids(release, SERVERS)
        changed = "master.podAnnotations.rolled=yes,parameterServers.podAnnotations.rolled=yes"
        kube.helm("upgrade", RELEASE, str(CHART), *release_values(), "--set", changed)
        during = until(lambda: submitted(client, "during-the-upgrade"), "a job is taken during the upgrade")
        until(lambda: replaced(release, MASTER, before) and replaced(release, SERVERS, before), "all pods are new")
        assert not client.get(running).ended, "the job was over before the upgrade was"
        kube.ready(MASTER, 1)
        kube.ready(SERVERS, 2)
        jobs = {job_id: finished(client, job_id) for job_id in (running, waiting, during)}
        assert submitted(client, "during-the-upgrade") == during
    assert jobs[running].attempt > 1
    assert "Restored" in reasons_of(jobs[running])
    for job_id, length in ((running, {"epochs": 3}), (waiting, {"steps": 200}), (during, {"steps": 200})):
        results = jobs[job_id].results
        assert results is not None
        assert results.samples == (3 * 60_000 if job_id == running else 200 * 4 * 32)
        assert results.weights_sha256 == undisturbed.sha256(**length)


def submitted(client: Client, key: str) -> str | None:
    """Its id; None: nobody answers now."""
    try:
        return client.submit(snapshotted(key, steps=200), idempotency_key=key).job_id
    except Unavailable:
        return None
