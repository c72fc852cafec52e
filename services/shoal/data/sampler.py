"""Which sample stands at which position of an epoch's shuffle: a function of (seed, epoch) and nothing else.

There is no state to save: a worker that joins at any step asks for the same positions and gets the same samples.
"""

import numpy as np
import numpy.typing as npt

from shoal.core.plan import Unit
from shoal.core.seeds import derive_seed


def permutation(length: int, key: int) -> npt.NDArray[np.int64]:
    """A permutation of 0..length-1 drawn by `key` (0..2**64-1): the stable order of `length` raw Philox4x64-10 draws.

    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". numpy promises the raw stream of a bit
    generator to stay as it is (NEP 19), which it does not of Generator.permutation.
    """
    draws = np.random.Philox(key=key).random_raw(length)
    return np.argsort(draws, kind="stable").astype(np.int64, copy=False)


class Sampler:
    """The shuffles of one job's training split. Not for use by several threads at once."""

    def __init__(self, seed: int, samples: int) -> None:
        """`seed` is the job's (`training.seed`); `samples` the length of the training split."""
        self._seed = seed
        self._samples = samples
        self._epochs: dict[int, npt.NDArray[np.int64]] = {}  # the last two asked for: a step may be asked for again

    def indices(self, unit: Unit) -> npt.NDArray[np.int64]:
        """Positions [first, last) of the epoch's shuffle, int64 [unit.samples], read-only."""
        order = self._epochs.get(unit.epoch)
        if order is None:
            order = permutation(self._samples, derive_seed(self._seed, "epoch", unit.epoch))
            order.flags.writeable = False
            if len(self._epochs) == 2:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[unit.epoch] = order
        return order[unit.first : unit.last]
