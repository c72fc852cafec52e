"""PostgreSQL: for more than one master. One leads, by a lease on the database's clock; the rest wait.

A writing transaction holds its epoch (a key-share lock on the row) until it ends, and PostgreSQL itself ends one whose
master has stopped in the middle. So a new epoch begins after the last write of the old one, and soon.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import asyncpg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from shoal.core.errors import Deposed, InvalidInput, Unavailable
from shoal.master.store.base import JobStore, Leader, Limits
from shoal.master.store.database import FAILURES, SqlDatabase, Work, cause_of, unavailable
from shoal.master.store.migrate import upgrade
from shoal.master.store.schema import Double, leadership
from shoal.master.store.sql import SqlJobStore

_T = TypeVar("_T")

_OLDEST_SERVER = 13  # has pg_current_xact_id
_MIGRATION_SECONDS = 60  # how long one master waits for another one that brings the schema up to date
_GOODBYE_SECONDS = 2.0
_OUTCOME_PAUSE_SECONDS = 0.1  # between questions what has become of a transaction

# Keys of advisory locks. A leader holds (_ATTENDED, epoch) in its session: whoever sees it free knows that the session
# has ended, long before the lease has, if the process was killed.
_MIGRATION = 0x5368_6F61  # "Shoa"
_ATTENDED = 0x5368_6F62

# What stays wrong until somebody changes it, unlike a server that cannot be reached.
_WRONG = (
    asyncpg.InvalidAuthorizationSpecificationError,  # no such user, wrong password, not let in
    asyncpg.InvalidCatalogNameError,  # no such database
    asyncpg.InsufficientPrivilegeError,
    asyncpg.UndefinedObjectError,  # a parameter of the URL that the server does not know
    asyncpg.InvalidParameterValueError,
)

_LOOK = sa.text(
    """
    SELECT epoch, incarnation, host,
        lease_until - extract(epoch FROM clock_timestamp())::float8 AS seconds_left,
        EXISTS (
            SELECT 1 FROM pg_locks
            WHERE locktype = 'advisory' AND granted AND objsubid = 2
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                AND classid::bigint = :attended AND objid::bigint = epoch
        ) AS attended
    FROM leadership
    """
).bindparams(attended=_ATTENDED)
_ATTEND = sa.text("SELECT pg_try_advisory_lock(CAST(:attended AS int), CAST(:epoch AS int))")
_FENCE = sa.text(
    "SELECT epoch, CAST(pg_current_xact_id() AS text) AS xid FROM leadership WHERE epoch = :epoch FOR KEY SHARE"
)
_XID = sa.text("SELECT CAST(pg_current_xact_id() AS text)")
_OUTCOME = sa.text("SELECT pg_xact_status(CAST(CAST(:xid AS text) AS xid8))")
_MIGRATION_LOCK = sa.text("SELECT pg_advisory_xact_lock(:key)").bindparams(key=_MIGRATION)
_MIGRATION_HASTE = sa.text("SET LOCAL lock_timeout = '2s'")  # whoever waits for a table keeps a leader from using it


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """Connections to the server, and how long things may take."""

    connections: int
    timeout_seconds: float  # of connecting, of one statement, and of the wait for a free connection
    lease_seconds: float  # a transaction whose master has stopped must end well within it


async def open_postgresql(url: str, *, limits: Limits, pool: Pool) -> "PostgresDatabase":
    """Makes or migrates the tables. Raises InvalidInput or Refused for what stays wrong, Unavailable for what may pass.

    No message has the password: the URL goes to the driver, and only its harmless parts are named.
    """
    name = _name_of(url)
    migrating = _engine(
        url, pool, poolclass=NullPool, seconds=_MIGRATION_SECONDS, settings={"statement_timeout": "0"}, patient=True
    )
    try:
        async with migrating.begin() as connection:
            await _check_server(connection, name)
            await connection.execute(_MIGRATION_LOCK)
            await connection.execute(_MIGRATION_HASTE)
            await connection.run_sync(lambda inner: upgrade(inner, name=name))
    except FAILURES as error:
        raise _opening_problem(name, error) from error
    finally:
        await migrating.dispose()
    return PostgresDatabase(
        writes=_engine(
            url,
            pool,
            seconds=pool.timeout_seconds,
            pool_size=pool.connections,
            max_overflow=0,
            pool_timeout=pool.timeout_seconds,
            pool_pre_ping=True,
            pool_use_lifo=True,
        ),
        # Renewals need not survive a crash of the server: it may forget the last fraction of a second.
        session=_engine(
            url,
            pool,
            seconds=min(pool.timeout_seconds, pool.lease_seconds / 4),
            settings={"synchronous_commit": "off"},
            isolation_level="AUTOCOMMIT",
            pool_size=1,
            max_overflow=0,
            pool_timeout=pool.timeout_seconds,
            pool_pre_ping=True,
        ),
        limits=limits,
        pool=pool,
    )


def _name_of(url: str) -> str:
    """The parts of the URL that may be shown. Raises InvalidInput if it is not one."""
    try:
        parts = urlsplit(url)
        user, host, database = parts.username, parts.netloc.rpartition("@")[2], parts.path.lstrip("/")
    except ValueError:
        raise InvalidInput(_MALFORMED, field="store") from None  # it may quote a part of the URL
    if "@" in parts.path + parts.query + parts.fragment or "/" in database:
        raise InvalidInput(_MALFORMED, field="store")
    shown = f"{unquote(user)}@" if user else ""
    return f"postgresql://{shown}{host}/{database}"


_MALFORMED = (
    "store: the postgresql:// address is malformed; postgresql://USER:PASSWORD@HOST:PORT/DATABASE is expected, with"
    " special characters of the password written as %XX"
)


class _Connection(asyncpg.Connection):  # type: ignore[misc]
    async def close(self, *, timeout: float | None = None) -> None:
        """A server that is gone without a trace never acknowledges a goodbye: the driver then cuts the connection."""
        with contextlib.suppress(TimeoutError):
            await super().close(timeout=_GOODBYE_SECONDS if timeout is None else timeout)


def _engine(
    url: str,
    pool: Pool,
    *,
    seconds: float,
    settings: dict[str, str] | None = None,
    patient: bool = False,
    **options: Any,
) -> AsyncEngine:
    abandoned_seconds = pool.lease_seconds / 2  # of a transaction that its master says nothing in
    server_settings = {
        "application_name": "shoal-master",
        "statement_timeout": _milliseconds(seconds),
        "lock_timeout": _milliseconds(seconds if patient else seconds / 2),
        "idle_in_transaction_session_timeout": _milliseconds(seconds if patient else abandoned_seconds),
        "default_transaction_isolation": "read committed",
        **(settings or {}),
    }

    async def connect() -> "asyncpg.Connection[Any]":
        try:
            return await asyncpg.connect(
                url,
                timeout=pool.timeout_seconds,
                command_timeout=None if patient else seconds + 0.5,  # the server's own limit comes first, if it lives
                server_settings=server_settings,
                connection_class=_Connection,
            )
        except (ValueError, asyncpg.InterfaceError):
            raise InvalidInput(_MALFORMED, field="store") from None  # it may quote a part of the URL

    # The engine is told no URL, so that no error and no log of it can have the password.
    return create_async_engine("postgresql+asyncpg://", async_creator=connect, hide_parameters=True, **options)


def _milliseconds(seconds: float) -> str:
    return str(max(1, round(1_000 * seconds)))


async def _check_server(connection: AsyncConnection, name: str) -> None:
    statement = sa.text("SELECT current_setting('server_version_num')::int / 10000, current_setting('server_encoding')")
    version, encoding = (await connection.execute(statement)).one()
    if version < _OLDEST_SERVER:
        raise InvalidInput(f"job store {name}: PostgreSQL {version} is too old; {_OLDEST_SERVER} is the oldest")
    if encoding != "UTF8":
        raise InvalidInput(f"job store {name}: its encoding is {encoding}; UTF8 is needed", field="store")


def _opening_problem(name: str, error: Exception) -> InvalidInput | Unavailable:
    driver = getattr(error, "driver_exception", None) or error
    if isinstance(driver, _WRONG):
        return InvalidInput(f"job store {name}: {cause_of(error)}", field="store")
    return Unavailable(f"job store {name}: {cause_of(error)}")


class PostgresDatabase(SqlDatabase):
    def __init__(self, *, writes: AsyncEngine, session: AsyncEngine, limits: Limits, pool: Pool) -> None:
        super().__init__(writes=writes, reads=writes.execution_options(isolation_level="AUTOCOMMIT"), limits=limits)
        self._session = session  # one connection, whose end tells the others that this master has ended
        self._pool = pool

    def jobs(self, epoch: int) -> JobStore:
        return SqlJobStore(database=self, epoch=epoch)

    def insert(self, table: sa.Table) -> postgresql.Insert:
        return postgresql.insert(table)

    async def look(self) -> Leader:
        return await self._in_session(self._leader)

    async def renew(self, epoch: int, *, lease_seconds: float) -> None:
        renewed = (
            sa.update(leadership)
            .where(leadership.c.epoch == epoch)
            .values(lease_until=self._lease_until(lease_seconds))
        )

        async def work(connection: AsyncConnection) -> None:
            if not (await connection.execute(renewed)).rowcount:
                raise await self._deposed(connection, epoch)
            await self._attend(connection, epoch)

        await self._in_session(work)

    async def resign(self, epoch: int) -> None:
        vacated = sa.update(leadership).where(leadership.c.epoch == epoch).values(incarnation="", host="")

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(vacated)

        await self._in_session(work)

    async def close(self) -> None:
        await self._session.dispose()
        await super().close()

    async def _in_session(self, work: Work[_T]) -> _T:
        try:
            async with self._session.connect() as connection:
                try:
                    return await work(connection)
                except OSError:
                    await connection.invalidate()  # no answer in time: nobody knows what it does next
                    raise
        except FAILURES as error:
            raise unavailable(error) from error

    async def _attend(self, connection: AsyncConnection, epoch: int) -> None:
        """Shows that the leader's session is there. One that ended takes its lock along."""
        assert connection.sync_connection is not None
        known = connection.sync_connection.info
        if known.get("attends") == epoch:
            return
        if (await connection.execute(_ATTEND, {"attended": _ATTENDED, "epoch": epoch})).scalar_one():
            known["attends"] = epoch  # if not, the server has yet to notice the end of this master's last session

    async def _leader(self, connection: AsyncConnection) -> Leader:
        row = (await connection.execute(_LOOK)).one()
        return Leader(
            epoch=row.epoch,
            incarnation=row.incarnation,
            host=row.host,
            seconds_left=row.seconds_left,
            attended=row.attended,
        )

    def _may_take(self, *, unattended: bool) -> "sa.ColumnElement[bool]":
        return sa.or_(sa.literal(unattended), leadership.c.incarnation == "", leadership.c.lease_until <= _now())

    def _lease_until(self, lease_seconds: float) -> "sa.ColumnElement[float]":
        return _now() + sa.literal(lease_seconds, Double)

    async def _transact(self, epoch: int | None, work: Work[_T]) -> _T:
        """Finds out what has become of a transaction whose COMMIT was not answered."""
        unanswered: Exception | None = None
        async with self._writes.connect() as connection:
            try:
                transaction = await connection.begin()
                xid = await self._begin(connection, epoch)
                result = await work(connection)
                try:
                    await transaction.commit()
                except FAILURES as error:
                    unanswered = error
                    await connection.invalidate()
            except OSError:
                await connection.invalidate()  # no answer in time: nobody knows what it does next
                raise
        if unanswered is not None:
            await self._find_out(xid, unanswered)
        return result

    async def _begin(self, connection: AsyncConnection, epoch: int | None) -> str:
        """The transaction's number."""
        if epoch is None:
            return str((await connection.execute(_XID)).scalar_one())
        row = (await connection.execute(_FENCE, {"epoch": epoch})).one_or_none()
        if row is None:
            raise await self._deposed(connection, epoch)
        return str(row.xid)

    async def _find_out(self, xid: str, error: Exception) -> None:
        """Returns if the transaction was committed. Raises Unavailable if not, Deposed if that cannot be known."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._pool.timeout_seconds + self._pool.lease_seconds / 2
        while loop.time() < deadline:
            try:
                async with self._reads.connect() as connection:
                    outcome = (await connection.execute(_OUTCOME, {"xid": xid})).scalar_one()
            except FAILURES as still:
                error = still
            else:
                if outcome == "committed":
                    return
                if outcome == "aborted":
                    raise unavailable(error) from error
            await asyncio.sleep(_OUTCOME_PAUSE_SECONDS)
        raise Deposed(
            f"the job store did not say whether it took a write ({cause_of(error)}): this master must read it anew"
        ) from error


def _now() -> "sa.ColumnElement[float]":
    """Unix seconds by the database's clock, also within a transaction."""
    return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), Double)
