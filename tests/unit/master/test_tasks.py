"""Background tasks: named, guarded, and stopped together."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from shoal.master.shield import to_the_end
from shoal.master.tasks import Tasks


@pytest.fixture
async def tasks() -> AsyncIterator[Tasks]:
    tasks = Tasks()
    yield tasks
    await tasks.close()


async def test_a_task_that_breaks_is_told(tasks):
    async def breaks() -> None:
        raise ValueError("a fault")

    tasks.start("breaks", breaks())
    assert isinstance(await asyncio.wait_for(asyncio.shield(tasks.failed), 5), ValueError)


async def test_a_task_that_ends_or_is_cancelled_is_no_fault(tasks):
    async def ends() -> None:
        return

    tasks.start("ends", ends())
    tasks.start("waits", asyncio.Event().wait())
    await asyncio.sleep(0)
    tasks.cancel("waits")
    tasks.cancel("unknown")
    await asyncio.sleep(0)
    assert not tasks.failed.done()
    assert not tasks.runs("ends")
    assert not tasks.runs("waits")


async def test_a_name_is_taken_while_its_task_runs_and_no_longer(tasks):
    tasks.start("once", asyncio.sleep(0))
    with pytest.raises(RuntimeError, match="once"):
        tasks.start("once", asyncio.sleep(0))
    while tasks.runs("once"):
        await asyncio.sleep(0)
    tasks.start("once", asyncio.sleep(0))


async def test_a_task_that_cancels_itself_by_name_goes_on(tasks):
    reached = asyncio.Event()

    async def work() -> None:
        tasks.cancel("self")
        await asyncio.sleep(0)
        reached.set()

    tasks.start("self", work())
    await asyncio.wait_for(reached.wait(), 5)


async def test_what_must_run_to_its_end_does_so_when_the_caller_is_cancelled():
    gate, done = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await gate.wait()
        done.set()

    running: set[asyncio.Future[None]] = set()
    caller = asyncio.ensure_future(to_the_end(work(), running=running))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert len(running) == 1
    gate.set()
    await asyncio.wait_for(done.wait(), 5)
    await asyncio.sleep(0)
    assert not running
