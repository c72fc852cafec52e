"""An event loop on virtual time, and processes that can be killed or frozen between any two of their steps."""

import asyncio
import contextlib
import contextvars
import heapq
from collections.abc import Callable, Coroutine
from typing import Any

from greenlet import getcurrent, greenlet

PROCESS: contextvars.ContextVar["Process"] = contextvars.ContextVar("simulated process")
LONGEST_RUN = 400_000  # steps of the loop without an end: a program that spins without letting time pass


class Stuck(Exception):
    """Nothing is left to happen, or too much happens at one moment."""


class Process:
    """What lives and dies at once: its tasks, its timers, its children. Its name stays the same over restarts."""

    def __init__(self, loop: "VirtualLoop", name: str, *, parent: "Process | None" = None) -> None:
        self.loop = loop
        self.name = name
        self.dead = False
        self.frozen = False
        self.children: list[Process] = []
        self.tasks: list[asyncio.Task[Any]] = []  # kept: a dead process' tasks must not be tidied up half-way
        self.signals: dict[int, Callable[[], Any]] = {}
        self.on_death: list[Callable[[], None]] = []
        self.unix_skew = 0.0  # of its wall clock, seconds
        self._held: list[asyncio.Handle] = []
        self.context = contextvars.Context()
        self.context.run(PROCESS.set, self)
        if parent is not None:
            parent.children.append(self)

    @property
    def alive(self) -> bool:
        return not self.dead

    def spawn(self, work: Coroutine[Any, Any, Any], name: str = "main") -> "asyncio.Task[Any]":
        return self.loop.create_task(work, name=f"{self.name}:{name}", context=self.context)

    def kill(self) -> None:
        """As by SIGKILL: nothing of it runs any more, no `finally` either."""
        if self.dead:
            return
        self.dead = True
        self._held.clear()
        for child in self.children:
            child.kill()
        for hook in self.on_death:
            hook()

    def freeze(self) -> None:
        """As by SIGSTOP: what would happen in it waits."""
        self.frozen = True
        for child in self.children:
            child.freeze()

    def thaw(self) -> None:
        self.frozen = False
        for child in self.children:
            child.thaw()
        self.loop.resume(self._held)
        self._held = []

    def hold(self, handle: asyncio.Handle) -> None:
        self._held.append(handle)


class VirtualLoop(asyncio.BaseEventLoop):
    """Time passes only when nothing is left to do now. Nothing here waits for the world outside."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 1000.0
        self.steps = 0
        self.fibers: list[greenlet] = []
        self.set_task_factory(_make_task)

    def time(self) -> float:
        return self._now

    def resume(self, handles: list[asyncio.Handle]) -> None:
        self._ready.extend(handles)  # type: ignore[attr-defined]

    def add_signal_handler(self, sig: int, callback: Callable[..., Any], *args: Any) -> None:
        PROCESS.get().signals[sig] = lambda: callback(*args)

    def remove_signal_handler(self, sig: int) -> bool:
        return PROCESS.get().signals.pop(sig, None) is not None

    def _process_events(self, event_list: Any) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps."""

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled  # type: ignore[attr-defined]
        if not ready:
            while scheduled and scheduled[0]._cancelled:
                heapq.heappop(scheduled)._scheduled = False
            if not scheduled:
                raise Stuck("nothing is left to happen")
            self._now = max(self._now, scheduled[0]._when)
            while scheduled and scheduled[0]._when <= self._now:
                timer = heapq.heappop(scheduled)
                timer._scheduled = False
                if not timer._cancelled:
                    ready.append(timer)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(PROCESS)
            if process is not None:
                if process.dead:
                    continue
                if process.frozen:
                    process.hold(handle)
                    continue
            self.steps += 1
            handle._run()
        if self.steps > LONGEST_RUN:
            raise Stuck(f"more than {LONGEST_RUN} steps")

    def finish(self) -> None:
        """Lets go of every task that is left; nothing of them runs any more."""
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._ready.clear()  # type: ignore[attr-defined]
        self._scheduled.clear()  # type: ignore[attr-defined]
        self.set_exception_handler(lambda _loop, _context: None)
        self._asyncgens.clear()  # type: ignore[attr-defined]
        self.close()
        for fiber in self.fibers:  # the garbage collector does not see what a fiber's stack holds
            while not fiber.dead:
                with contextlib.suppress(Exception):  # its last words are of no interest
                    fiber.throw()
        self.fibers.clear()


async def in_fiber(run: Callable[..., Any], *arguments: Any) -> Any:
    """What `run` returns: code that blocks, by `wait_for`, while other tasks go on."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    fiber = greenlet(run)
    fiber.gr_context = getcurrent().gr_context
    loop.fibers.append(fiber)
    try:
        result = fiber.switch(*arguments)
        while not fiber.dead:
            try:
                value = await result
            except BaseException as error:  # noqa: BLE001  (goes to the code that waits)
                result = fiber.throw(error)
            else:
                result = fiber.switch(value)
    finally:
        if fiber.dead:
            loop.fibers.remove(fiber)
    return result


def wait_for(work: Any) -> Any:
    """In a fiber: blocks until the coroutine or future has its result."""
    parent = getcurrent().parent
    assert parent is not None, "only code that runs in a fiber can block"
    return parent.switch(work)


def _make_task(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> "asyncio.Task[Any]":
    task = asyncio.Task(coro, loop=loop, **options)
    context = options.get("context")
    process = PROCESS.get(None) if context is None else context.get(PROCESS)
    if process is not None:
        process.tasks.append(task)
    return task
