"""Samples in memory: one split, and a dataset of two."""

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from shoal.core.facts import DatasetFacts

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


class Split(Protocol):
    """Samples that can be asked for by position."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def batch(self, indices: Integers) -> tuple[Floats, Integers]:
        """(x float32 [n, *input_shape], y int64 [n]) of the samples at `indices` [n], in that order; new arrays."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class FloatSplit:
    """Samples held as they are asked for: quick, for small sets."""

    x: Floats
    y: Integers

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, indices: Integers) -> tuple[Floats, Integers]:
        return self.x.take(indices, axis=0), self.y.take(indices)


@dataclass(frozen=True, kw_only=True, eq=False)
class ByteSplit:
    """Images held as bytes, a quarter of the memory; pixel values 0..255 become 0..1 as they are asked for.

    Nothing is subtracted: the background stays 0, which is what convolutions pad with.
    """

    x: npt.NDArray[np.uint8]
    y: Integers

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, indices: Integers) -> tuple[Floats, Integers]:
        return np.divide(self.x.take(indices, axis=0), np.float32(255), dtype=np.float32), self.y.take(indices)


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    train: Split
    heldout: Split
    facts: DatasetFacts


def dataset_of(train: FloatSplit | ByteSplit, heldout: FloatSplit | ByteSplit, *, classes: int) -> Dataset:
    """A dataset with its facts; the fingerprint is the sha256 of both splits' shapes, types and bytes."""
    digest = hashlib.sha256()
    for split in (train, heldout):
        for array in (split.x, split.y):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    facts = DatasetFacts(
        train_samples=len(train),
        heldout_samples=len(heldout),
        input_shape=tuple(train.x.shape[1:]),
        classes=classes,
        fingerprint=digest.hexdigest(),
    )
    return Dataset(train=train, heldout=heldout, facts=facts)
