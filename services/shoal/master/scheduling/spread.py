"""Which worker hosts which ranks. Pure.

Ranks are spread in contiguous ranges, in proportion to measured speed. Where ranks lie changes when a job ends, never
a bit of what comes out, so every choice here is about time only: a step takes as long as its slowest worker, and each
tree block (`core/tree.py`) that a worker's range needs costs it one more push.
"""

import heapq
from collections.abc import Collection, Mapping
from dataclasses import dataclass

_ALIGNMENT_SLACK = 0.05  # a cut moves to a rounder number if no worker's time grows by more than this fraction
_MANY = 64  # newcomers at once: their places are not searched one by one any more

Ranks = Mapping[str, range]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hysteresis:
    """When ranks move for speed alone: if a step gets shorter by enough, and at most so often."""

    gain: float  # fraction of the step's time
    gain_seconds: float  # the same in seconds: below it, the exchange and the noise of measuring decide
    seconds: float  # between two moves


def spread(
    *, world_size: int, workers: Collection[str], seconds_per_unit: Mapping[str, float], current: Ranks
) -> Ranks:
    """Ranges that cover 0..world_size-1 exactly once, at least one rank for each worker.

    `seconds_per_unit` is 0 or missing where it is not known: those count as the mean of the known. Workers in `current`
    keep their order, and newcomers are put where the others keep the most of their ranks.
    """
    if not workers:
        return {}
    if len(set(workers)) > world_size:
        raise ValueError(f"{len(set(workers))} workers for {world_size} ranks")
    times = _times(workers, seconds_per_unit)
    counts = _counts(world_size, times)
    order = _order(times, counts, current)
    cuts = _cuts(world_size, [times[worker] for worker in order], [counts[worker] for worker in order])
    return {worker: range(cuts[index], cuts[index + 1]) for index, worker in enumerate(order)}


def respread(
    *,
    world_size: int,
    workers: Collection[str],
    seconds_per_unit: Mapping[str, float],
    current: Ranks,
    seconds_since_move: float,
    hysteresis: Hysteresis,
) -> Ranks:
    """`current` itself, unless the workers are others or moving ranks is worth it."""
    new = spread(world_size=world_size, workers=workers, seconds_per_unit=seconds_per_unit, current=current)
    if set(current) != set(workers) or sum(len(ranks) for ranks in current.values()) != world_size:
        return new
    if seconds_since_move < hysteresis.seconds:
        return current
    times = _times(workers, seconds_per_unit)
    now, then = step_seconds(current, times), step_seconds(new, times)
    pays = then <= (1 - hysteresis.gain) * now and now - then >= hysteresis.gain_seconds
    return new if pays else current


def step_seconds(ranks: Ranks, times: Mapping[str, float]) -> float:
    """The compute time of one step: that of its slowest worker."""
    return max((len(hosted) * times[worker] for worker, hosted in ranks.items()), default=0.0)


def _times(workers: Collection[str], seconds_per_unit: Mapping[str, float]) -> dict[str, float]:
    known = {worker: seconds_per_unit[worker] for worker in workers if seconds_per_unit.get(worker, 0.0) > 0}
    mean = sum(known.values()) / len(known) if known else 1.0
    return {worker: known.get(worker, mean) for worker in sorted(workers)}


def _counts(world_size: int, times: Mapping[str, float]) -> dict[str, int]:
    """Ranks per worker that make the slowest worker's time least: each rank goes where it ends first."""
    counts = dict.fromkeys(times, 1)
    ends = [(2 * seconds, worker) for worker, seconds in times.items()]
    heapq.heapify(ends)
    for _ in range(world_size - len(times)):
        _, worker = ends[0]
        counts[worker] += 1
        heapq.heapreplace(ends, ((counts[worker] + 1) * times[worker], worker))
    return counts


def _order(times: Mapping[str, float], counts: Mapping[str, int], current: Ranks) -> list[str]:
    order = sorted((worker for worker in times if worker in current), key=lambda worker: current[worker].start)
    newcomers = [worker for worker in times if worker not in current]
    if not order or len(newcomers) > _MANY:
        return order + newcomers
    for newcomer in newcomers:
        places = range(len(order), -1, -1)  # the end first, where nobody has to move up
        best = max(places, key=lambda place: _kept([*order[:place], newcomer, *order[place:]], counts, current))
        order.insert(best, newcomer)
    return order


def _kept(order: list[str], counts: Mapping[str, int], current: Ranks) -> int:
    """Ranks that stay where they are when the workers stand in this order."""
    kept = 0
    start = 0
    for worker in order:
        stop = start + counts[worker]
        if worker in current:
            kept += max(0, min(stop, current[worker].stop) - max(start, current[worker].start))
        start = stop
    return kept


def _cuts(world_size: int, times: list[float], counts: list[int]) -> list[int]:
    """The ranges' boundaries: at the counts, or at a rounder rank nearby, which makes fewer tree blocks."""
    limit = max(count * seconds for count, seconds in zip(counts, times, strict=True)) * (1 + _ALIGNMENT_SLACK)
    most = [max(count, int(min(limit / seconds, world_size))) for count, seconds in zip(counts, times, strict=True)]
    room = sum(most)
    cuts = [0]
    ideal = 0
    for index in range(len(counts) - 1):
        room -= most[index]
        ideal += counts[index]
        low = max(cuts[-1] + 1, world_size - room)
        high = min(cuts[-1] + most[index], world_size - (len(counts) - 1 - index))
        cuts.append(_roundest(low, high, ideal))
    cuts.append(world_size)
    return cuts


def _roundest(low: int, high: int, ideal: int) -> int:
    """The number in [low, high] with the most trailing zero bits; of several, the nearest to `ideal`."""
    bits = high.bit_length()
    while bits > 0:
        size = 1 << bits
        first = -(-low // size) * size
        if first <= high:
            last = high // size * size
            below = min(max(ideal // size * size, first), last)
            above = min(below + size, last)
            return below if abs(below - ideal) <= abs(above - ideal) else above
        bits -= 1
    return min(max(ideal, low), high)
