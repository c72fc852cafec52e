"""When to ask again: exponential backoff with jitter, within a budget of time without an answer."""

import random
from dataclasses import dataclass, field

from shoal.process.clock import Clock

FIRST_SECONDS = 0.05
LONGEST_SECONDS = 2.0


@dataclass(slots=True)
class Patience:
    """One call's, or one stream's, patience with a master that does not answer."""

    clock: Clock
    budget_seconds: float
    _since: float | None = field(default=None, init=False)
    _tries: int = field(default=0, init=False)

    def answered(self) -> None:
        """The other side is there: the budget is whole again."""
        self._since = None
        self._tries = 0

    def pause_seconds(self) -> float | None:
        """How long to wait before the next try; None when the budget is used up."""
        now = self.clock.monotonic()
        if self._since is None:
            self._since = now
        left = self._since + self.budget_seconds - now
        if left <= 0:
            return None
        pause = min(FIRST_SECONDS * 2.0**self._tries, LONGEST_SECONDS)
        self._tries += 1
        return min(pause * random.uniform(0.5, 1.0), left)
