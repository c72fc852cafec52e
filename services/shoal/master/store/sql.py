"""The durable store: SQLAlchemy Core over SQLite.

SQLite is used over one connection, with `synchronous=FULL`, and locked against other processes while it is open: a
write-ahead log with two connections can be corrupted by SQLite 3.7.0 to 3.51.2, and two masters must not share a
store. Statements are portable; PostgreSQL needs an entry in `_DRIVERS` and a larger pool.
"""

import asyncio
import json
from array import array
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from shoal.core.errors import AlreadyExists, InvalidInput, NotFound, Stale, Unavailable
from shoal.core.job import Event, Job, Phase
from shoal.master.shield import to_the_end
from shoal.master.store import rows
from shoal.master.store.base import (
    LIVE,
    Evaluation,
    JobStore,
    Limits,
    LogLine,
    Placement,
    Submission,
    Summary,
    Transition,
)
from shoal.master.store.migrate import upgrade
from shoal.master.store.schema import curves, evaluations, events, jobs, logs

_T = TypeVar("_T")
_DRIVERS = {"sqlite": "sqlite+aiosqlite"}
_BUSY_SECONDS = 1.0  # how long SQLite waits for a lock: only another master has one, and does not give it up
_QUEUE_SECONDS = 30.0  # how long an operation waits for those before it
_LIVE_NAMES = [phase.value for phase in LIVE]
_ENDED_NAMES = [phase.value for phase in Phase if phase.ended]


async def open_sql_store(url: str, *, limits: Limits) -> "SqlJobStore":
    """Opens the database, makes or migrates its tables. Raises InvalidInput or Refused, in one line each."""
    place = _parse(url)
    engine = create_async_engine(
        place, pool_size=1, max_overflow=0, pool_timeout=_QUEUE_SECONDS, connect_args={"timeout": _BUSY_SECONDS}
    )
    sa.event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    sa.event.listen(engine.sync_engine, "begin", _begin_sqlite)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(upgrade)
    except sa.exc.DBAPIError as error:
        await engine.dispose()
        raise InvalidInput(_opening_problem(place, error), field="store") from error
    except BaseException:
        await engine.dispose()
        raise
    return SqlJobStore(engine=engine, limits=limits)


def _parse(url: str) -> sa.URL:
    try:
        place = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise InvalidInput(
            f"store '{url}' is not a URL; sqlite:////var/lib/shoal/shoal.db is one", field="store"
        ) from error
    if place.drivername not in _DRIVERS:
        raise InvalidInput(f"store '{url}': sqlite:///PATH or memory:// is expected", field="store")
    if not place.database:
        raise InvalidInput(f"store '{url}' names no file; memory:// keeps nothing", field="store")
    try:
        Path(place.database).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        folder = Path(place.database).parent
        raise InvalidInput(f"folder {folder} for the job store: {error.strerror}", field="data_dir") from error
    return place.set(drivername=_DRIVERS[place.drivername])


def _opening_problem(place: sa.URL, error: sa.exc.DBAPIError) -> str:
    cause = str(error.orig)
    if "locked" in cause:
        cause = "another process has it open; a second master needs a store of its own"
    return f"job store {place.database}: {cause}"


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where `_begin_sqlite` says so, tables' changes included
    cursor = connection.cursor()
    for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


