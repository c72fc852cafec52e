"""Many seeds, over several cores, and what is said about them."""

import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.simulation.scenario import KINDS, Outcome, plan_of, simulation

EVENTS_SHOWN = 40
SEEDS_FOR_EVERY_KIND = 500  # in so many, every kind of fault has happened
_BATCH = 25  # seeds of one task of a core


@dataclass(kw_only=True)
class Report:
    """What a run did."""

    seeds: int = 0
    steps: int = 0
    simulated_seconds: float = 0.0
    seconds: float = 0.0
    injected: Counter[str] = field(default_factory=Counter)
    planned: Counter[str] = field(default_factory=Counter)
    failed: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.steps += outcome.steps
        self.simulated_seconds += outcome.simulated_seconds
        self.injected += outcome.injected
        self.planned += outcome.planned
        if outcome.violation is not None:
            self.failed.append(outcome)

    @property
    def missing(self) -> list[str]:
        """Kinds of faults that happened less often than planned, or never where they must have."""
        few = [kind for kind, times in self.planned.items() if self.injected[kind] < times]
        never = [kind for kind in KINDS if not self.injected[kind]] if self.seeds >= SEEDS_FOR_EVERY_KIND else []
        return sorted({*few, *never}) if not self.failed else []

    def lines(self) -> Iterator[str]:
        yield (
            f"{self.seeds} seeds, {self.steps} steps, {self.simulated_seconds:.0f} simulated seconds"
            f" in {self.seconds:.1f} s ({self.seeds / max(self.seconds, 0.001):.1f} seeds/s)"
        )
        yield f"{sum(self.injected.values())} faults: " + ", ".join(
            f"{times} {kind}" for kind, times in sorted(self.injected.items())
        )
        for outcome in self.failed[:5]:
            yield from story(outcome)
        if self.failed:
            yield f"FAILED: {len(self.failed)} seeds: {', '.join(str(outcome.seed) for outcome in self.failed[:50])}"
        if self.missing:
            yield f"FAILED: fewer faults than planned: {', '.join(self.missing)}"


def story(outcome: Outcome, *, events: int = EVENTS_SHOWN) -> Iterator[str]:
    """Of a seed that failed."""
    assert outcome.violation is not None
    oracle, what = outcome.violation
    yield f"seed {outcome.seed}: {oracle}: {what}"
    yield from (f"  {event}" for event in outcome.events[-events:])
    yield f"  again: make simulate SEEDS=1 FIRST={outcome.seed}"


def run(*, first: int, seeds: int, cores: int = 2, stop_at_failure: bool = False) -> Report:
    """Seeds `first` to `first + seeds - 1`; with `stop_at_failure` no further batch begins after a failure."""
    report = Report()
    began = time.perf_counter()
    batches = [(start, min(_BATCH, first + seeds - start)) for start in range(first, first + seeds, _BATCH)]
    if cores == 1 or len(batches) == 1:
        for batch in batches:
            for outcome in _run_batch(batch):
                report.add(outcome)
            if report.failed and stop_at_failure:
                break
    else:
        with multiprocessing.get_context("spawn").Pool(cores) as pool:
            for outcomes in pool.imap(_run_batch, batches):
                for outcome in outcomes:
                    report.add(outcome)
                if report.failed and stop_at_failure:
                    break
    report.seconds = time.perf_counter() - began
    return report


def _run_batch(batch: tuple[int, int]) -> list[Outcome]:
    first, count = batch
    outcomes = []
    with simulation() as one:
        for seed in range(first, first + count):
            outcome = one.run(plan_of(seed))
            if outcome.violation is None:
                outcome.events = []
            outcomes.append(outcome)
    return outcomes
