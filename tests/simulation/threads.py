"""For threads, locks and clocks: the parameter server's blocking code runs in fibers of one thread."""

import asyncio
from collections.abc import Callable
from typing import Any

from tests.simulation.loop import PROCESS, Process, in_fiber, wait_for

UNIX_ZERO = 1_700_000_000.0
SHORTEST_SECONDS = 1e-4  # of a wait: virtual time would not pass in a shorter one


def now() -> float:
    """Virtual monotonic seconds."""
    return asyncio.get_running_loop().time()


class SimTime:
    """Stands in for the module `time`, and is a `Clock`: monotonic time is everybody's, wall clocks may differ."""

    monotonic = staticmethod(now)
    perf_counter = staticmethod(now)

    @staticmethod
    def time() -> float:
        process = PROCESS.get(None)
        return UNIX_ZERO + now() + (process.unix_skew if process is not None else 0.0)

    unix = time

    @staticmethod
    def time_ns() -> int:
        return int(SimTime.time() * 1e9)


class Lock:
    """Control only passes on in `Condition` and `Event`, so there is nothing to exclude."""

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *_: object) -> None:
        pass


class Condition(Lock):
    def __init__(self, lock: object = None) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def notify_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    notify = notify_all

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        return wait_for(self.until(predicate, timeout)) if not (found := predicate()) else found

    async def until(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + max(timeout, SHORTEST_SECONDS)
        while not (found := predicate()):
            if deadline is not None and loop.time() >= deadline:
                return found
            future: asyncio.Future[None] = loop.create_future()
            self._waiting.append(future)
            timer = None if deadline is None else loop.call_at(deadline, _release, future)
            try:
                await future
            finally:
                if timer is not None:
                    timer.cancel()
        return found


def _release(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


class Event:
    def __init__(self) -> None:
        self._is_set = False
        self._changed = Condition()

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        self._changed.notify_all()

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        return bool(self._changed.wait_for(lambda: self._is_set, timeout))


class Thread:
    def __init__(self, name: str, run: Callable[[], None]) -> None:
        self.task = process().spawn(in_fiber(run), name)

    def join(self, timeout: float | None = None) -> None:
        wait_for(asyncio.wait({self.task}, timeout=timeout))

    def is_alive(self) -> bool:
        return not self.task.done()


class SimThreading:
    """Stands in for the module `threading`."""

    Lock = RLock = Lock
    Condition = Condition
    Event = Event


def start_thread(name: str, run: Callable[[], None], *, essential: bool = True) -> Thread:
    """Stands in for `shoal.process.threads.start_thread`."""
    return Thread(name, run)


def process() -> Process:
    return PROCESS.get()
