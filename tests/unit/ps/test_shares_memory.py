"""What a server has no room for is refused before it takes the memory, and what is dropped makes room."""

from pathlib import Path

import pytest

from shoal.core.errors import Exhausted
from shoal.metrics.parameter_server import ParameterServerMetrics
from shoal.metrics.registry import new_registry
from shoal.ps.share import Share
from shoal.ps.shares import Shares
from shoal.ps.snapshot import Snapshots
from shoal.ps.targets.local import LocalFolder
from tests.shards import FACTS, spec_of

SPEC = spec_of(
    model={"type": "mlp", "hidden": [100]},
    training={"world_size": 1, "batch_size": 1, "steps": 10},
    optimizer={"name": "adam", "learning_rate": 0.1},
)


def shares_of(memory_bytes: int) -> Shares:
    metrics = ParameterServerMetrics(new_registry())
    snapshots = Snapshots(LocalFolder(Path("/nonexistent")), metrics=metrics)
    return Shares(snapshots=snapshots, metrics=metrics, memory_bytes=memory_bytes)


def made(shares: Shares, job_id: str) -> Share:
    share = shares.create(job_id=job_id, attempt=1, spec_json=SPEC.model_dump_json(), index=0, shards=1)
    share.register(FACTS)
    return share


def test_a_share_takes_two_versions_and_the_optimizers_state_and_room_for_that_is_enough() -> None:
    size = 2 * made(shares_of(0), "probe").weight_bytes  # Adam keeps as much again as the two versions
    shares = shares_of(size)
    made(shares, "first")
    with pytest.raises(Exhausted, match="ask for more shards"):
        made(shares, "second")
    shares.drop("first", "it has ended")
    shares.drop("second", "it has ended")
    made(shares, "third")
    with pytest.raises(Exhausted, match="are free on this parameter server"):
        made(shares_of(size - 1), "fourth")
