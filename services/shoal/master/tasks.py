"""Named asyncio tasks with a guard: one that ends by an unexpected exception takes the master down, loudly."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from shoal.process.logs import get_logger


class Tasks:
    """Every background task of the master. `failed` ends when one of them broke; `close` cancels the rest."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Task[None]] = {}
        self._log = get_logger()
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Starts `work`. At most one task has a name at a time; a second one is a fault of the caller."""
        if self.runs(name):
            work.close()
            raise RuntimeError(f"task {name} runs already")
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running[name] = task
        task.add_done_callback(self._ended)

    def runs(self, name: str) -> bool:
        task = self._running.get(name)
        return task is not None and not task.done()

    def cancel(self, name: str) -> None:
        """Asks a task to end; does nothing if it has ended, or for a task that cancels itself."""
        task = self._running.get(name)
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            del self._running[name]

    def fail(self, error: BaseException) -> None:
        """The master must not go on. The first reason counts."""
        if not self.failed.done():
            self.failed.set_result(error)

    async def close(self) -> None:
        tasks = list(self._running.values())
        self._running.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not self.failed.done():
            self.failed.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._running.get(task.get_name()) is task:
            del self._running[task.get_name()]
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._log.error("task_failed", task=task.get_name(), exc_info=error)
            self.fail(error)
