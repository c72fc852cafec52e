"""Time as an argument: roles get a `Clock`, tests get a `FakeClock`."""

import time
from typing import Protocol


class Clock(Protocol):
    def monotonic(self) -> float:
        """Seconds for durations; never goes back."""

    def unix(self) -> float:
        """Seconds since 1970 for people."""


class SystemClock:
    def monotonic(self) -> float:
        return time.monotonic()

    def unix(self) -> float:
        return time.time()


class FakeClock:
    """Stands still until it is told to move."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self._now = now

    def monotonic(self) -> float:
        return self._now

    def unix(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds
