"""The SQLite store as a file: who may open it, and what is refused."""

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa

from shoal.core.errors import InvalidInput
from shoal.master.store.base import Database, Limits
from shoal.master.store.opening import open_database
from shoal.master.store.sqlite import ALONE, SHARED, SqliteDatabase, layout_of, open_sqlite

LIMITS = Limits(log_lines=10, events=12)


async def opened(url: str) -> Database:
    return await open_database(url, limits=LIMITS, connections=1, timeout_seconds=5, lease_seconds=10)


@pytest.fixture(params=[ALONE, SHARED], ids=["alone", "shared"])
def layout(request):
    return request.param


async def test_a_second_opener_is_refused_in_one_line(tmp_path, layout):
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    first = await open_sqlite(url, limits=LIMITS, layout=layout)
    for other in (ALONE, SHARED):
        with pytest.raises(InvalidInput, match="another process has it open") as caught:
            await open_sqlite(url, limits=LIMITS, layout=other)
        assert "\n" not in str(caught.value)
    await first.close()
    await (await open_sqlite(url, limits=LIMITS, layout=layout)).close()


async def test_no_other_program_can_open_a_file_whose_sqlite_may_corrupt_it(tmp_path):
    database = await open_sqlite(f"sqlite:///{tmp_path / 'jobs.db'}", limits=LIMITS, layout=ALONE)
    other = sqlite3.connect(tmp_path / "jobs.db", timeout=0)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("SELECT * FROM jobs")
    other.close()
    await database.close()


@pytest.mark.parametrize("layout", [ALONE, SHARED], ids=["alone", "shared"])
async def test_every_commit_is_synced_into_a_write_ahead_log(tmp_path, layout):
    database = await open_sqlite(f"sqlite:///{tmp_path / 'jobs.db'}", limits=LIMITS, layout=layout)

    async def pragmas(connection):
        return [
            (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one()
            for name in ("synchronous", "journal_mode", "locking_mode", "foreign_keys")
        ]

    full = 2
    assert await database.write(0, "test", pragmas) == [full, "wal", layout.locking.lower(), 1]
    assert await database.read(pragmas) == [full, "wal", layout.locking.lower(), 1]
    await database.close()


async def test_the_layout_is_that_of_the_sqlite_here(tmp_path):
    database = await opened(f"sqlite:///{tmp_path / 'jobs.db'}")
    assert isinstance(database, SqliteDatabase)
    layout = layout_of(sqlite3.sqlite_version_info[:3])

    async def locking(connection):
        return (await connection.execute(sa.text("PRAGMA locking_mode"))).scalar_one()

    assert await database.read(locking) == layout.locking.lower()
    await database.close()


async def test_readers_do_not_wait_for_a_writer_and_see_what_was_committed(tmp_path):
    database = await open_sqlite(f"sqlite:///{tmp_path / 'jobs.db'}", limits=LIMITS, layout=SHARED)

    async def count(connection):
        return (await connection.execute(sa.text("SELECT count(*) FROM alembic_version"))).scalar_one()

    async def write(connection):
        await connection.execute(sa.text("DELETE FROM alembic_version"))
        return await database.read(count)

    assert await database.write(0, "test", write) == 1
    assert await database.read(count) == 0
    await database.close()


async def test_a_store_in_memory_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    database = await opened("sqlite:///:memory:")
    assert (await database.look()).epoch == 0
    await database.close()
    assert list(tmp_path.iterdir()) == []


async def test_a_file_that_is_no_database_is_refused_in_one_line(tmp_path):
    (tmp_path / "jobs.db").write_bytes(b"not a database, but long enough to have a header " * 20)
    with pytest.raises(InvalidInput, match="not a database") as caught:
        await opened(f"sqlite:///{tmp_path / 'jobs.db'}")
    assert "\n" not in str(caught.value)
    Path(tmp_path / "jobs.db").unlink()
    await (await opened(f"sqlite:///{tmp_path / 'jobs.db'}")).close()  # the failure has left no lock


@pytest.mark.parametrize("bad", ["nonsense", "mysql://host/x", "sqlite://", "sqlite:////proc/none/jobs.db"])
async def test_a_store_that_cannot_be_is_refused(bad):
    with pytest.raises(InvalidInput) as caught:
        await opened(bad)
    assert caught.value.field in ("store", "data_dir")
    assert "\n" not in str(caught.value)
