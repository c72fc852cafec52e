"""Workers come and go while a job trains on the cluster: the weights are those of one worker on one machine."""

import subprocess

import pytest

from shoal.sdk import Client
from tests.cluster.conftest import (
    POOL,
    SHOAL,
    WORKERS,
    Release,
    Undisturbed,
    at_step,
    finished,
    hosts,
    reasons_of,
    trains_on,
)
from tests.cluster.kube import SECONDS, CommandFailed, Kube, command, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

# Fills the container's memory through /dev/shm, where it belongs to no process, so that the kernel has to choose
# among the worker's own. Argument: `trainer`, stops when one is gone and gives the memory back; `everything`, does not.
_FILL = """
import os, sys
def trainers():
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if b"shoal.worker.trainer" in open(f"/proc/{pid}/cmdline", "rb").read():
                found.add(pid)
        except OSError:
            pass  # it has ended meanwhile
    return found
before = trainers()
with open("/dev/shm/fill", "wb") as file:
    while True:
        file.write(bytes(1 << 24))
        file.flush()
        if sys.argv[1] == "trainer" and before - trainers():
            break
os.unlink("/dev/shm/fill")
"""


def test_workers_scale_up_and_down_and_pods_and_nodes_go(
    release: Release, client: Client, undisturbed: Undisturbed
) -> None:
    kube = release.kube
    kube.ready(WORKERS, 1)
    job_id = release.submit(client, "comes-and-goes")
    at_step(client, job_id, 20)
    release.scale(3)
    trains_on(client, job_id, 3)
    release.scale(2)
    trains_on(client, job_id, 2)

    (gone, *_) = release.worker_pods()
    uid = kube.get("pod", gone)["metadata"]["uid"]
    kube.kubectl("delete", "pod", gone, "--wait=false")
    until(lambda: gone not in hosts(client, job_id), f"ranks move away from {gone}")
    trains_on(client, job_id, 2)
    assert kube.get("pod", gone)["metadata"]["uid"] != uid

    (evicted, *_) = release.worker_pods()
    node = kube.node_of(evicted)
    drain = ("kubectl", "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", f"--pod-selector={WORKERS}")
    command(*drain)
    try:
        until(lambda: evicted not in hosts(client, job_id) or kube.node_of(evicted) != node, "the drained pod moves")
    finally:
        command("kubectl", "uncordon", node)
    trains_on(client, job_id, 2)

    job = finished(client, job_id)
    assert job.attempt == 1
    reasons = reasons_of(job)
    assert {"WorkerJoined", "WorkerLeft", "PodDeleted", "PodEvicted"} <= set(reasons), reasons
    assert "WorkerLost" not in reasons, "preStop hands the ranks back before the worker ends"
    assert job.results is not None
    assert job.results.weights_sha256 == undisturbed.sha256()
    described = subprocess.run(
        [SHOAL, "--master", client.address, "describe", job_id],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    assert f"pod {gone} on " in described.stdout
    assert "EvictionByEvictionAPI" in described.stdout


def test_a_rolling_restart_of_the_workers_does_not_show(
    release: Release, client: Client, undisturbed: Undisturbed
) -> None:
    release.scale(2)
    release.kube.ready(WORKERS, 2)
    before = {pod["metadata"]["uid"] for pod in release.kube.pods(WORKERS)}
    job_id = release.submit(client, "restarted", epochs=2)
    at_step(client, job_id, 20)
    release.kube.kubectl("rollout", "restart", POOL)
    release.kube.kubectl("rollout", "status", POOL, f"--timeout={SECONDS:g}s")
    assert not client.get(job_id).ended, "the job was over before the restart was"
    job = finished(client, job_id)
    assert not before & {pod["metadata"]["uid"] for pod in release.kube.pods(WORKERS)}
    assert job.attempt == 1
    assert job.results is not None
    assert job.results.weights_sha256 == undisturbed.sha256(epochs=2)


def fill_memory(kube: Kube, pod: str, until_gone: str) -> bool:
    """Did the container live? If only the trainer was to go, it need not: with cgroups v2 a kubelet has all of a
    container's processes killed together, and with v1 the kernel may take a second one while the first one's memory
    is being freed."""
    try:
        kube.kubectl("exec", pod, "--", "python", "-c", _FILL, until_gone)
    except CommandFailed:
        return False
    return True


def test_workers_out_of_memory_do_not_show_but_are_told_as_such(
    release: Release, client: Client, undisturbed: Undisturbed
) -> None:
    kube = release.kube
    release.scale(2)
    kube.ready(WORKERS, 2)
    job_id = release.submit(client, "out-of-memory", epochs=2)
    trains_on(client, job_id, 2)
    at_step(client, job_id, 20)
    first, second = release.worker_pods()

    def told(reason: str, pod: str) -> str:
        def look() -> str | None:
            return next((e.message for e in client.get(job_id).events if e.reason == reason and pod in e.message), None)

        return until(look, f"{reason} of {pod}")

    for pod, victim in ((first, "trainer"), (second, "everything")):
        if fill_memory(kube, pod, victim):
            assert victim == "trainer"
            message = told("TrainerRestarted", pod)
            assert "the trainer was killed by the kernel: out of memory (the container's limit of" in message
        else:
            message = told("PodOOMKilled", pod)
            assert f"pod {pod} on " in message
            assert "its limit is 1536Mi" in message
            kube.kubectl("delete", "pod", pod)  # its /dev/shm outlives the container, and so does the lack of memory

    job = finished(client, job_id)
    assert job.attempt == 1
    assert job.results is not None
    assert job.results.weights_sha256 == undisturbed.sha256(epochs=2)
