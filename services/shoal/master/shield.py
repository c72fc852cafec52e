"""Work that changes state runs to its end, even if the caller hangs up in the middle."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


async def to_the_end(work: Coroutine[Any, Any, _T], *, running: "set[asyncio.Future[Any]] | None" = None) -> _T:
    """The result of `work`, which a cancellation of the caller does not reach. `running` holds it while it runs."""
    task = asyncio.ensure_future(work)
    if running is not None:
        running.add(task)
        task.add_done_callback(running.discard)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_consume)
        raise


def _consume(task: "asyncio.Task[Any]") -> None:
    """Nobody is left to hear of an error; what matters was logged where it was raised."""
    if not task.cancelled():
        task.exception()
