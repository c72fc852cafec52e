"""When to ask again: exponential backoff with jitter, within a budget of time without an answer."""

import random
from dataclasses import dataclass, field
from typing import Protocol

from shoal.process.clock import Clock

FIRST_SECONDS = 0.05
LONGEST_SECONDS = 0.5  # a master that is back is noticed within this
TELL_AFTER_SECONDS = 1.0  # shorter absences, as of a pod that is replaced, are nobody's business


class Listener(Protocol):
    """Who wants to know why nothing happens. Called from the thread that waits."""

    def waiting(self, reason: str, seconds: float) -> None:
        """Nobody answers, because of `reason`; it is asked again for at most `seconds` more."""

    def answers(self) -> None:
        """After `waiting`: the other side is there again."""


@dataclass(slots=True)
class Patience:
    """One call's, or one stream's, patience with a master that does not answer."""

    clock: Clock
    budget_seconds: float
    listener: Listener | None = None
    _since: float | None = field(default=None, init=False)
    _tries: int = field(default=0, init=False)
    _told: bool = field(default=False, init=False)

    def asked(self) -> None:
        """The budget runs from now, not from the first failure: for calls whose tries may last long themselves."""
        self._since = self.clock.monotonic()

    def answered(self) -> None:
        """The other side is there: the budget is whole again."""
        self._since = None
        self._tries = 0
        if self._told and self.listener is not None:
            self.listener.answers()
        self._told = False

    def pause_seconds(self, reason: str, *, at_least: float = 0.0) -> float | None:
        """How long to wait before the next try; None when the budget is used up, or would be by `at_least`."""
        now = self.clock.monotonic()
        if self._since is None:
            self._since = now
        left = self._since + self.budget_seconds - now
        if left <= at_least:
            return None
        if not self._told and self.listener is not None and now - self._since >= TELL_AFTER_SECONDS:
            self._told = True
            self.listener.waiting(reason, left)
        pause = min(FIRST_SECONDS * 2.0**self._tries, LONGEST_SECONDS)
        self._tries += 1
        return min(max(pause, 2.0 * at_least) * random.uniform(0.5, 1.0), left)
