"""Which master may ask: the one of the highest epoch that has spoken here."""

import threading

from shoal.core.errors import Deposed


class MasterEpochs:
    """The receiver's side of the masters' fencing token; thread-safe. 0 is a caller that is no master."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._highest = 0

    @property
    def highest(self) -> int:
        return self._highest

    def admits(self, epoch: int) -> bool:
        """False for a message of a master that has been deposed."""
        with self._lock:
            self._highest = max(self._highest, epoch)
            return epoch in (0, self._highest)

    def check(self, epoch: int) -> None:
        """Raises Deposed."""
        if not self.admits(epoch):
            raise Deposed(f"the master that asks led in epoch {epoch}: another leads now, in epoch {self._highest}")
