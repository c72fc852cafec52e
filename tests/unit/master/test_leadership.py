"""When a master takes the lead, keeps it and gives it up. The store's part is in tests/contract and integration."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from shoal.core.errors import Deposed, Stale, Unavailable
from shoal.master.leadership import EXPIRED, UNATTENDED, VACANT, Leadership, StandBy, Take, decide
from shoal.master.store.base import Database, JobStore, Leader
from shoal.process.clock import Clock, FakeClock, SystemClock


def leader(*, incarnation: str = "other", seconds_left: float = 5.0, attended: bool = True, epoch: int = 3) -> Leader:
    return Leader(epoch=epoch, incarnation=incarnation, host="host-b", seconds_left=seconds_left, attended=attended)


@pytest.mark.parametrize(
    ("seen", "unattended_seconds", "decision"),
    [
        (leader(incarnation=""), 0, Take(reason=VACANT)),
        (leader(incarnation="", attended=False), 9, Take(reason=VACANT)),
        (leader(seconds_left=0), 0, Take(reason=EXPIRED)),
        (leader(seconds_left=-7, attended=False), 9, Take(reason=EXPIRED)),
        (leader(seconds_left=0.1), 0, StandBy(reason="standby: master other on host-b leads, in epoch 3")),
        (leader(attended=False), 1.4, StandBy(reason="standby: master other on host-b leads, in epoch 3")),
        (leader(attended=False), 1.5, Take(reason=UNATTENDED, unattended=True)),
    ],
)
def test_a_master_takes_the_lead_that_nobody_holds(seen, unattended_seconds, decision):
    assert decide(seen, unattended_seconds=unattended_seconds) == decision


class ScriptedDatabase(Database):
    """A fake because no real database can be told when to be slow, to refuse and to change its leader."""

    def __init__(self, *seen: Leader | Exception) -> None:
        self.seen = list(seen)  # by the looks to come; the last one stays
        self.taken: list[Leader] = []
        self.refusals: list[Exception] = []  # of the takes to come
        self.renewing: Callable[[], Awaitable[None]] = self._nothing
        self.renewals = asyncio.Semaphore(0)
        self.resigned: list[int] = []

    async def _nothing(self) -> None: ...

    async def look(self) -> Leader:
        seen = self.seen.pop(0) if len(self.seen) > 1 else self.seen[0]
        if isinstance(seen, Exception):
            raise seen
        return seen

    async def take(
        self, seen: Leader, *, incarnation: str, host: str, lease_seconds: float, unattended: bool = False
    ) -> int:
        if self.refusals:
            raise self.refusals.pop(0)
        self.taken.append(seen)
        return seen.epoch + 1

    async def renew(self, epoch: int, *, lease_seconds: float) -> None:
        await self.renewing()
        self.renewals.release()

    async def resign(self, epoch: int) -> None:
        await self.renewing()
        self.resigned.append(epoch)

    def jobs(self, epoch: int) -> JobStore:
        raise NotImplementedError

    async def close(self) -> None: ...


class Part:
    """A master's leadership, and what was heard of it."""

    def __init__(self, database: Database, *, clock: Clock | None = None, lease_seconds: float = 10.0) -> None:
        self.waits: list[str] = []
        self.lost: asyncio.Future[Deposed] = asyncio.get_running_loop().create_future()
        self.leadership = Leadership(
            database=database,
            clock=clock or SystemClock(),
            incarnation="this",
            host="host-a",
            lease_seconds=lease_seconds,
            lost=lambda error: self.lost.done() or self.lost.set_result(error),
        )

    async def win(self) -> int:
        async with asyncio.timeout(20):
            await self.leadership.win(waits=self.waits.append)
        return self.leadership.epoch


async def test_the_first_master_leads_without_a_wait():
    part = Part(ScriptedDatabase(leader(incarnation="", epoch=0)))
    assert await part.win() == 1
    assert part.waits == []


async def test_a_standby_says_for_whom_it_waits_and_leads_when_the_lease_ends():
    database = ScriptedDatabase(leader(), leader(seconds_left=0.2), leader(seconds_left=-0.1))
    part = Part(database)
    assert await part.win() == 4
    assert part.waits == ["standby: master other on host-b leads, in epoch 3"] * 2


