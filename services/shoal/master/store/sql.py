"""The job store over a SQL database: SQLAlchemy Core, one transaction per method.

What is read in a transaction and then relied on is locked first: a job's row, before what belongs to the job.
"""

import json
from array import array
from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from shoal.core.errors import AlreadyExists, NotFound, Stale, Unavailable
from shoal.core.job import Event, Job, Phase
from shoal.master.store import rows
from shoal.master.store.base import (
    LIVE,
    Evaluation,
    JobStore,
    LogLine,
    Manifest,
    Placement,
    Submission,
    Summary,
    Transition,
)
from shoal.master.store.database import SqlDatabase
from shoal.master.store.schema import curves, evaluations, events, jobs, logs, manifests

_LIVE_NAMES = [phase.value for phase in LIVE]
_ENDED_NAMES = [phase.value for phase in Phase if phase.ended]


class SqlJobStore(JobStore):
    def __init__(self, *, database: SqlDatabase, epoch: int) -> None:
        self._database = database
        self._epoch = epoch

    async def submit(self, job: Job, *, spec_hash: str) -> Submission:
        async def work(connection: AsyncConnection) -> Submission:
            values = rows.job_to_row(job, spec_hash=spec_hash)
            added = self._database.insert(jobs).values(values).on_conflict_do_nothing().returning(jobs.c.job_id)
            if (await connection.execute(added)).one_or_none() is None:
                return await _earlier(connection, job, spec_hash=spec_hash)
            event = Event(at=job.submitted_at, phase=job.phase, reason=job.reason, message=job.message)
            await self._add_event(connection, job.job_id, event)
            return Submission(job=job, created=True)

        return await self._database.write(self._epoch, "submit", work)

    async def get(self, job_id: str) -> Job:
        return await self._database.read(lambda connection: _job(connection, job_id))

    async def jobs(self, *, phases: Collection[Phase] = (), limit: int = 0) -> tuple[Job, ...]:
        statement = sa.select(jobs).order_by(jobs.c.submitted_at.desc(), jobs.c.job_id.desc())
        if phases:
            statement = statement.where(jobs.c.phase.in_([phase.value for phase in phases]))
        if limit:
            statement = statement.limit(limit)
        return tuple(rows.job_from_row(row) for row in await self._all(statement))

    async def apply(self, transition: Transition) -> Job:
        async def work(connection: AsyncConnection) -> Job:
            row = (await connection.execute(_fenced(transition))).one_or_none()
            if row is None:
                transition.check(await _job(connection, transition.job_id))
            assert row is not None
            await self._add_event(connection, transition.job_id, transition.event(attempt=row.attempt))
            if transition.manifests_kept is not None:
                await _keep_manifests(connection, transition.job_id, transition.manifests_kept)
            if transition.manifests_up_to is not None:
                later = manifests.c.step > transition.manifests_up_to
                await connection.execute(sa.delete(manifests).where(manifests.c.job_id == transition.job_id, later))
            if transition.losses is not None:
                values = {"job_id": transition.job_id, "losses": rows.losses_to_bytes(transition.losses)}
                stored = self._database.insert(curves).values(values)
                await connection.execute(stored.on_conflict_do_update(index_elements=["job_id"], set_=values))
            return rows.job_from_row(row)

        return await self._database.write(self._epoch, transition.name, work)

    async def place(self, job_id: str, *, attempt: int, placement: Placement, event: Event | None) -> None:
        async def work(connection: AsyncConnection) -> None:
            statement = (
                sa.update(jobs)
                .where(jobs.c.job_id == job_id, jobs.c.attempt == attempt, jobs.c.phase.in_(_LIVE_NAMES))
                .values(placement=rows.placement_to_json(placement))
            )
            if not (await connection.execute(statement)).rowcount:
                await _job(connection, job_id)
                raise Stale(f"job {job_id}: attempt {attempt} is not running")
            if event is not None:
                await self._add_event(connection, job_id, event)

        await self._database.write(self._epoch, "place", work)

    async def placements(self) -> dict[str, Placement]:
        statement = sa.select(jobs.c.job_id, jobs.c.placement).where(
            jobs.c.placement.is_not(None), jobs.c.phase.in_(_LIVE_NAMES)
        )
        return {row.job_id: rows.placement_from_json(row.placement) for row in await self._all(statement)}

    async def add_event(self, job_id: str, event: Event) -> None:
        async def work(connection: AsyncConnection) -> None:
            await _hold(connection, job_id)
            await self._add_event(connection, job_id, event)

        await self._database.write(self._epoch, "add_event", work)

    async def events(self, job_id: str) -> tuple[Event, ...]:
        statement = sa.select(events).where(events.c.job_id == job_id).order_by(events.c.sequence)
        return tuple(
            Event(at=row.at, phase=Phase(row.phase), reason=row.reason, message=row.message, attempt=row.attempt)
            for row in await self._all_of(job_id, statement)
        )

    async def save_evaluations(self, job_id: str, *, attempt: int, evaluations: Sequence[Evaluation]) -> None:
        async def work(connection: AsyncConnection) -> None:
            current = await _hold(connection, job_id)
            if current != attempt:
                raise Stale(f"job {job_id}: attempt {attempt} is not the current one, {current}")
            await _replace_evaluations(connection, job_id, evaluations)

        await self._database.write(self._epoch, "save_evaluations", work)

    async def evaluations(self, job_id: str) -> tuple[Evaluation, ...]:
        statement = sa.select(evaluations).where(evaluations.c.job_id == job_id).order_by(evaluations.c.position)
        return tuple(
            Evaluation(version=row.version, accuracy=row.accuracy, loss=row.loss)
            for row in await self._all_of(job_id, statement)
        )

    async def append_logs(self, job_id: str, lines: Sequence[LogLine]) -> None:
        async def work(connection: AsyncConnection) -> None:
            await _hold(connection, job_id)
            if not lines:
                return
            first = await _next_sequence(connection, logs, job_id)
            numbered = [
                {
                    "job_id": job_id,
                    "sequence": first + index,
                    "at": line.at,
                    "worker_id": line.worker_id,
                    "text": line.text,
                }
                for index, line in enumerate(lines)
            ]
            await connection.execute(sa.insert(logs), numbered)
            await _keep_newest(
                connection, logs, job_id, last=first + len(lines) - 1, kept=self._database.limits.log_lines
            )

        await self._database.write(self._epoch, "append_logs", work)

    async def logs(self, job_id: str, *, after: int, limit: int) -> tuple[LogLine, ...]:
        statement = (
            sa.select(logs)
            .where(logs.c.job_id == job_id, logs.c.sequence > after)
            .order_by(logs.c.sequence)
            .limit(limit)
        )
        return tuple(
            LogLine(at=row.at, worker_id=row.worker_id, text=row.text, sequence=row.sequence)
            for row in await self._all_of(job_id, statement)
        )

    async def summaries(self, job_ids: Collection[str]) -> dict[str, Summary]:
        statement = sa.select(jobs.c.job_id, jobs.c.summary).where(
            jobs.c.job_id.in_(list(job_ids)), jobs.c.summary.is_not(None)
        )
        return {row.job_id: rows.summary_from_json(row.summary) for row in await self._all(statement)}

    async def losses(self, job_id: str) -> "array[float]":
        found = await self._all_of(job_id, sa.select(curves.c.losses).where(curves.c.job_id == job_id))
        return rows.losses_from_bytes(found[0].losses) if found else array("d")

    async def add_manifest(self, manifest: Manifest, *, kept: int) -> None:
        async def work(connection: AsyncConnection) -> None:
            held = (
                sa.select(jobs.c.attempt)
                .where(jobs.c.job_id == manifest.job_id, jobs.c.attempt == manifest.attempt)
                .where(jobs.c.phase.in_(_LIVE_NAMES))
                .with_for_update(key_share=True)
            )
            if (await connection.execute(held)).one_or_none() is None:
                await _job(connection, manifest.job_id)
                raise Stale(f"job {manifest.job_id}: attempt {manifest.attempt} is not running")
            values = rows.manifest_to_row(manifest)
            stored = self._database.insert(manifests).values(values)
            await connection.execute(
                stored.on_conflict_do_update(index_elements=["job_id", "step", "attempt"], set_=values)
            )
            await _keep_manifests(connection, manifest.job_id, kept)

        await self._database.write(self._epoch, "add_manifest", work)

    async def manifests(self, job_id: str) -> tuple[Manifest, ...]:
        statement = (
            sa.select(manifests)
            .where(manifests.c.job_id == job_id)
            .order_by(manifests.c.step.desc(), manifests.c.attempt.desc())
        )
        return tuple(rows.manifest_from_row(row) for row in await self._all_of(job_id, statement))

    async def condemn_manifest(self, manifest: Manifest, *, attempt: int, event: Event) -> None:
        async def work(connection: AsyncConnection) -> None:
            current = await _hold(connection, manifest.job_id)
            if current != attempt:
                raise Stale(f"job {manifest.job_id}: attempt {attempt} is not the current one, {current}")
            await connection.execute(
                sa.update(manifests)
                .where(
                    manifests.c.job_id == manifest.job_id,
                    manifests.c.step == manifest.step,
                    manifests.c.attempt == manifest.attempt,
                )
                .values(damaged=event.message)
            )
            await self._add_event(connection, manifest.job_id, event)

        await self._database.write(self._epoch, "condemn_manifest", work)

    async def forget_manifests(self, *, ended_before: float) -> tuple[Job, ...]:
        over = (
            sa.select(jobs)
            .where(jobs.c.phase.in_(_ENDED_NAMES), jobs.c.finished_at < ended_before)
            .where(sa.exists().where(manifests.c.job_id == jobs.c.job_id))
            .with_for_update(key_share=True)
        )

        async def work(connection: AsyncConnection) -> tuple[Job, ...]:
            found = tuple(rows.job_from_row(row) for row in (await connection.execute(over)).all())
            for job in found:
                await connection.execute(sa.delete(manifests).where(manifests.c.job_id == job.job_id))
            return found

        return await self._database.write(self._epoch, "forget_manifests", work)

    async def prune(self, *, ended_kept: int) -> tuple[Job, ...]:
        newest_first = (jobs.c.submitted_at.desc(), jobs.c.job_id.desc())
        ended = jobs.c.phase.in_(_ENDED_NAMES)
        superfluous = sa.select(jobs.c.job_id).where(ended).order_by(*newest_first).offset(ended_kept)
        statement = sa.delete(jobs).where(jobs.c.job_id.in_(superfluous), ended).returning(*jobs.c)

        async def work(connection: AsyncConnection) -> tuple[Job, ...]:
            return tuple(rows.job_from_row(row) for row in (await connection.execute(statement)).all())

        return await self._database.write(self._epoch, "prune", work)

    # Inner parts.

    async def _all(self, statement: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        async def work(connection: AsyncConnection) -> Sequence[sa.Row[Any]]:
            found: Sequence[sa.Row[Any]] = (await connection.execute(statement)).all()
            return found

        return await self._database.read(work)

    async def _all_of(self, job_id: str, statement: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        """Raises NotFound rather than finding nothing of a job that does not exist."""

        async def work(connection: AsyncConnection) -> Sequence[sa.Row[Any]]:
            found: Sequence[sa.Row[Any]] = (await connection.execute(statement)).all()
            if not found:
                await _job(connection, job_id)
            return found

        return await self._database.read(work)

    async def _add_event(self, connection: AsyncConnection, job_id: str, event: Event) -> None:
        sequence = await _next_sequence(connection, events, job_id)
        await connection.execute(
            sa.insert(events).values(
                job_id=job_id,
                sequence=sequence,
                at=event.at,
                phase=event.phase.value,
                reason=event.reason,
                message=event.message,
                attempt=event.attempt,
            )
        )
        await _keep_newest(connection, events, job_id, last=sequence, kept=self._database.limits.events)


async def _job(connection: AsyncConnection, job_id: str) -> Job:
    row = (await connection.execute(sa.select(jobs).where(jobs.c.job_id == job_id))).one_or_none()
    if row is None:
        raise _not_found(job_id)
    return rows.job_from_row(row)


async def _hold(connection: AsyncConnection, job_id: str) -> int:
    """Locks the job's row until the transaction ends, and returns the attempt. What belongs to it may be renumbered."""
    held = sa.select(jobs.c.attempt).where(jobs.c.job_id == job_id).with_for_update(key_share=True)
    attempt: int | None = (await connection.execute(held)).scalar_one_or_none()
    if attempt is None:
        raise _not_found(job_id)
    return attempt


def _not_found(job_id: str) -> NotFound:
    return NotFound(f"job '{job_id}' is not known here")


async def _earlier(connection: AsyncConnection, job: Job, *, spec_hash: str) -> Submission:
    """What is in the way of a new job: one with the same key, or the same id."""
    key = job.idempotency_key
    by_key = sa.select(jobs).where(jobs.c.idempotency_key == key)
    known = (await connection.execute(by_key)).one_or_none() if key else None
    if known is None:
        by_id = sa.select(jobs.c.job_id).where(jobs.c.job_id == job.job_id)
        if (await connection.execute(by_id)).one_or_none() is None:
            raise Unavailable(f"the job that idempotency key '{key}' stood for went just now; submit again")
        raise AlreadyExists(f"job {job.job_id} exists already")
    if known.spec_hash != spec_hash:
        raise AlreadyExists(f"idempotency key '{key}' was used for another spec (job {known.job_id}); choose a new key")
    return Submission(job=rows.job_from_row(known), created=False)


def _fenced(transition: Transition) -> "sa.sql.dml.ReturningUpdate[Any]":
    """The one statement that changes a job's phase; no row comes back when the fence does not hold."""
    values: dict[str, Any] = {
        "phase": transition.to.value,
        "reason": transition.reason,
        "message": transition.message,
    }
    if transition.new_attempt:
        values["attempt"] = jobs.c.attempt + 1
    if transition.new_attempt or transition.to.ended:
        values["placement"] = None
    if transition.servers is not None:
        values["servers"] = json.dumps(transition.servers)
    if transition.started:
        values["started_at"] = sa.func.coalesce(jobs.c.started_at, transition.at)
    if transition.to.ended:
        values["finished_at"] = transition.at
    if transition.reopen:
        values |= {"finished_at": None, "failures": 0}
    if transition.failed:
        values["failures"] = jobs.c.failures + 1
    if transition.results is not None:
        values["results"] = rows.results_to_json(transition.results)
    if transition.clear_results:
        values["results"] = None
    if transition.files is not None:
        values["files"] = rows.files_to_json(transition.files)
    if transition.paused is not None:
        values["paused"] = transition.paused
    if transition.summary is not None:
        values["summary"] = rows.summary_to_json(transition.summary)
    statement = sa.update(jobs).where(
        jobs.c.job_id == transition.job_id, jobs.c.phase.in_([phase.value for phase in transition.expected])
    )
    if transition.attempt is not None:
        statement = statement.where(jobs.c.attempt == transition.attempt)
    if transition.only_open:
        statement = statement.where(jobs.c.results.is_(None))
    return statement.values(values).returning(*jobs.c)


async def _keep_manifests(connection: AsyncConnection, job_id: str, kept: int) -> None:
    """Of a job whose row is locked."""
    of_job = manifests.c.job_id == job_id
    stored = sa.select(manifests.c.step, manifests.c.attempt, manifests.c.damaged).where(of_job)
    found = (await connection.execute(stored)).all()
    whole = sorted(((row.step, row.attempt) for row in found if not row.damaged), reverse=True)
    for row in found:
        if (row.step, row.attempt) not in whole[:kept]:
            superfluous = sa.and_(of_job, manifests.c.step == row.step, manifests.c.attempt == row.attempt)
            await connection.execute(sa.delete(manifests).where(superfluous))


async def _replace_evaluations(connection: AsyncConnection, job_id: str, wanted: Sequence[Evaluation]) -> None:
    """Writes only what differs: evaluations come one at a time and hardly ever change."""
    of_job = sa.select(evaluations).where(evaluations.c.job_id == job_id).order_by(evaluations.c.position)
    stored = (await connection.execute(of_job)).all()
    same = 0
    for row, entry in zip(stored, wanted, strict=False):
        if (row.version, row.accuracy, row.loss) != (entry.version, entry.accuracy, entry.loss):
            break
        same += 1
    if same < len(stored):
        outdated = sa.delete(evaluations).where(evaluations.c.job_id == job_id, evaluations.c.position >= same)
        await connection.execute(outdated)
    if same < len(wanted):
        await connection.execute(
            sa.insert(evaluations),
            [
                {
                    "job_id": job_id,
                    "position": position,
                    "version": entry.version,
                    "accuracy": entry.accuracy,
                    "loss": entry.loss,
                }
                for position, entry in enumerate(wanted[same:], start=same)
            ],
        )


async def _next_sequence(connection: AsyncConnection, table: sa.Table, job_id: str) -> int:
    last = sa.select(sa.func.max(table.c.sequence)).where(table.c.job_id == job_id)
    return ((await connection.execute(last)).scalar() or 0) + 1


async def _keep_newest(connection: AsyncConnection, table: sa.Table, job_id: str, *, last: int, kept: int) -> None:
    if last > kept:
        await connection.execute(sa.delete(table).where(table.c.job_id == job_id, table.c.sequence <= last - kept))
