"""The store of a master that forgets at exit: for tests, for a cluster on one machine, and as the interface's model."""

from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from shoal.core.errors import AlreadyExists, NotFound, Stale
from shoal.core.job import Event, Job, Phase
from shoal.master.store.base import (
    Database,
    Evaluation,
    JobStore,
    Leader,
    Limits,
    LogLine,
    Manifest,
    Placement,
    Submission,
    Summary,
    Transition,
    deposed,
)


@dataclass(kw_only=True, slots=True)
class _Row:
    job: Job
    spec_hash: str
    placement: Placement | None = None
    events: list[Event] = field(default_factory=list)
    evaluations: tuple[Evaluation, ...] = ()
    logs: list[LogLine] = field(default_factory=list)
    log_sequence: int = 0
    summary: Summary | None = None
    losses: "array[float]" = field(default_factory=lambda: array("d"))
    manifests: tuple[Manifest, ...] = ()  # newest step first


class MemoryDatabase(Database):
    """One master's own, so whoever takes the lead gets it, and leases do not run out."""

    def __init__(self, *, limits: Limits) -> None:
        self.limits = limits
        self.rows: dict[str, _Row] = {}
        self.by_key: dict[str, str] = {}
        self._leader = Leader(epoch=0, incarnation="", host="", seconds_left=0.0, attended=False)

    async def look(self) -> Leader:
        return self._leader

    async def take(
        self,
        seen: Leader,
        *,
        incarnation: str,
        host: str,
        lease_seconds: float,  # noqa: ARG002  (there are no leases here)
        unattended: bool = False,  # noqa: ARG002
    ) -> int:
        if seen.epoch != self._leader.epoch:
            raise Stale(f"{self._leader} was quicker: it leads in epoch {self._leader.epoch}")
        self._leader = replace(self._leader, epoch=seen.epoch + 1, incarnation=incarnation, host=host)
        return self._leader.epoch

    async def renew(self, epoch: int, *, lease_seconds: float) -> None:  # noqa: ARG002
        self.check(epoch)

    async def resign(self, epoch: int) -> None:
        if epoch == self._leader.epoch:
            self._leader = replace(self._leader, incarnation="", host="")

    def jobs(self, epoch: int) -> JobStore:
        return MemoryJobStore(database=self, epoch=epoch)

    def check(self, epoch: int) -> None:
        """Raises Deposed if a newer epoch has begun."""
        if epoch != self._leader.epoch:
            raise deposed(epoch, self._leader)

    async def close(self) -> None:
        """Nothing is open."""


