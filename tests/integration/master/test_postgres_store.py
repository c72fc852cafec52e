"""The PostgreSQL store against a real server: addresses, restarts, lost answers, leases."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Iterator
from urllib.parse import quote

import pytest
import sqlalchemy as sa
import sqlalchemy.ext.asyncio

from shoal.core.errors import Deposed, InvalidInput, ShoalError, Stale, Unavailable
from shoal.core.job import Job, Phase, Requirements
from shoal.master.store.base import Limits
from shoal.master.store.postgresql import _MIGRATION, Pool, PostgresDatabase, open_postgresql
from tests.postgres import PASSWORD, PostgresServer, running_server

LIMITS = Limits(log_lines=10, events=12)


async def opened(
    url: str, *, connections: int = 4, timeout_seconds: float = 5, lease_seconds: float = 10
) -> PostgresDatabase:
    pool = Pool(connections=connections, timeout_seconds=timeout_seconds, lease_seconds=lease_seconds)
    return await open_postgresql(url, limits=LIMITS, pool=pool)


async def lead(database: PostgresDatabase, *, by: str = "m1", lease_seconds: float = 10) -> int:
    return await database.take(await database.look(), incarnation=by, host="host", lease_seconds=lease_seconds)


async def until(probe, *, seconds: float = 20.0):
    """The first true answer of an asynchronous `probe`."""
    async with asyncio.timeout(seconds):
        while not (answer := await probe()):
            await asyncio.sleep(0.01)
    return answer


def job(job_id: str, *, key: str = "") -> Job:
    return Job(
        job_id=job_id,
        name="digits",
        spec_json="{}",
        requirements=Requirements(
            model_type="mlp", gpu=False, world_size=8, min_workers=1, max_workers=8, shards=2, priority=3
        ),
        phase=Phase.PENDING,
        reason="Submitted",
        message="",
        attempt=0,
        submitted_at=100.0,
        idempotency_key=key,
    )


@pytest.fixture
def url(postgres: PostgresServer) -> Iterator[str]:
    with postgres.database() as url:
        yield url


@pytest.fixture
def own() -> Iterator[PostgresServer]:
    """A server for this test alone, which may break it."""
    with running_server() as server:
        yield server


@contextlib.asynccontextmanager
async def closing(*databases: PostgresDatabase) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for database in databases:
            await database.close()


# Addresses.


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda server: server.url("nope"), InvalidInput, 'database "nope" does not exist'),
        (lambda server: server.url("postgres", password="s3cret"), InvalidInput, "password authentication failed"),
        (lambda server: server.url("postgres", user="nobody"), InvalidInput, "password authentication failed"),
        (lambda server: server.url("postgres", port=1), Unavailable, "Connect call failed"),
        (lambda _: "postgresql://u:s3cret@no-such-host.invalid/x", Unavailable, "no-such-host.invalid/x: "),
        (lambda _: "postgresql://u:s3cret/x@h/x", InvalidInput, "malformed"),
        (lambda _: "postgresql://u:s3cret@h:port/x", InvalidInput, "malformed"),
        (lambda _: "postgresql://u:s3[cret@h/x", InvalidInput, "malformed"),
        (lambda _: "postgresql://u:s3#cret@h/x", InvalidInput, "malformed"),
        (lambda server: server.url("postgres") + "?sslmode=s3cret", InvalidInput, "malformed"),
        (lambda server: server.url("postgres") + "?nonsense=1", InvalidInput, '"nonsense"'),
        (lambda server: server.url("postgres") + "?sslmode=require", Unavailable, "SSL"),
    ],
)
async def test_an_address_that_does_not_work_is_one_line_without_the_password(postgres, change, kind, words):
    with pytest.raises(kind) as caught:
        await opened(change(postgres))
    line = str(caught.value)
    assert words in line
    assert "\n" not in line
    for secret in (PASSWORD, quote(PASSWORD, safe=""), "s3cret", "s3[", "cret"):
        assert secret not in line


async def test_no_error_and_no_name_of_an_open_store_has_the_password(own):
    with own.database() as url:
        database = await opened(url)
        async with closing(database):
            store = database.jobs(await lead(database))
            shown = [repr(database), repr(database._writes), repr(database._session), str(database._writes.url)]
            own.stop()
            with pytest.raises(Unavailable) as caught:
                await store.submit(job("a"), spec_hash="h")
            error: BaseException | None = caught.value
            while error is not None:
                shown.append(repr(error))
                error = error.__cause__ or error.__context__
            own.start()
        assert not any(PASSWORD in text or quote(PASSWORD, safe="") in text for text in shown)


async def test_a_database_that_cannot_keep_every_text_is_refused(postgres):
    postgres.sql("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'")
    with pytest.raises(InvalidInput, match="encoding is LATIN1; UTF8 is needed"):
        await opened(postgres.url("latin"))


async def test_a_user_who_may_not_make_tables_is_told_so(postgres):
    with postgres.database(empty=True) as url:
        postgres.sql("DROP ROLE IF EXISTS reader; CREATE ROLE reader LOGIN PASSWORD 'r'")
        reader = postgres.url(url.rpartition("/")[2], user="reader", password="r")
        with pytest.raises(InvalidInput, match="permission denied for schema public"):
            await opened(reader)


# The schema.


async def test_masters_that_open_an_empty_database_at_once_take_turns(postgres):
    with postgres.database(empty=True) as url:
        databases = await asyncio.gather(*(opened(url) for _ in range(4)))
        async with closing(*databases):
            assert [(await database.look()).epoch for database in databases] == [0] * 4


async def test_a_master_waits_for_another_one_that_brings_the_schema_up_to_date(postgres):
    with postgres.database(empty=True) as url:
        engine = sa.ext.asyncio.create_async_engine(url.replace("postgresql:", "postgresql+asyncpg:"))
        async with engine.begin() as other:
            await other.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION})
            opening = asyncio.ensure_future(opened(url))

            async def waits():
                statement = sa.text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
                return await other.scalar(statement)

            await until(waits)
            assert not opening.done()
        await (await opening).close()
        await engine.dispose()


# A server that goes away.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT], ids=["shutdown", "crash"])
async def test_a_store_whose_server_restarts_says_so_at_once_and_then_goes_on_with_all_it_had(own, number):
    with own.database() as url:
        database = await opened(url)
        async with closing(database):
            epoch = await lead(database)
            store = database.jobs(epoch)
            await asyncio.gather(*(store.submit(job(f"before-{n}"), spec_hash="h") for n in range(20)))
            own.stop(number)
            begun = time.monotonic()
            for operation in (lambda: store.submit(job("during"), spec_hash="h"), store.jobs, database.look):
                with pytest.raises(Unavailable, match="the job store cannot be used: ") as caught:
                    await operation()
                assert "\n" not in str(caught.value)
            assert time.monotonic() - begun < 2
            own.start()
            assert (await store.submit(job("after"), spec_hash="h")).created
            await database.renew(epoch, lease_seconds=10)
            found = {found.job_id for found in await store.jobs()}
            assert found == {"after", *(f"before-{n}" for n in range(20))}


async def test_a_restart_that_no_operation_met_is_not_noticed(own):
    with own.database() as url:
        database = await opened(url)
        async with closing(database):
            epoch = await lead(database)
            store = database.jobs(epoch)
            await asyncio.gather(*(store.submit(job(f"before-{n}"), spec_hash="h") for n in range(4)))
            own.stop()
            own.start()
            assert (await store.submit(job("after"), spec_hash="h")).created
            await database.renew(epoch, lease_seconds=10)
            assert len(await store.jobs()) == 5


async def test_a_server_that_is_frozen_is_unavailable_in_time_and_the_store_goes_on_when_it_wakes(own):
    with own.database() as url:
        database = await opened(url, timeout_seconds=1)
        async with closing(database):
            store = database.jobs(await lead(database))
            await store.submit(job("before"), spec_hash="h")
            with own.frozen():
                begun = time.monotonic()
                with pytest.raises(Unavailable):
                    await store.submit(job("during"), spec_hash="h")
                assert time.monotonic() - begun < 6
            assert (await store.submit(job("after"), spec_hash="h")).created
            assert "before" in {found.job_id for found in await store.jobs()}


async def test_a_statement_that_works_too_long_and_a_lock_that_is_held_too_long_are_unavailable(url):
    database = await opened(url, timeout_seconds=0.4)
    other = await opened(url)
    async with closing(database, other):
        epoch = await lead(database)
        with pytest.raises(Unavailable, match="statement timeout"):
            await database.write(epoch, "test", lambda connection: connection.execute(sa.text("SELECT pg_sleep(20)")))
        await database.jobs(epoch).submit(job("held"), spec_hash="h")
        held, done = asyncio.Event(), asyncio.Event()

        async def hold(connection):
            await connection.execute(sa.text("SELECT 1 FROM jobs FOR UPDATE"))
            held.set()
            await done.wait()

        holding = asyncio.ensure_future(other.write(epoch, "test", hold))
        await held.wait()
        with pytest.raises(Unavailable, match="lock timeout"):
            await database.jobs(epoch).append_logs("held", [])
        done.set()
        await holding


async def test_more_work_than_connections_waits_and_then_fails(url):
    database = await opened(url, connections=2, timeout_seconds=0.5)
    async with closing(database):
        epoch = await lead(database)
        outcomes = await asyncio.gather(
            *(
                database.write(epoch, "test", lambda connection: connection.execute(sa.text("SELECT pg_sleep(0.3)")))
                for _ in range(8)
            ),
            return_exceptions=True,
        )
        refused = [outcome for outcome in outcomes if isinstance(outcome, ShoalError)]
        assert {type(outcome) for outcome in refused} == {Unavailable}
        assert 4 <= len(outcomes) - len(refused) < 8
        assert await database.jobs(epoch).jobs() == ()


# A COMMIT whose answer is lost.


class Wire:
    """Between a store and its server. `cut` ends every connection at the next COMMIT: before it, or before its answer.

    A fake network, because a real one cannot be told when to break.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self.cut = ""  # "before" or "after", for one COMMIT
        self.cuts = 0
        self.refuses = False
        self._links: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Wire":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for link in list(self._links):
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        link.add_done_callback(self._links.discard)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError), contextlib.closing(writer):
            if self.refuses:
                return
            answers, to_server = await asyncio.open_connection("127.0.0.1", self._port)
            with contextlib.closing(to_server):
                back = asyncio.ensure_future(self._pass(answers, writer))
                forth = asyncio.ensure_future(self._pass_until_cut(reader, to_server, back))
                await asyncio.wait({back, forth}, return_when=asyncio.FIRST_COMPLETED)
                back.cancel()
                forth.cancel()
                await asyncio.gather(back, forth, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)

    async def _pass_until_cut(
        self, reader: asyncio.StreamReader, to_server: asyncio.StreamWriter, back: "asyncio.Task[None]"
    ) -> None:
        while data := await reader.read(65536):
            if self.cut and b"COMMIT" in data:
                how, self.cut = self.cut, ""
                self.cuts += 1
                if how == "after":
                    back.cancel()  # the answer goes nowhere; that it was committed shows in the database
                    to_server.write(data)
                    await to_server.drain()
                return
            to_server.write(data)


