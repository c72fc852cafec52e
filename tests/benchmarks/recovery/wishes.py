"""Pause and cancel: how long until the worker has room for another job."""

import time
from collections.abc import Iterator

from tests.benchmarks.recovery.clusters import Bench, spec_of, training, until
from tests.benchmarks.recovery.figures import Figure

_SLOW = {"world_size": 8, "batch_size": 256, "steps": 100_000_000, "seed": 1}
_WIDE = {"type": "mlp", "hidden": [2048, 512]}


def pause_and_cancel(runs: int) -> Iterator[Figure]:
    """From the call to the trainer's end, in steps of the job."""
    paused: list[float] = []
    cancelled: list[float] = []
    spec = spec_of(model=_WIDE, training=_SLOW)
    with training(workers=1, spec=spec) as bench:
        step_seconds = _seconds_per_step(bench)
        for _ in range(runs):
            paused.append(_freed(bench, "pause") / step_seconds)
            bench.client.resume(bench.job_id)
            bench.trains_on("worker-1")
        for _ in range(runs):
            cancelled.append(_freed(bench, "cancel") / step_seconds)
            job_id = bench.client.submit(spec).job_id
            bench = Bench(cluster=bench.cluster, client=bench.client, job_id=job_id)
            until(lambda bench=bench: bench.hosts and bench.version() > 0, "the next job does not begin")
    detail = f"a step is {step_seconds * 1e3:.0f} ms"
    yield Figure(name="pause, until the worker is free", values=paused, unit=" steps", goal=1, detail=detail)
    yield Figure(name="cancel, until the worker is free", values=cancelled, unit=" steps", goal=1, detail=detail)


def _freed(bench: Bench, wish: str) -> float:
    trainer = bench.trainer_of("worker-1")
    began = time.monotonic()
    (bench.client.pause if wish == "pause" else bench.client.cancel)(bench.job_id)
    until(lambda: bench.jobs_of("worker-1") == 0 and not trainer.is_running(), "the worker is not freed")
    return time.monotonic() - began


def _seconds_per_step(bench: Bench) -> float:
    began, version = time.monotonic(), bench.version()
    bench.goes_on(by=10)
    return (time.monotonic() - began) / (bench.version() - version)
