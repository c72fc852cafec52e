"""Who waits for a job to change: watchers and readers of logs."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Changes:
    """`touch` wakes every subscriber of the job. A subscriber that clears first and reads then misses nothing."""

    def __init__(self) -> None:
        self._subscribers: dict[str, set[asyncio.Event]] = {}

    def touch(self, job_id: str) -> None:
        for event in self._subscribers.get(job_id, ()):
            event.set()

    @contextmanager
    def subscribe(self, job_id: str) -> Iterator[asyncio.Event]:
        event = asyncio.Event()
        self._subscribers.setdefault(job_id, set()).add(event)
        try:
            yield event
        finally:
            self._subscribers[job_id].discard(event)
            if not self._subscribers[job_id]:
                del self._subscribers[job_id]
