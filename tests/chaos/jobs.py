"""The jobs that run meanwhile, and what each must come to."""

from dataclasses import dataclass
from typing import Any

from shoal.core.job import Phase
from shoal.local import Cluster
from shoal.sdk import Client, JobView

SECONDS = 900.0  # for one job, whatever happens, on a busy machine

_MLP = {"type": "mlp", "hidden": [128]}
_MOMENTUM = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}
KINDS: dict[str, dict[str, Any]] = {
    "momentum": {"model": _MLP, "optimizer": _MOMENTUM},
    "clipped": {
        "model": _MLP,
        "optimizer": _MOMENTUM,
        "training": {"clip_norm": 0.5},
        "schedule": {"name": "cosine", "warmup_steps": 50},
        "resources": {"transport": "grpc"},
    },
    "adamw": {"model": _MLP, "optimizer": {"name": "adamw", "learning_rate": 0.003}},
    "muon": {"model": {"type": "mlp", "hidden": [64]}, "optimizer": {"name": "muon", "learning_rate": 0.01}},
    "batch-norm": {
        "model": {"type": "cnn", "channels": [4, 8], "hidden": 32, "input_shape": [1, 8, 8]},
        "optimizer": {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9},
        "training": {"world_size": 2, "batch_size": 4},
        "part_of_steps": 0.4,  # they are slower
    },
}
BRIEF = "brief"  # what is submitted while a master is killed
_BRIEF = {
    "name": BRIEF,
    "model": {"type": "logistic"},
    "training": {"world_size": 1, "batch_size": 16, "steps": 20, "seed": 2},
    "optimizer": {"name": "rmsprop", "learning_rate": 0.01},
    "resources": {"shards": 1},
}


def spec_of(kind: str, *, steps: int, **resources: object) -> dict[str, Any]:
    if kind == BRIEF:
        return _BRIEF
    case = dict(KINDS[kind])
    steps = round(case.pop("part_of_steps", 1) * steps)
    training = {"world_size": 4, "batch_size": 8, "steps": steps, "seed": 11, "evaluate_every": 100}
    return {
        **case,
        "name": kind,
        "training": training | case.get("training", {}),
        "resources": {"shards": 2, "max_workers": 2} | case.get("resources", {}) | resources,
        "snapshots": {"every_steps": 50},
    }


def undisturbed(*, steps: int) -> dict[str, JobView]:
    """Every kind on one worker and one shard, without a fault."""
    twice = ("--max-concurrent-jobs", "2", "--warm-trainers", "2")
    with Cluster(workers=1, shards=1, worker_options=twice) as cluster, cluster.client() as client:
        ids = {
            kind: client.submit(spec_of(kind, steps=steps, max_workers=1, shards=1)).job_id for kind in (*KINDS, BRIEF)
        }
        for job_id in ids.values():
            assert client.wait(job_id, timeout=SECONDS).phase is Phase.SUCCEEDED
        return {kind: client.get(job_id, with_losses=True) for kind, job_id in ids.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Ran:
    """A job that was submitted, with a key, and has ended."""

    kind: str
    key: str
    job: JobView


def run_job(client: Client, kind: str, key: str, *, steps: int) -> Ran:
    """Submits, and again with the same key when it has been acknowledged and when it has ended."""
    spec = spec_of(kind, steps=steps)
    job_id = client.submit(spec, idempotency_key=key).job_id
    assert client.submit(spec, idempotency_key=key).job_id == job_id
    client.wait(job_id, timeout=SECONDS)
    again = client.submit(spec, idempotency_key=key)
    assert (again.job_id, again.created) == (job_id, False)
    return Ran(kind=kind, key=key, job=client.get(job_id, with_losses=True))
