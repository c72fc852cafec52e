"""The test of `helm test`: trains a small model on the built-in digits and checks that the loss fell."""

import os
import statistics
import sys

from shoal.core.errors import ShoalError
from shoal.sdk import Client

WORLD_SIZE, SHARE = 2, 0.2  # the first and last fifth of the loss curve are compared

spec = {
    "name": "helm-test",
    "model": {"type": os.environ["TEST_MODEL"]},
    "data": {"source": "builtin://digits"},
    "training": {"world_size": WORLD_SIZE, "batch_size": 32, "epochs": 3, "seed": 0},
    "optimizer": {"name": "sgd", "learning_rate": 0.1},
    "resources": {"shards": 1},
}

try:
    with Client(os.environ["SHOAL_MASTER_ADDRESS"], retry_seconds=30) as client:
        job_id = client.submit(spec).job_id
        sys.stdout.write(f"job {job_id} submitted\n")
        try:
            client.wait(job_id, timeout=float(os.environ["TEST_TIMEOUT_SECONDS"]))
        except ShoalError:
            job = client.get(job_id)
            sys.stdout.write(f"job {job_id} is {job.phase}: {job.reason}: {job.message}\n")
            client.cancel(job_id)
            raise
        job = client.get(job_id, with_losses=True)
except ShoalError as error:
    sys.exit(f"error: {error}")

if not job.succeeded or job.results is None:
    sys.exit(f"error: job {job_id} ended as {job.phase}: {job.reason}: {job.message}")
few = max(1, int(len(job.losses) * SHARE))
before, after = statistics.mean(job.losses[:few]), statistics.mean(job.losses[-few:])
sys.stdout.write(
    f"job {job_id}: {len(job.losses)} steps, loss {before:.4f} -> {after:.4f}, accuracy {job.results.accuracy:.4f}\n"
)
if not after < before:
    sys.exit(f"error: the loss of job {job_id} did not fall")
