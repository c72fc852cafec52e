"""What of the training rate is left when a process is killed every 30 s."""

import itertools
import time
from collections.abc import Iterator

from tests.benchmarks.recovery.clusters import Bench, spec_of, training, until
from tests.benchmarks.recovery.figures import Figure

PERIOD_SECONDS = 30.0
KILLS = 6
UNDISTURBED_SECONDS = 30.0
_STEPS = {"world_size": 8, "batch_size": 32, "steps": 100_000_000, "seed": 1}


def under_kills(_runs: int) -> Iterator[Figure]:
    """A worker and a shard by turns; what is killed starts again at once. Steps that are done again count once."""
    with training(spec=spec_of(training=_STEPS, snapshots={"every_seconds": 2})) as bench:
        alone = (_rate(bench, UNDISTURBED_SECONDS), "before")
        began, first = time.monotonic(), bench.job.step
        for role, number in zip(itertools.cycle(("worker", "shard")), range(KILLS), strict=False):
            _wait_until(began + (number + 0.5) * PERIOD_SECONDS)
            if role == "worker":
                bench.cluster.kill_worker(bench.cluster.workers[-1])
                bench.cluster.add_worker(wait=False)
            else:
                bench.cluster.kill_server("ps-2")
                bench.cluster.restart_server("ps-2", wait=False)
        _wait_until(began + KILLS * PERIOD_SECONDS)
        step = until(lambda: bench.job.step, "it does not come back")  # 0 while an attempt begins: that counts as lost
        disturbed = (step - first) / (time.monotonic() - began)
        bench.trains_on(*bench.cluster.workers)
        after = (_rate(bench, UNDISTURBED_SECONDS), "after")
    rates = ", ".join(f"{rate:.0f} steps/s {when}" for rate, when in (alone, after))
    ratio = disturbed / ((alone[0] + after[0]) / 2)
    detail = f"{disturbed:.0f} steps/s with {KILLS} kills; undisturbed {rates}"
    yield Figure(
        name=f"goodput with a kill per {PERIOD_SECONDS:.0f} s",
        values=[ratio],
        unit="",
        goal=0.8,
        at_least=True,
        detail=detail,
    )


def _rate(bench: Bench, seconds: float) -> float:
    began, first = time.monotonic(), bench.job.step
    _wait_until(began + seconds)
    return (bench.job.step - first) / (time.monotonic() - began)


def _wait_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
