"""The job store of a simulated cluster: the real SQLite or memory store, each operation at one moment.

Between a master and its database lie delays and faults: the database may be away (nothing has changed then), and a
master may die between a commit and its answer.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy as sa
from alembic import command  # noqa: F401  (loaded once, not in each simulated start)

from shoal.core.errors import Unavailable
from shoal.master.store.base import Database, JobStore, Leader, Limits
from shoal.master.store.memory import MemoryDatabase
from shoal.master.store.migrate import upgrade
from shoal.master.store.schema import leadership, metadata
from shoal.master.store.sqlite import SqliteDatabase
from tests.simulation.loop import PROCESS, Process

LIMITS = Limits(log_lines=100, events=500)
_WRITES = frozenset(
    {
        "submit",
        "apply",
        "place",
        "add_manifest",
        "condemn_manifest",
        "add_event",
        "save_evaluations",
        "append_logs",
        "prune",
    }
)
_TRIP_SECONDS = 0.001


class _InlineConnection:
    """An AsyncConnection that does not wait."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._connection, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            return method(*arguments, **options)

        return call


class _InlineEngine:
    """As much of an AsyncEngine as the store uses, over one connection to a database in memory."""

    def __init__(self) -> None:
        self.engine = sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool)

        def prepare(connection: Any, _record: object) -> None:
            connection.isolation_level = None
            connection.execute("PRAGMA foreign_keys=ON")

        sa.event.listen(self.engine, "connect", prepare)
        sa.event.listen(self.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        with self.engine.begin() as connection:
            upgrade(connection, name="simulation")

    def clear(self) -> None:
        with self.engine.begin() as connection:
            for table in reversed(metadata.sorted_tables):
                if table is not leadership:
                    connection.execute(sa.delete(table))
            connection.execute(sa.update(leadership).values(epoch=0, incarnation="", host="", lease_until=0.0))

    @asynccontextmanager
    async def begin(self) -> Any:
        with self.engine.begin() as connection:
            yield _InlineConnection(connection)

    async def dispose(self) -> None:
        """It serves the next seed."""


_engine: _InlineEngine | None = None


def new_database(kind: str) -> Database:
    """An empty one: 'sqlite' or 'memory'."""
    global _engine
    if kind == "memory":
        return MemoryDatabase(limits=LIMITS)
    if _engine is None:
        _engine = _InlineEngine()
    _engine.clear()
    engine: Any = _engine
    return SqliteDatabase(writes=engine, reads=engine, limits=LIMITS, lock=None, epoch=0)


async def without_a_task(work: Coroutine[Any, Any, Any], *, running: Any = None) -> Any:
    """Stands in for `shield.to_the_end` within the store: nothing here can be cancelled in the middle."""
    return await work


class Disk:
    """What outlives every master, and what happens to it."""

    def __init__(self, database: Database, stored: Callable[[Process, int, str, tuple[Any, ...], Any], None]) -> None:
        self.database = database
        self.away_until = 0.0
        self.lose_answer: Callable[[Process], None] | None = None  # of the next commit
        self._stored = stored

    async def ask(self, operation: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        await asyncio.sleep(_TRIP_SECONDS)
        if asyncio.get_running_loop().time() < self.away_until:
            raise Unavailable("the job store cannot be used: it is away")
        result = _at_once(operation())
        await asyncio.sleep(_TRIP_SECONDS)
        return result

    async def write(self, epoch: int, name: str, arguments: tuple[Any, ...], operation: Any) -> Any:
        def commit() -> Coroutine[Any, Any, Any]:
            async def work() -> Any:
                result = await operation()
                self._stored(PROCESS.get(), epoch, name, arguments, result)
                return result

            return work()

        answer = self.ask(commit)
        if self.lose_answer is None:
            return await answer
        result = await answer
        if (lose := self.lose_answer) is not None:
            self.lose_answer = None
            lose(PROCESS.get())
            await asyncio.get_running_loop().create_future()
        return result


def _at_once(work: Coroutine[Any, Any, Any]) -> Any:
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise RuntimeError("the store waits for something")


class SimDatabase(Database):
    """One master's way to the disk."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    async def look(self) -> Leader:
        leader: Leader = await self._disk.ask(self._disk.database.look)
        return leader

    async def take(self, seen: Leader, **options: Any) -> int:
        epoch: int = await self._disk.write(0, "take", (), lambda: self._disk.database.take(seen, **options))
        return epoch

    async def renew(self, epoch: int, *, lease_seconds: float) -> None:
        await self._disk.ask(lambda: self._disk.database.renew(epoch, lease_seconds=lease_seconds))

    async def resign(self, epoch: int) -> None:
        await self._disk.ask(lambda: self._disk.database.resign(epoch))

    def jobs(self, epoch: int) -> JobStore:
        store: Any = _SimJobStore(self._disk, self._disk.database.jobs(epoch), epoch)
        return store

    async def close(self) -> None:
        """The disk stays."""


class _SimJobStore:
    def __init__(self, disk: Disk, store: JobStore, epoch: int) -> None:
        self._disk, self._store, self._epoch = disk, store, epoch

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._store, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            if name in _WRITES:
                named = (*arguments, options)
                return await self._disk.write(self._epoch, name, named, lambda: operation(*arguments, **options))
            return await self._disk.ask(lambda: operation(*arguments, **options))

        return call
