"""What the processes load before they are of use."""

import pytest

from shoal.core.job import Phase
from shoal.local import Cluster

COMPILER = "torch._dynamo"


def test_neither_a_trainer_nor_a_parameter_server_imports_torchs_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of torch's functions do at their first call: another second, or two, and 70 MB for each process."""
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # each process tells on standard error what it imports
    spec = {
        "name": "quick",
        "model": {"type": "cnn", "dropout": 0.1},
        "training": {"world_size": 2, "batch_size": 8, "steps": 50, "clip_norm": 1.0},
        "snapshots": {"every_steps": 10},
    }
    with Cluster(workers=1, shards=1) as cluster, cluster.client() as client:
        job_id = client.submit(spec).job_id
        assert client.wait(job_id, timeout=100).phase is Phase.SUCCEEDED
        trainer = [line.text for line in client.logs(job_id)]
        server = cluster.log("ps-1").splitlines()
    for told in (trainer, server):
        imported = [line.rpartition("|")[2].strip() for line in told if line.startswith("import time:")]
        assert "torch.optim" in imported
        assert COMPILER not in imported
