"""The interface of the store, and the nouns that go in and out beside `core.job`.

A `Database` says which master leads; its `jobs(epoch)` is the `JobStore` of the master that leads in that epoch.
"""

import abc
from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from shoal.core.errors import Deposed, Stale
from shoal.core.job import Event, Job, Phase, Results, ShardAddress, ShardFile

LIVE = frozenset(phase for phase in Phase if not phase.ended)


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Which worker has which ranks of the current attempt, and where its shards are."""

    ranks: Mapping[str, range] = field(default_factory=dict)
    shards: tuple[ShardAddress, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Of the weights at one version, on the held-out split."""

    version: int
    accuracy: float
    loss: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """How far a job came."""

    step: int = 0
    total_steps: int = 0  # 0: not known
    samples: int = 0
    loss: float = 0.0  # of the last committed step


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The snapshots of all of a job's shards at one step: a state that the job can go on from."""

    job_id: str
    attempt: int  # that wrote it
    step: int
    files: tuple[ShardFile, ...]  # of the shards that hold anything
    at: float  # Unix seconds
    damaged: str = ""  # not empty: a file was found to be not what had been written, and which


@dataclass(frozen=True, kw_only=True, slots=True)
class LogLine:
    at: float  # Unix seconds
    worker_id: str
    text: str
    sequence: int = 0  # 1, 2, ... within the job; given by the store


@dataclass(frozen=True, kw_only=True, slots=True)
class Transition:
    """One change of a job with its fence. It happens whole, with its event, or not at all.

    The fence: the job's attempt is `attempt` (None: whichever), its phase is one of `expected`, and with `only_open`
    no results have been stored yet.
    """

    name: str  # which of the changes in `transitions.py`
    job_id: str
    attempt: int | None
    expected: frozenset[Phase]
    to: Phase
    reason: str
    message: str
    at: float  # Unix seconds
    only_open: bool = False
    new_attempt: bool = False  # attempt + 1
    servers: tuple[str, ...] | None = None  # None: as they are
    started: bool = False  # sets started_at unless an earlier attempt did
    results: Results | None = None  # None: as they are
    clear_results: bool = False
    files: tuple[ShardFile, ...] | None = None
    paused: bool | None = None  # None: as it is
    failed: bool = False  # counts one failure of the job's own
    reopen: bool = False  # the job has not ended after all, and its failures are forgotten
    manifests_kept: int | None = None  # only so many, the newest that are whole; None: all
    manifests_up_to: int | None = None  # only those at this step or an earlier one; None: all
    summary: Summary | None = None
    losses: "array[float] | None" = None

    def event(self, *, attempt: int) -> Event:
        """`attempt`: the job's, afterwards."""
        return Event(at=self.at, phase=self.to, reason=self.reason, message=self.message, attempt=attempt)

    def check(self, job: Job) -> None:
        """Raises Stale, saying which part of the fence does not hold."""
        if self.attempt is not None and job.attempt != self.attempt:
            raise Stale(f"job {job.job_id}: attempt {self.attempt} is not the current one, {job.attempt}")
        if job.phase not in self.expected:
            raise Stale(f"job {job.job_id} is {job.phase}: no change to {self.to}")
        if self.only_open and job.results is not None:
            raise Stale(f"job {job.job_id}: results are stored already")
        raise Stale(f"job {job.job_id} has changed meanwhile")


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """`created` is false when the idempotency key had been used for the same spec before."""

    job: Job
    created: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much of a job's history is kept: the newest."""

    log_lines: int
    events: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Leader:
    """Which master leads, as the database sees it now."""

    epoch: int  # +1 with each master that takes the lead; 0: none has yet
    incarnation: str  # '': none leads
    host: str
    seconds_left: float  # of its lease, by the database's clock; from 0 down another master may take the lead
    attended: bool  # its session with the database is open; if not, it is dead or has lost its connection

    def __str__(self) -> str:
        return f"master {self.incarnation[:8]} on {self.host}"


def deposed(epoch: int, leader: Leader) -> Deposed:
    now = f"{leader} leads" if leader.incarnation else "another master has led since"
    return Deposed(f"this master led in epoch {epoch} and may not write any more: {now}, in epoch {leader.epoch}")


