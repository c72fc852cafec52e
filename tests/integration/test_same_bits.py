"""The promise: the weights do not depend on workers, shards or transport, and are those of a plain PyTorch loop."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.core.job import Phase
from shoal.jobspec.reading import validate_spec
from shoal.jobspec.spec import TrainingConfig
from shoal.local import Cluster
from shoal.models.folder import read_folder, weights_sha256
from shoal.sdk.views import JobView
from tests.reference.plain_loop import train_plainly

# Everything at once: BatchNorm, dropout, accumulation, clipping, a warm-up and uneven ranks (7 of them, and 1,438
# samples in steps of 56).
EVERYTHING: dict[str, Any] = {
    "name": "everything",
    "model": {"type": "cnn", "channels": [8, 16], "hidden": 32, "dropout": 0.3},
    "training": {
        "world_size": 7,
        "batch_size": 4,
        "accumulation": 2,
        "steps": 30,
        "seed": 3,
        "clip_norm": 1.0,
        "evaluate_every": 10,
    },
    "optimizer": {"name": "adamw", "learning_rate": 0.01},
    "schedule": {"name": "cosine", "warmup_steps": 5},
}


def run(cluster: Cluster, document: dict[str, Any], **resources: object) -> JobView:
    document = copy.deepcopy(document)
    document["resources"] = resources
    with cluster.client() as client:
        job = client.wait(client.submit(document).job_id, timeout=100)
        assert job.phase is Phase.SUCCEEDED, job.results
        return client.get(job.job_id, with_losses=True)


def sha256_of(job: JobView) -> str:
    assert job.results is not None
    return job.results.weights_sha256


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> JobView:
    return run(cluster, EVERYTHING, min_workers=1, max_workers=1, shards=1)


@pytest.mark.parametrize("transport", ["auto", "grpc"])
@pytest.mark.parametrize(("workers", "shards"), [(2, 1), (1, 3), (3, 2)])
def test_workers_shards_and_transport_do_not_show(
    cluster: Cluster, undisturbed: JobView, workers: int, shards: int, transport: str
) -> None:
    job = run(cluster, EVERYTHING, min_workers=workers, max_workers=workers, shards=shards, transport=transport)
    assert sha256_of(job) == sha256_of(undisturbed)
    assert job.losses == undisturbed.losses
    assert job.evaluations == undisturbed.evaluations
    assert job.results is not None
    assert undisturbed.results is not None
    assert job.results.loss == undisturbed.results.loss


SGD = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.001}


@pytest.mark.parametrize(
    ("model", "optimizer", "shards"),
    [
        ({"type": "mlp", "hidden": [100]}, SGD, 1),
        ({"type": "mlp", "hidden": [100]}, SGD, 3),
        ({"type": "logistic"}, {"name": "rmsprop", "learning_rate": 0.01}, 1),
        ({"type": "cnn", "channels": [8, 16], "hidden": 64}, {"name": "adamw", "learning_rate": 0.01}, 2),
        ({"type": "mlp", "hidden": [100, 50]}, {"name": "adafactor", "learning_rate": 0.05}, 3),
        ({"type": "mlp", "hidden": [100, 50]}, {"name": "muon", "learning_rate": 0.02}, 2),
    ],
    ids=str,
)
def test_with_one_rank_the_weights_are_those_of_a_plain_loop(
    cluster: Cluster, tmp_path: Path, model: dict[str, Any], optimizer: dict[str, Any], shards: int
) -> None:
    document = {
        "model": model,
        "training": {"world_size": 1, "batch_size": 32, "accumulation": 2, "steps": 40, "seed": 5},
        "optimizer": optimizer,
        "schedule": {"name": "step", "step_size": 15, "gamma": 0.5, "warmup_steps": 4},
    }
    job = run(cluster, document, shards=shards)
    plain = train_plainly(validate_spec(document).with_defaults(TrainingConfig()))
    with cluster.client() as client:
        client.download(job.job_id, tmp_path / "model")
    _, saved = read_folder(tmp_path / "model")
    assert saved.keys() == plain.weights.keys()
    for name, weights in plain.weights.items():
        assert np.array_equal(saved[name], weights), name
    assert sha256_of(job) == weights_sha256(plain.weights)
    assert list(job.losses) == plain.losses
