"""The train/held-out split of sources that have no test split of their own."""

from dataclasses import dataclass

import numpy as np

from shoal.core.errors import InvalidInput
from shoal.core.seeds import derive_seed
from shoal.data.sampler import permutation
from shoal.data.split import Integers


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitPositions:
    """Positions in the source, each part ascending; every one is in exactly one part."""

    train: Integers
    heldout: Integers


def split_positions(samples: int, *, heldout_fraction: float, split_seed: int) -> SplitPositions:
    """Draws round(samples * heldout_fraction) samples to hold out. Raises InvalidInput if none is left to train on."""
    heldout = round(samples * heldout_fraction)
    if heldout >= samples:
        raise InvalidInput(
            f"data.heldout_fraction: {heldout_fraction} of {samples} samples leaves none to train on",
            field="data.heldout_fraction",
        )
    order = permutation(samples, derive_seed(split_seed, "split"))
    return SplitPositions(train=np.sort(order[heldout:]), heldout=np.sort(order[:heldout]))
