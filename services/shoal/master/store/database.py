"""A SQL database: transactions that carry their master's epoch, and errors in the core's words.

What SQLite and PostgreSQL do in their own ways stands in a file each.
"""

import abc
import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shoal.core.errors import Deposed, Stale, Unavailable
from shoal.master.shield import to_the_end
from shoal.master.store.base import Database, Leader, Limits, deposed
from shoal.master.store.schema import leadership
from shoal.process.crashing import crash_point

_T = TypeVar("_T")
Work = Callable[[AsyncConnection], Awaitable[_T]]
Insert = sqlite.Insert | postgresql.Insert  # both know ON CONFLICT, in the same words

FAILURES = (sa.exc.DBAPIError, sa.exc.TimeoutError, OSError)  # OSError: no connection, no answer in time


class SqlDatabase(Database):
    """Every transaction goes on to its end if its caller is cancelled."""

    def __init__(self, *, writes: AsyncEngine, reads: AsyncEngine, limits: Limits) -> None:
        self._writes = writes
        self._reads = reads
        self.limits = limits
        self._running: set[asyncio.Future[Any]] = set()

    # For the job store.

    @abc.abstractmethod
    def insert(self, table: sa.Table) -> Insert: ...

    async def read(self, work: Work[_T]) -> _T:
        async def transaction() -> _T:
            async with self._reads.begin() as connection:
                return await work(connection)

        return await self._to_the_end(transaction())

    async def write(self, epoch: int, name: str, work: Work[_T]) -> _T:
        """Returns after COMMIT. Raises Deposed, having changed nothing, once a newer epoch than `epoch` has begun.

        `name`: what is written, for the crash points around COMMIT.
        """
        return await self._write(epoch, name, work)

    # Leadership.

    async def take(
        self, seen: Leader, *, incarnation: str, host: str, lease_seconds: float, unattended: bool = False
    ) -> int:
        statement = (
            sa.update(leadership)
            .where(leadership.c.epoch == seen.epoch, self._may_take(unattended=unattended))
            .values(
                epoch=seen.epoch + 1,
                incarnation=incarnation,
                host=host,
                lease_until=self._lease_until(lease_seconds),
            )
        )

        async def work(connection: AsyncConnection) -> int:
            if not (await connection.execute(statement)).rowcount:
                leader = await self._leader(connection)
                raise Stale(f"the lead was not to be had: {leader} has it, in epoch {leader.epoch}")
            return seen.epoch + 1

        return await self._write(None, "take", work)

    async def close(self) -> None:
        if self._running:
            await asyncio.wait(self._running)
        await self._writes.dispose()
        await self._reads.dispose()

    # Inner parts.

    async def _write(self, epoch: int | None, name: str, work: Work[_T]) -> _T:
        async def transaction() -> _T:
            result = await self._transact(epoch, before_commit)
            crash_point(f"{name}.committed")
            return result

        async def before_commit(connection: AsyncConnection) -> _T:
            result = await work(connection)
            crash_point(f"{name}.before_commit")
            return result

        return await self._to_the_end(transaction())

    async def _transact(self, epoch: int | None, work: Work[_T]) -> _T:
        async with self._writes.begin() as connection:
            if epoch is not None:
                await self._check(connection, epoch)
            return await work(connection)

    async def _check(self, connection: AsyncConnection, epoch: int) -> None:
        if (await connection.execute(_fence(epoch))).one_or_none() is None:
            raise await self._deposed(connection, epoch)

    async def _deposed(self, connection: AsyncConnection, epoch: int) -> Deposed:
        return deposed(epoch, await self._leader(connection))

    @abc.abstractmethod
    async def _leader(self, connection: AsyncConnection) -> Leader: ...

    @abc.abstractmethod
    def _may_take(self, *, unattended: bool) -> "sa.ColumnElement[bool]":
        """Is the lead to be had, as far as the lease goes?"""

    @abc.abstractmethod
    def _lease_until(self, lease_seconds: float) -> "sa.ColumnElement[float]": ...

    async def _to_the_end(self, work: Coroutine[Any, Any, _T]) -> _T:
        try:
            return await to_the_end(work, running=self._running)
        except FAILURES as error:
            raise unavailable(error) from error


def _fence(epoch: int) -> "sa.Select[Any]":
    """Holds the epoch as it is until the transaction ends, without keeping a lease from being renewed."""
    return sa.select(leadership.c.epoch).where(leadership.c.epoch == epoch).with_for_update(read=True, key_share=True)


def unavailable(error: Exception) -> Unavailable:
    return Unavailable(f"the job store cannot be used: {cause_of(error)}")


def cause_of(error: Exception) -> str:
    """One line, in the driver's own words, without statement and parameters."""
    if isinstance(error, sa.exc.DBAPIError):
        error = getattr(error, "driver_exception", None) or error
    lines = str(error).splitlines()
    return lines[0] if lines else "no answer in time"
