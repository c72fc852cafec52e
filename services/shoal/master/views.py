"""What people see of a job: the stored noun with its history and, while it runs, how far it is."""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

from shoal.core.job import Event, Job
from shoal.master.scheduling.spread import Ranks
from shoal.master.store.base import Evaluation, Summary


@dataclass(frozen=True, kw_only=True, slots=True)
class JobView:
    job: Job
    reason: str  # the job's, or what a waiting one waits for
    message: str
    summary: Summary
    samples_per_second: float = 0.0
    ranks: Ranks = field(default_factory=dict)
    seconds_per_unit: Mapping[str, float] = field(default_factory=dict)
    evaluations: tuple[Evaluation, ...] = ()
    events: tuple[Event, ...] = ()
    losses: "array[float] | None" = None