@contextlib.asynccontextmanager
async def through_a_wire(postgres: PostgresServer, url: str, **options: float) -> AsyncIterator[tuple[Wire, str]]:
    async with Wire(postgres.port) as wire:
        yield wire, postgres.url(url.rpartition("/")[2], port=wire.port)


async def test_a_write_whose_answer_was_lost_is_found_to_have_happened(postgres, url):
    async with through_a_wire(postgres, url) as (wire, address):
        database = await opened(address)
        async with closing(database):
            store = database.jobs(await lead(database))
            wire.cut = "after"
            submission = await store.submit(job("a", key="k"), spec_hash="h")
            assert (wire.cuts, submission.created) == (1, True)
            assert [found.job_id for found in await store.jobs()] == ["a"]
            assert len(await store.events("a")) == 1


async def test_a_write_whose_commit_was_lost_is_found_not_to_have_happened(postgres, url):
    async with through_a_wire(postgres, url) as (wire, address):
        database = await opened(address)
        async with closing(database):
            store = database.jobs(await lead(database))
            wire.cut = "before"
            with pytest.raises(Unavailable) as caught:
                await store.submit(job("a", key="k"), spec_hash="h")
            assert wire.cuts == 1
            assert not isinstance(caught.value, Deposed)
            assert await store.jobs() == ()
            assert (await store.submit(job("a", key="k"), spec_hash="h")).created