class MemoryJobStore(JobStore):
    """No method gives up control between reading and writing, so each is atomic in its event loop."""

    def __init__(self, *, database: MemoryDatabase, epoch: int) -> None:
        self._database = database
        self._epoch = epoch
        self._limits = database.limits
        self._rows = database.rows
        self._by_key = database.by_key

    async def submit(self, job: Job, *, spec_hash: str) -> Submission:
        self._database.check(self._epoch)
        known = self._by_key.get(job.idempotency_key) if job.idempotency_key else None
        if known is not None:
            row = self._rows[known]
            if row.spec_hash != spec_hash:
                raise AlreadyExists(
                    f"idempotency key '{job.idempotency_key}' was used for another spec (job {known}); choose a new key"
                )
            return Submission(job=row.job, created=False)
        if job.job_id in self._rows:
            raise AlreadyExists(f"job {job.job_id} exists already")
        row = _Row(job=job, spec_hash=spec_hash)
        row.events.append(Event(at=job.submitted_at, phase=job.phase, reason=job.reason, message=job.message))
        self._rows[job.job_id] = row
        if job.idempotency_key:
            self._by_key[job.idempotency_key] = job.job_id
        return Submission(job=job, created=True)

    async def get(self, job_id: str) -> Job:
        return self._row(job_id).job

    async def jobs(self, *, phases: Collection[Phase] = (), limit: int = 0) -> tuple[Job, ...]:
        found = [row.job for row in self._rows.values() if not phases or row.job.phase in phases]
        found.sort(key=lambda job: (job.submitted_at, job.job_id), reverse=True)
        return tuple(found[:limit] if limit else found)

    async def apply(self, transition: Transition) -> Job:
        self._database.check(self._epoch)
        row = self._row(transition.job_id)
        job = row.job
        fits = transition.attempt is None or job.attempt == transition.attempt
        closed = transition.only_open and job.results is not None
        if not fits or closed or job.phase not in transition.expected:
            transition.check(job)
        row.job = replace(
            job,
            phase=transition.to,
            reason=transition.reason,
            message=transition.message,
            attempt=job.attempt + 1 if transition.new_attempt else job.attempt,
            servers=job.servers if transition.servers is None else transition.servers,
            started_at=transition.at if transition.started and job.started_at is None else job.started_at,
            finished_at=transition.at if transition.to.ended else None if transition.reopen else job.finished_at,
            failures=0 if transition.reopen else job.failures + transition.failed,
            results=None if transition.clear_results else transition.results or job.results,
            files=job.files if transition.files is None else transition.files,
            paused=job.paused if transition.paused is None else transition.paused,
        )
        if transition.new_attempt or transition.to.ended:
            row.placement = None
        if transition.manifests_kept is not None:
            row.manifests = _newest_whole(row.manifests, transition.manifests_kept)
        if transition.manifests_up_to is not None:
            row.manifests = tuple(entry for entry in row.manifests if entry.step <= transition.manifests_up_to)
        row.summary = transition.summary or row.summary
        row.losses = transition.losses if transition.losses is not None else row.losses
        self._add_event(row, transition.event(attempt=row.job.attempt))
        return row.job

    async def place(self, job_id: str, *, attempt: int, placement: Placement, event: Event | None) -> None:
        self._database.check(self._epoch)
        row = self._row(job_id)
        if row.job.attempt != attempt or row.job.phase.ended:
            raise Stale(f"job {job_id}: attempt {attempt} is not running")
        row.placement = placement
        if event is not None:
            self._add_event(row, event)

    async def placements(self) -> dict[str, Placement]:
        return {
            job_id: row.placement
            for job_id, row in self._rows.items()
            if row.placement is not None and not row.job.phase.ended
        }

    async def add_event(self, job_id: str, event: Event) -> None:
        self._database.check(self._epoch)
        self._add_event(self._row(job_id), event)

    async def events(self, job_id: str) -> tuple[Event, ...]:
        return tuple(self._row(job_id).events)

    async def save_evaluations(self, job_id: str, *, attempt: int, evaluations: Sequence[Evaluation]) -> None:
        self._database.check(self._epoch)
        row = self._row(job_id)
        if row.job.attempt != attempt:
            raise Stale(f"job {job_id}: attempt {attempt} is not the current one, {row.job.attempt}")
        row.evaluations = tuple(evaluations)

    async def evaluations(self, job_id: str) -> tuple[Evaluation, ...]:
        return self._row(job_id).evaluations

    async def append_logs(self, job_id: str, lines: Sequence[LogLine]) -> None:
        self._database.check(self._epoch)
        row = self._row(job_id)
        for line in lines:
            row.log_sequence += 1
            row.logs.append(replace(line, sequence=row.log_sequence))
        del row.logs[: -self._limits.log_lines]

    async def logs(self, job_id: str, *, after: int, limit: int) -> tuple[LogLine, ...]:
        logs = self._row(job_id).logs
        skipped = max(0, after - logs[0].sequence + 1) if logs else 0
        return tuple(logs[skipped : skipped + limit])

    async def summaries(self, job_ids: Collection[str]) -> dict[str, Summary]:
        return {
            job_id: row.summary
            for job_id in job_ids
            if (row := self._rows.get(job_id)) is not None and row.summary is not None
        }

    async def losses(self, job_id: str) -> "array[float]":
        return self._row(job_id).losses

    async def add_manifest(self, manifest: Manifest, *, kept: int) -> None:
        self._database.check(self._epoch)
        row = self._row(manifest.job_id)
        if row.job.attempt != manifest.attempt or row.job.phase.ended:
            raise Stale(f"job {manifest.job_id}: attempt {manifest.attempt} is not running")
        others = [entry for entry in row.manifests if (entry.step, entry.attempt) != (manifest.step, manifest.attempt)]
        row.manifests = _newest_whole([manifest, *others], kept)

    async def manifests(self, job_id: str) -> tuple[Manifest, ...]:
        return self._row(job_id).manifests

    async def condemn_manifest(self, manifest: Manifest, *, attempt: int, event: Event) -> None:
        self._database.check(self._epoch)
        row = self._row(manifest.job_id)
        if row.job.attempt != attempt:
            raise Stale(f"job {manifest.job_id}: attempt {attempt} is not the current one, {row.job.attempt}")
        row.manifests = tuple(
            replace(entry, damaged=event.message)
            if (entry.step, entry.attempt) == (manifest.step, manifest.attempt)
            else entry
            for entry in row.manifests
        )
        self._add_event(row, event)

    async def forget_manifests(self, *, ended_before: float) -> tuple[Job, ...]:
        self._database.check(self._epoch)
        over = [
            row
            for row in self._rows.values()
            if row.manifests and row.job.phase.ended and (row.job.finished_at or 0.0) < ended_before
        ]
        for row in over:
            row.manifests = ()
        return tuple(row.job for row in over)

    async def prune(self, *, ended_kept: int) -> tuple[Job, ...]:
        self._database.check(self._epoch)
        ended = sorted(
            (row.job for row in self._rows.values() if row.job.phase.ended),
            key=lambda job: (job.submitted_at, job.job_id),
            reverse=True,
        )
        for job in ended[ended_kept:]:
            del self._rows[job.job_id]
            self._by_key.pop(job.idempotency_key, None)
        return tuple(ended[ended_kept:])

    def _row(self, job_id: str) -> _Row:
        if (row := self._rows.get(job_id)) is None:
            raise NotFound(f"job '{job_id}' is not known here")
        return row

    def _add_event(self, row: _Row, event: Event) -> None:
        row.events.append(event)
        del row.events[: -self._limits.events]


def _newest_whole(manifests: Collection[Manifest], kept: int) -> tuple[Manifest, ...]:
    whole = [entry for entry in manifests if not entry.damaged]
    return tuple(sorted(whole, key=lambda entry: (entry.step, entry.attempt), reverse=True)[:kept])