async def test_a_standby_waits_for_a_store_that_is_gone():
    part = Part(ScriptedDatabase(Unavailable("no store"), leader(incarnation="")))
    assert await part.win() == 4
    assert part.waits == ["no store"]


async def test_a_standby_that_comes_second_stays_one():
    database = ScriptedDatabase(leader(incarnation=""), leader(incarnation="quick", epoch=4), leader(seconds_left=0))
    database.refusals = [Stale("quick was quicker")]
    part = Part(database)
    await part.win()
    assert part.waits == ["standby: quick was quicker", "standby: master quick on host-b leads, in epoch 4"]


async def test_a_leader_is_not_blamed_for_the_absence_of_an_earlier_one():
    clock = FakeClock()

    class Advancing(ScriptedDatabase):
        async def look(self) -> Leader:
            clock.advance(1.0)
            return await super().look()

    gone, fresh, there = leader(attended=False), leader(attended=False, epoch=4), leader(epoch=4)
    database = Advancing(gone, gone, fresh, there, leader(attended=False, epoch=4))
    await Part(database, clock=clock).win()
    assert database.taken == [leader(attended=False, epoch=4)]
    assert clock.monotonic() == FakeClock().monotonic() + 7  # 4 looks, then 2 seconds of absence


async def test_a_session_that_comes_back_in_time_is_no_death():
    clock = FakeClock()

    class Advancing(ScriptedDatabase):
        async def look(self) -> Leader:
            clock.advance(1.0)
            return await super().look()

    database = Advancing(*[leader(attended=False), leader()] * 3, leader(seconds_left=0))
    await Part(database, clock=clock).win()
    assert database.taken == [leader(seconds_left=0)]


async def kept(part: Part) -> "asyncio.Task[None]":
    await part.win()
    return asyncio.ensure_future(part.leadership.keep())


async def test_a_leader_that_another_one_replaced_gives_up_at_once():
    database = ScriptedDatabase(leader(incarnation=""))
    part = Part(database)

    async def refuse() -> None:
        raise Deposed("another one leads")

    database.renewing = refuse
    await (await kept(part))
    assert str(part.lost.result()) == "another one leads"


@pytest.mark.parametrize("store", ["refuses", "hangs"])
async def test_a_leader_gives_up_when_it_could_not_renew_for_three_quarters_of_its_lease(store):
    database = ScriptedDatabase(leader(incarnation=""))
    part = Part(database, lease_seconds=0.8)
    keeping = await kept(part)
    await database.renewals.acquire()
    begun = time.monotonic()

    async def fail() -> None:
        if store == "hangs":
            await asyncio.Event().wait()
        raise Unavailable("no store")

    database.renewing = fail
    async with asyncio.timeout(20):
        await keeping
    assert time.monotonic() - begun > 0.75 * 0.8 - 0.2
    assert "could not renew its lease" in str(part.lost.result())


async def test_a_leader_that_can_renew_again_in_time_goes_on():
    database = ScriptedDatabase(leader(incarnation=""))
    part = Part(database, lease_seconds=30)
    failures = [Unavailable("no store"), Unavailable("no store")]

    async def fail_twice() -> None:
        if failures:
            raise failures.pop()

    database.renewing = fail_twice
    keeping = await kept(part)
    async with asyncio.timeout(20):
        await database.renewals.acquire()
    assert not part.lost.done()
    keeping.cancel()


async def test_a_leader_that_was_frozen_and_that_nobody_replaced_goes_on():
    clock = FakeClock()
    database = ScriptedDatabase(leader(incarnation=""))
    part = Part(database, clock=clock)
    keeping = await kept(part)
    await database.renewals.acquire()
    clock.advance(1_000)
    async with asyncio.timeout(20):
        await database.renewals.acquire()
    assert not part.lost.done()
    keeping.cancel()


async def test_a_leader_that_stops_resigns_once_and_does_not_mind_a_store_that_is_gone():
    database = ScriptedDatabase(leader(incarnation=""))
    part = Part(database)
    await part.leadership.resign()  # it does not lead
    assert database.resigned == []
    await part.win()
    await part.leadership.resign()
    await part.leadership.resign()
    assert database.resigned == [4]

    async def fail() -> None:
        raise Unavailable("no store")

    other = Part(database)
    await other.win()
    database.renewing = fail
    await other.leadership.resign()
    other.leadership.lose(Deposed("what comes after the end"))
    assert not other.lost.done()
