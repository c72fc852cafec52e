"""The program of `helm test`, against a cluster of processes on this machine."""

import os
import re
import subprocess
import sys

from shoal.local import Cluster
from tests.chart.rendering import CHART

PROGRAM = (CHART / "files" / "train.py").read_text()


def train(address: str, *, timeout_seconds: float, model: str = "logistic") -> subprocess.CompletedProcess[str]:
    variables = {
        "SHOAL_MASTER_ADDRESS": address,
        "TEST_MODEL": model,
        "TEST_TIMEOUT_SECONDS": str(timeout_seconds),
    }
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],  # as the pod does
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_it_trains_and_sees_the_loss_fall(cluster: Cluster) -> None:
    done = train(cluster.address, timeout_seconds=60)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"job (\S+): (\d+) steps, loss (\S+) -> (\S+), accuracy (\S+)\n", done.stdout)
    assert found, done.stdout
    assert float(found[4]) < float(found[3])
    with cluster.client() as client:
        job = client.get(found[1], with_losses=True)
    assert len(job.losses) == int(found[2])
    assert job.results is not None
    assert f"{job.results.accuracy:.4f}" == found[5]


def test_it_says_what_the_job_was_doing_when_its_time_is_over(cluster: Cluster) -> None:
    done = train(cluster.address, timeout_seconds=0.01)
    assert done.returncode == 1
    assert re.search(r"job \S+ is (PENDING|STARTING|RUNNING): ", done.stdout), done.stdout
    assert re.fullmatch(r"error: job \S+ has not ended after 0.01 s\n", done.stderr), done.stderr


def test_it_says_what_the_master_says(cluster: Cluster) -> None:
    done = train(cluster.address, timeout_seconds=10, model="perceptron")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "model.type" in done.stderr
    assert done.stderr.count("\n") == 1
