"""Which database a URL means."""

from shoal.core.errors import InvalidInput
from shoal.master.store.base import Database, Limits
from shoal.master.store.memory import MemoryDatabase
from shoal.process.lifetime import loading

_EXPECTED = "sqlite:///PATH, postgresql://USER:PASSWORD@HOST/DATABASE or memory://"


async def open_database(
    url: str, *, limits: Limits, connections: int, timeout_seconds: float, lease_seconds: float
) -> Database:
    """Opens it, and makes or migrates its tables.

    Raises InvalidInput or Refused, in one line, for what stays wrong; Unavailable if the server cannot be asked now.
    `connections` and times are for PostgreSQL: see `postgresql.Pool`.
    """
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise InvalidInput(f"store is not a URL: {_EXPECTED} is expected", field="store")
    match scheme:
        case "memory":
            return MemoryDatabase(limits=limits)
        case "sqlite":
            with loading():
                from shoal.master.store.sqlite import open_sqlite

            return await open_sqlite(url, limits=limits)
        case "postgresql" | "postgres":
            with loading():
                from shoal.master.store.postgresql import Pool, open_postgresql

            pool = Pool(connections=connections, timeout_seconds=timeout_seconds, lease_seconds=lease_seconds)
            return await open_postgresql(url, limits=limits, pool=pool)
    raise InvalidInput(f"store {scheme}://...: {_EXPECTED} is expected", field="store")
