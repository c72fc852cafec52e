"""So many of something at a time, and no more: whoever is turned away is told when to come again."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shoal.core.errors import Exhausted

_RETRY_SECONDS = 1.0


class Bound:
    def __init__(self, what: str, limit: int) -> None:
        self._what = what
        self._limit = limit
        self._open = 0

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Raises Exhausted when all are taken: nobody waits in a queue that grows."""
        if self._open >= self._limit:
            raise Exhausted(
                f"all {self._limit} {self._what} of this master are taken; try again later",
                retry_after_seconds=_RETRY_SECONDS,
            )
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