async def test_a_master_that_cannot_find_out_what_became_of_its_write_must_stop(postgres, url):
    async with through_a_wire(postgres, url) as (wire, address):
        database = await opened(address, timeout_seconds=0.5, lease_seconds=1)
        async with closing(database):
            store = database.jobs(await lead(database))
            wire.cut, wire.refuses = "after", True
            with pytest.raises(Deposed, match="must read it anew") as caught:
                await store.submit(job("a"), spec_hash="h")
            assert "\n" not in str(caught.value)


# The lead.


async def test_a_lease_that_runs_on_is_not_taken_and_one_that_has_ended_is(url):
    first, second = await opened(url), await opened(url)
    async with closing(first, second):
        epoch = await lead(first, by="m1", lease_seconds=0.5)
        with pytest.raises(Stale, match="master m1 on host has it, in epoch 1"):
            await lead(second, by="m2")
        await first.renew(epoch, lease_seconds=1.0)
        begun = time.monotonic()

        async def take():
            with contextlib.suppress(Stale):
                return await lead(second, by="m2")

        assert await until(take) == epoch + 1
        assert 0.9 < time.monotonic() - begun < 3
        with pytest.raises(Deposed):
            await first.renew(epoch, lease_seconds=1.0)


async def test_a_lead_that_was_resigned_is_taken_at_once(url):
    first, second = await opened(url), await opened(url)
    async with closing(first, second):
        epoch = await lead(first, by="m1", lease_seconds=1_000)
        await first.resign(epoch)
        await first.renew(epoch, lease_seconds=1_000)  # was under way
        assert await lead(second, by="m2") == epoch + 1


