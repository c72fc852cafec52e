"""How long a user waits: `python -m tests.cluster.timings`, KUBECONFIG given, images on the nodes.

Two figures of a release with one worker: from `helm install` to the first committed step of a job that was submitted
as soon as the master answered, and from `submit` to the first step with workers that are ready. Digits as
examples/digits.yaml has them. Prints one line each; the goals are 60 s and 3 s.
"""

import time
import uuid

from shoal.core.errors import Unavailable
from shoal.sdk import Client
from shoal.sdk.client import read_spec
from tests.cluster.conftest import MASTER, MASTER_PORT, RELEASE, WORKERS, image_values
from tests.cluster.kube import CHART, ROOT, Kube, command, until

_SUBMITS = 5


def main() -> None:
    kube = Kube(namespace=f"shoal-timings-{uuid.uuid4().hex[:6]}")
    command("kubectl", "create", "namespace", kube.namespace)
    try:
        began = time.monotonic()
        kube.helm("install", RELEASE, str(CHART), "--values", str(ROOT / "deploy/kind/values.yaml"), *image_values())
        kube.ready(MASTER, 1)
        with kube.forwarded("service/shoal-master", MASTER_PORT) as address, Client(address) as client:
            first_step(client)
            print(f"helm install to the first step: {time.monotonic() - began:.1f} s (goal 60)")
            kube.ready(WORKERS, 2)
            waits = sorted(first_step(client) for _ in range(_SUBMITS))
            print(
                f"submit to the first step, workers ready, {_SUBMITS} times:"
                f" median {waits[_SUBMITS // 2]:.2f} s, longest {waits[-1]:.2f} s (goal 3)"
            )
    finally:
        command("kubectl", "delete", "namespace", kube.namespace, "--wait=false")


def first_step(client: Client) -> float:
    """Seconds from submit to the first committed step; the job then trains to its end."""
    began = time.monotonic()
    job_id = client.submit(read_spec(ROOT / "examples" / "digits.yaml")).job_id
    job = client.get(job_id)
    for job in client.watch(job_id, timeout=120):
        if job.step:
            break
    seconds = time.monotonic() - began
    until(lambda: answers(client, job_id), "the job ends")
    return seconds


def answers(client: Client, job_id: str) -> bool:
    try:
        return client.get(job_id).ended
    except Unavailable:
        return False


if __name__ == "__main__":
    main()