class SqlJobStore(JobStore):
    """Each method is one transaction, and goes on to its end if its caller is cancelled."""

    def __init__(self, *, engine: AsyncEngine, limits: Limits) -> None:
        self._engine = engine
        self._limits = limits
        self._running: set[asyncio.Future[Any]] = set()

    async def submit(self, job: Job, *, spec_hash: str) -> Submission:
        async def work(connection: AsyncConnection) -> Submission:
            known = await self._by_key(connection, job.idempotency_key)
            if known is not None:
                if known.spec_hash != spec_hash:
                    raise AlreadyExists(
                        f"idempotency key '{job.idempotency_key}' was used for another spec (job {known.job_id});"
                        " choose a new key"
                    )
                return Submission(job=rows.job_from_row(known), created=False)
            await connection.execute(sa.insert(jobs).values(rows.job_to_row(job, spec_hash=spec_hash)))
            event = Event(at=job.submitted_at, phase=job.phase, reason=job.reason, message=job.message)
            await self._add_event(connection, job.job_id, event)
            return Submission(job=job, created=True)

        try:
            return await self._transact(work)
        except sa.exc.IntegrityError as error:  # another master was quicker with the same key or id
            raise AlreadyExists(f"job {job.job_id} or its idempotency key exists already; submit again") from error

    async def get(self, job_id: str) -> Job:
        return await self._transact(lambda connection: self._job(connection, job_id))

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
                transition.check(await self._job(connection, transition.job_id))
            assert row is not None
            await self._add_event(connection, transition.job_id, transition.event)
            if transition.losses is not None:
                values = {"job_id": transition.job_id, "losses": rows.losses_to_bytes(transition.losses)}
                await connection.execute(sa.insert(curves).values(values))
            return rows.job_from_row(row)

        return await self._transact(work)

    async def place(self, job_id: str, *, attempt: int, placement: Placement, event: Event | None) -> None:
        async def work(connection: AsyncConnection) -> None:
            statement = (
                sa.update(jobs)
                .where(jobs.c.job_id == job_id, jobs.c.attempt == attempt, jobs.c.phase.in_(_LIVE_NAMES))
                .values(placement=rows.placement_to_json(placement))
            )
            if not (await connection.execute(statement)).rowcount:
                await self._job(connection, job_id)
                raise Stale(f"job {job_id}: attempt {attempt} is not running")
            if event is not None:
                await self._add_event(connection, job_id, event)

        await self._transact(work)

    async def placements(self) -> dict[str, Placement]:
        statement = sa.select(jobs.c.job_id, jobs.c.placement).where(
            jobs.c.placement.is_not(None), jobs.c.phase.in_(_LIVE_NAMES)
        )
        return {row.job_id: rows.placement_from_json(row.placement) for row in await self._all(statement)}

    async def events(self, job_id: str) -> tuple[Event, ...]:
        statement = sa.select(events).where(events.c.job_id == job_id).order_by(events.c.sequence)
        return tuple(
            Event(at=row.at, phase=Phase(row.phase), reason=row.reason, message=row.message)
            for row in await self._all_of(job_id, statement)
        )

    async def save_evaluations(self, job_id: str, *, attempt: int, evaluations: Sequence[Evaluation]) -> None:
        async def work(connection: AsyncConnection) -> None:
            job = await self._job(connection, job_id)
            if job.attempt != attempt:
                raise Stale(f"job {job_id}: attempt {attempt} is not the current one, {job.attempt}")
            await _replace_evaluations(connection, job_id, evaluations)

        await self._transact(work)

    async def evaluations(self, job_id: str) -> tuple[Evaluation, ...]:
        statement = sa.select(evaluations).where(evaluations.c.job_id == job_id).order_by(evaluations.c.position)
        return tuple(
            Evaluation(version=row.version, accuracy=row.accuracy, loss=row.loss)
            for row in await self._all_of(job_id, statement)
        )

    async def append_logs(self, job_id: str, lines: Sequence[LogLine]) -> None:
        async def work(connection: AsyncConnection) -> None:
            await self._job(connection, job_id)
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
            await _keep_newest(connection, logs, job_id, last=first + len(lines) - 1, kept=self._limits.log_lines)

        await self._transact(work)

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

    async def prune(self, *, ended_kept: int) -> int:
        async def work(connection: AsyncConnection) -> int:
            ended = (
                sa.select(jobs.c.job_id)
                .where(jobs.c.phase.in_(_ENDED_NAMES))
                .order_by(jobs.c.submitted_at.desc(), jobs.c.job_id.desc())
            )
            superfluous = (await connection.execute(ended)).scalars().all()[ended_kept:]
            for job_id in superfluous:
                await connection.execute(sa.delete(jobs).where(jobs.c.job_id == job_id))
            return len(superfluous)

        return await self._transact(work)

    async def close(self) -> None:
        if self._running:
            await asyncio.wait(self._running)
        await self._engine.dispose()

    # Inner parts.

    async def _transact(self, work: Callable[[AsyncConnection], Awaitable[_T]]) -> _T:
        """Returns after COMMIT. Raises Unavailable when the database cannot be asked."""

        async def transaction() -> _T:
            async with self._engine.begin() as connection:
                return await work(connection)

        try:
            return await to_the_end(transaction(), running=self._running)
        except sa.exc.IntegrityError:
            raise
        except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
            cause = getattr(error, "orig", None) or error
            raise Unavailable(f"the job store cannot be used: {cause}") from error

    async def _all(self, statement: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        async def work(connection: AsyncConnection) -> Sequence[sa.Row[Any]]:
            found: Sequence[sa.Row[Any]] = (await connection.execute(statement)).all()
            return found

        return await self._transact(work)

    async def _all_of(self, job_id: str, statement: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        """Raises NotFound rather than finding nothing of a job that does not exist."""

        async def work(connection: AsyncConnection) -> Sequence[sa.Row[Any]]:
            found: Sequence[sa.Row[Any]] = (await connection.execute(statement)).all()
            if not found:
                await self._job(connection, job_id)
            return found

        return await self._transact(work)

    async def _job(self, connection: AsyncConnection, job_id: str) -> Job:
        row = (await connection.execute(sa.select(jobs).where(jobs.c.job_id == job_id))).one_or_none()
        if row is None:
            raise NotFound(f"job '{job_id}' is not known here")
        return rows.job_from_row(row)

    async def _by_key(self, connection: AsyncConnection, key: str) -> "sa.Row[Any] | None":
        if not key:
            return None
        return (await connection.execute(sa.select(jobs).where(jobs.c.idempotency_key == key))).one_or_none()

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
            )
        )
        await _keep_newest(connection, events, job_id, last=sequence, kept=self._limits.events)


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
    if transition.results is not None:
        values["results"] = rows.results_to_json(transition.results)
    if transition.clear_results:
        values["results"] = None
    if transition.files is not None:
        values["files"] = rows.files_to_json(transition.files)
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