async def test_a_leader_is_attended_while_its_session_lasts_and_again_when_it_is_back(postgres, url):
    first, second = await opened(url), await opened(url)
    async with closing(first, second):
        epoch = await lead(first)
        await first.renew(epoch, lease_seconds=1_000)
        assert (await second.look()).attended
        postgres.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            database=url.rpartition("/")[2],
        )

        async def alone():
            return not (await second.look()).attended

        await until(alone)
        await first.renew(epoch, lease_seconds=1_000)
        assert (await second.look()).attended


async def test_a_new_epoch_begins_after_the_writes_under_way_and_with_them(url):
    first, second = await opened(url), await opened(url)
    async with closing(first, second):
        epoch = await lead(first, lease_seconds=0)
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slow(connection):
            begun.set()
            await go_on.wait()
            await connection.execute(sa.text("UPDATE alembic_version SET version_num = version_num"))
            return "written"

        writing = asyncio.ensure_future(first.write(epoch, "test", slow))
        await begun.wait()
        await first.renew(epoch, lease_seconds=0)  # waits for no write
        taking = asyncio.ensure_future(lead(second, by="m2"))

        async def taker_waits():
            statement = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            return await first.read(lambda connection: connection.scalar(statement))

        await until(taker_waits)
        assert not taking.done()
        go_on.set()
        assert await writing == "written"
        assert await taking == epoch + 1


async def test_a_master_that_stands_still_within_a_write_does_not_hold_up_the_next_one(url):
    first, second = await opened(url, lease_seconds=1), await opened(url)
    async with closing(first, second):
        epoch = await lead(first, lease_seconds=1)
        woken = asyncio.Event()

        async def frozen(connection):
            await woken.wait()
            await connection.execute(sa.text("DELETE FROM alembic_version"))

        writing = asyncio.ensure_future(first.write(epoch, "test", frozen))
        begun = time.monotonic()

        async def take():
            with contextlib.suppress(Stale, Unavailable):
                return await lead(second, by="m2")

        assert await until(take) == epoch + 1
        assert time.monotonic() - begun < 2
        woken.set()
        with pytest.raises(Unavailable):
            await writing
        statement = sa.text("SELECT count(*) FROM alembic_version")
        assert await second.read(lambda connection: connection.scalar(statement)) == 1
