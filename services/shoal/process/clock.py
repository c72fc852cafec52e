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


def awake_or_asleep_seconds() -> float:
    """For the time since something: unlike the monotonic clock, it goes on while the machine is suspended.

    Whoever must not act on what it heard too long ago asks this one: after a night's sleep the monotonic clock says
    that the lease has just been renewed. Whoever waits for others asks the monotonic one, so that its own sleep is not
    taken for their silence.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


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
