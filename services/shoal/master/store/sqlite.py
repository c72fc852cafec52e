"""SQLite: one master's own file. Whoever has it open leads, so leases do not run out.

Write-ahead log with `synchronous=FULL`. The file is locked against other masters while it is open.
"""

import fcntl
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from shoal.core.errors import InvalidInput
from shoal.master.store.base import JobStore, Leader, Limits, deposed
from shoal.master.store.database import SqlDatabase, cause_of
from shoal.master.store.migrate import upgrade
from shoal.master.store.schema import leadership
from shoal.master.store.sql import SqlJobStore

_BUSY_SECONDS = 1.0  # how long SQLite waits for a lock: only another program has one, and does not give it up
_QUEUE_SECONDS = 30.0  # how long an operation waits for those before it
_READERS = 3  # connections that read while another one waits for the disk
_IN_MEMORY = ":memory:"

_HAS_WAL = (3, 7, 0)
_RESET_SAFE = (3, 51, 3)
_BACKPORTS = ((3, 44, 6), (3, 50, 7))  # the same minor version, from this patch on


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How a master opens its file."""

    readers: int  # connections beside the one that writes; 0: that one does everything
    locking: str  # SQLite's locking_mode


ALONE = Layout(readers=0, locking="EXCLUSIVE")
SHARED = Layout(readers=_READERS, locking="NORMAL")


def layout_of(version: tuple[int, int, int]) -> Layout:
    """With a SQLite that may corrupt a write-ahead log of two connections there is only one (sqlite.org/wal.html)."""
    return SHARED if _is_wal_safe(version) else ALONE


def _is_wal_safe(version: tuple[int, int, int]) -> bool:
    """Do two connections leave a write-ahead log whole? SQLite 3.7.0 to 3.51.2 may lose pages when it is reset."""
    if version < _HAS_WAL:
        return False
    return version >= _RESET_SAFE or any(fixed[:2] == version[:2] and fixed <= version for fixed in _BACKPORTS)


async def open_sqlite(url: str, *, limits: Limits, layout: Layout | None = None) -> "SqliteDatabase":
    """Opens the file, makes or migrates its tables. Raises InvalidInput or Refused, in one line each."""
    path = _path_of(url)
    layout = layout or layout_of(sqlite3.sqlite_version_info[:3])
    if path == _IN_MEMORY:
        layout = ALONE  # a second connection would see another database
    lock = None if path == _IN_MEMORY else _lock(Path(path))
    writes = _engine(path, layout, connections=1, begin="BEGIN IMMEDIATE")
    reads = _engine(path, layout, connections=layout.readers, begin="BEGIN") if layout.readers else writes
    try:
        async with writes.begin() as connection:
            await connection.run_sync(lambda inner: upgrade(inner, name=path))
            epoch: int = (await connection.execute(sa.select(leadership.c.epoch))).scalar_one()
    except BaseException as error:
        await writes.dispose()
        _unlock(lock)
        if isinstance(error, sa.exc.DBAPIError):
            raise InvalidInput(_opening_problem(path, error), field="store") from error
        raise
    return SqliteDatabase(writes=writes, reads=reads, limits=limits, lock=lock, epoch=epoch)


def _path_of(url: str) -> str:
    path = sa.make_url(url).database
    if not path:
        raise InvalidInput(f"store '{url}' names no file; memory:// keeps nothing", field="store")
    return path


def _lock(path: Path) -> int:
    """A file beside the database, because SQLite's own locks end when any descriptor of the database is closed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise InvalidInput(f"folder {path.parent} for the job store: {error.strerror}", field="data_dir") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise InvalidInput(_in_use(str(path)), field="store") from error
    return descriptor


def _unlock(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)


def _engine(path: str, layout: Layout, *, connections: int, begin: str) -> AsyncEngine:
    engine = create_async_engine(
        sa.URL.create("sqlite+aiosqlite", database=path),
        poolclass=AsyncAdaptedQueuePool,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=_QUEUE_SECONDS,
        connect_args={"timeout": _BUSY_SECONDS},
        hide_parameters=True,
    )

    def prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # transactions begin where `start` says so, tables' changes included
        cursor = connection.cursor()
        for pragma in (f"locking_mode={layout.locking}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def start(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    sa.event.listen(engine.sync_engine, "connect", prepare)
    sa.event.listen(engine.sync_engine, "begin", start)
    return engine


def _opening_problem(path: str, error: sa.exc.DBAPIError) -> str:
    cause = cause_of(error)
    return _in_use(path) if "locked" in cause else f"job store {path}: {cause}"


def _in_use(path: str) -> str:
    return f"job store {path}: another process has it open; a second master needs a store of its own, or PostgreSQL"


class SqliteDatabase(SqlDatabase):
    def __init__(
        self, *, writes: AsyncEngine, reads: AsyncEngine, limits: Limits, lock: int | None, epoch: int
    ) -> None:
        super().__init__(writes=writes, reads=reads, limits=limits)
        self._lock = lock
        self._epoch = epoch  # nobody else can change it while the file is open here

    def jobs(self, epoch: int) -> JobStore:
        return SqlJobStore(database=self, epoch=epoch)

    def insert(self, table: sa.Table) -> sqlite.Insert:
        return sqlite.insert(table)

    async def look(self) -> Leader:
        return await self.read(self._leader)

    async def take(
        self, seen: Leader, *, incarnation: str, host: str, lease_seconds: float, unattended: bool = False
    ) -> int:
        self._epoch = await super().take(
            seen, incarnation=incarnation, host=host, lease_seconds=lease_seconds, unattended=unattended
        )
        return self._epoch

    async def renew(self, epoch: int, *, lease_seconds: float) -> None:  # noqa: ARG002
        """Without a look at the file: a slow disk is no reason to give up a lead that nobody else can take."""
        if epoch != self._epoch:
            raise deposed(epoch, await self.look())

    async def resign(self, epoch: int) -> None:
        async def work(connection: AsyncConnection) -> None:
            vacated = sa.update(leadership).where(leadership.c.epoch == epoch).values(incarnation="", host="")
            await connection.execute(vacated)

        await self._to_the_end(self._transact(None, work))

    async def close(self) -> None:
        await super().close()
        _unlock(self._lock)
        self._lock = None

    async def _leader(self, connection: AsyncConnection) -> Leader:
        row = (await connection.execute(sa.select(leadership))).one()
        return Leader(epoch=row.epoch, incarnation=row.incarnation, host=row.host, seconds_left=0.0, attended=False)

    def _may_take(self, *, unattended: bool) -> "sa.ColumnElement[bool]":  # noqa: ARG002
        return sa.true()

    def _lease_until(self, lease_seconds: float) -> "sa.ColumnElement[float]":  # noqa: ARG002
        return sa.literal(0.0)