class JobStore(abc.ABC):
    """The jobs, in the hands of the master of one epoch.

    Every method that writes returns only after the write is durable, as far as the implementation goes, and changes
    nothing but raises Deposed once a newer epoch has begun. What takes effect, does so before a newer epoch begins.
    Raises NotFound for a job that does not exist; Unavailable when the store cannot be used: nothing has changed then.
    """

    @abc.abstractmethod
    async def submit(self, job: Job, *, spec_hash: str) -> Submission:
        """Stores a new job, or finds the one with the same idempotency key ('' is no key).

        Raises AlreadyExists if that key stands for another spec.
        """

    @abc.abstractmethod
    async def get(self, job_id: str) -> Job: ...

    @abc.abstractmethod
    async def jobs(self, *, phases: Collection[Phase] = (), limit: int = 0) -> tuple[Job, ...]:
        """Newest first; of all phases and without a limit unless given."""

    @abc.abstractmethod
    async def apply(self, transition: Transition) -> Job:
        """The job afterwards. Raises Stale, and changes nothing, when the fence does not hold."""

    @abc.abstractmethod
    async def place(self, job_id: str, *, attempt: int, placement: Placement, event: Event | None) -> None:
        """Stores the placement of a live job's attempt. Raises Stale for another attempt or an ended job."""

    @abc.abstractmethod
    async def placements(self) -> dict[str, Placement]:
        """Of live jobs, as far as they have one."""

    @abc.abstractmethod
    async def add_event(self, job_id: str, event: Event) -> None:
        """Of what happened around a job without changing it."""

    @abc.abstractmethod
    async def events(self, job_id: str) -> tuple[Event, ...]:
        """Oldest first."""

    @abc.abstractmethod
    async def save_evaluations(self, job_id: str, *, attempt: int, evaluations: Sequence[Evaluation]) -> None:
        """Makes the job's evaluations exactly these. Raises Stale for another attempt."""

    @abc.abstractmethod
    async def evaluations(self, job_id: str) -> tuple[Evaluation, ...]: ...

    @abc.abstractmethod
    async def append_logs(self, job_id: str, lines: Sequence[LogLine]) -> None: ...

    @abc.abstractmethod
    async def logs(self, job_id: str, *, after: int, limit: int) -> tuple[LogLine, ...]:
        """At most `limit` lines with a sequence number above `after`, in order."""

    @abc.abstractmethod
    async def summaries(self, job_ids: Collection[str]) -> dict[str, Summary]:
        """Of those jobs that have ended."""

    @abc.abstractmethod
    async def losses(self, job_id: str) -> "array[float]":
        """One per committed step of an ended job; empty for a live one."""

    @abc.abstractmethod
    async def add_manifest(self, manifest: Manifest, *, kept: int) -> None:
        """Makes it the job's current one, and forgets all but the newest `kept` that are whole.

        Raises Stale, and changes nothing, for another attempt or an ended job.
        """

    @abc.abstractmethod
    async def manifests(self, job_id: str) -> tuple[Manifest, ...]:
        """Newest step first. The first one that is not damaged is the current one."""

    @abc.abstractmethod
    async def condemn_manifest(self, manifest: Manifest, *, attempt: int, event: Event) -> None:
        """Stores that it is damaged, as `event` says. Raises Stale unless `attempt` is the job's."""

    @abc.abstractmethod
    async def forget_manifests(self, *, ended_before: float) -> tuple[Job, ...]:
        """Of jobs that ended before that time (Unix seconds); returns the jobs that had some."""

    @abc.abstractmethod
    async def prune(self, *, ended_kept: int) -> tuple[Job, ...]:
        """Forgets all but the newest ended jobs; returns those that went."""


class Database(abc.ABC):
    """What masters share, or what one has for itself. Raises Unavailable when it cannot be asked."""

    @abc.abstractmethod
    async def look(self) -> Leader: ...

    @abc.abstractmethod
    async def take(
        self, seen: Leader, *, incarnation: str, host: str, lease_seconds: float, unattended: bool = False
    ) -> int:
        """Begins the epoch after the one that was seen, and returns it. From then on no earlier master can write.

        Raises Stale if another master was quicker, or if the lease runs on; `unattended` takes it nevertheless.
        """

    @abc.abstractmethod
    async def renew(self, epoch: int, *, lease_seconds: float) -> None:
        """Raises Deposed if a newer epoch has begun."""

    @abc.abstractmethod
    async def resign(self, epoch: int) -> None:
        """Lets another master take the lead at once. Nothing happens if a newer epoch has begun."""

    @abc.abstractmethod
    def jobs(self, epoch: int) -> JobStore: ...

    @abc.abstractmethod
    async def close(self) -> None: ...
