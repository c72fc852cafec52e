"""How long a step of a shard is held up by the copy for a snapshot, against a plain memcpy of the same bytes."""

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from shoal.core.facts import DatasetFacts
from shoal.core.tree import Block
from shoal.jobspec.spec import JobSpec
from shoal.ps.share import Share
from tests.benchmarks.recovery.clusters import spec_of, until
from tests.benchmarks.recovery.faults import BIG
from tests.benchmarks.recovery.figures import Figure
from tests.unit.ps.by_hand import ByHand

_STALL = "shoal_ps_snapshot_stall_seconds_sum"
_FACTS = DatasetFacts(train_samples=64, heldout_samples=8, input_shape=(64,), classes=10, fingerprint="bench")


def of_snapshots(runs: int) -> Iterator[Figure]:
    torch.set_num_threads(1)  # as a parameter server does
    training = {"world_size": 1, "batch_size": 1, "steps": 1_000_000}
    job = ByHand(JobSpec.model_validate(spec_of(model=BIG, training=training)), _FACTS)
    (share,) = job.shares
    gradient = job.flat({layer.name: torch.full((layer.elements,), 1e-6) for layer in job.layout.layers})
    ratios: list[float] = []
    memcpys: list[float] = []
    _step(job, gradient)  # there is momentum from now on
    elements = share.length + sum(tensor.numel() for state in share._weights._states for tensor in state.values())
    source, target = torch.ones(elements), torch.zeros(elements)
    for _ in range(runs):
        before = job.registries[0].get_sample_value(_STALL) or 0.0
        copying = threading.Thread(target=_capture, args=(share, share.version + 1))
        copying.start()
        until(lambda: share._due is not None, "the share does not know of the copy")
        plain = _seconds_of(lambda: target.copy_(source))
        _step(job, gradient)
        plain = (plain + _seconds_of(lambda: target.copy_(source))) / 2  # just before, and just after
        copying.join()
        stalled = (job.registries[0].get_sample_value(_STALL) or 0.0) - before
        ratios.append(stalled / plain)
        memcpys.append(plain)
    detail = f"{4 * elements / 1e6:.0f} MB, a memcpy takes {1e3 * sorted(memcpys)[len(memcpys) // 2]:.0f} ms"
    yield Figure(name="a snapshot's stall / a memcpy", values=ratios, unit="", goal=1.5, detail=detail)


def _step(job: ByHand, gradient: "np.ndarray[tuple[int], np.dtype[np.float32]]") -> None:
    job.push(gradient, step=job.shares[0].version, block=Block(start=0, size=1), loss=0.1)
    job.sessions[0].slots.clear()  # it keeps every gradient


def _capture(share: Share, version: int) -> None:
    with share.snapshot_turn(lambda: False):
        share.capture_at(version, attempt=1, gone=lambda: False)


def _seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
