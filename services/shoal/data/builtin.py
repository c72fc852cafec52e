"""`builtin://NAME`: small real data sets that come with this package (files/README.md names their sources).

digits: 1,797 handwritten digits of 8x8 pixels (UCI Optical Recognition of Handwritten Digits, test part), values
0..16 scaled to 0..1, shape (1, 8, 8). iris, wine, breast_cancer: tables of measurements, each column standardised by
the mean and deviation of the training split.
"""

import gzip
import math
from importlib import resources

import numpy as np
import numpy.typing as npt

from shoal.data.split import Dataset, Floats, FloatSplit, Integers, dataset_of
from shoal.data.splitting import split_positions


def open_builtin(name: str, *, heldout_fraction: float, split_seed: int) -> Dataset:
    """`name` is one of `sources.BUILTIN_NAMES`."""
    values_SF, y = read_table(name)
    positions = split_positions(len(y), heldout_fraction=heldout_fraction, split_seed=split_seed)
    if name == "digits":
        x: Floats = (values_SF / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    else:
        x = _standardised(values_SF, positions.train)
    return dataset_of(
        FloatSplit(x=x[positions.train], y=y[positions.train]),
        FloatSplit(x=x[positions.heldout], y=y[positions.heldout]),
        classes=int(y.max()) + 1,
    )


def read_table(name: str) -> tuple[npt.NDArray[np.float64], Integers]:
    """Values [samples, features] and the samples' classes."""
    file = resources.files("shoal.data") / "files" / f"{name}.csv.gz"
    with file.open("rb") as packed, gzip.open(packed, "rt") as text:
        table_SF = np.loadtxt(text, delimiter=",")
    return table_SF[:, :-1], table_SF[:, -1].astype(np.int64)


def _standardised(x_SF: npt.NDArray[np.float64], train: Integers) -> Floats:
    """(x - mean) / deviation per column. fsum is exact, so the bits do not depend on a machine's vector width."""
    scaled = np.empty(x_SF.shape, np.float32)
    for column in range(x_SF.shape[1]):
        values = x_SF[train, column].tolist()
        mean = math.fsum(values) / len(values)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
        scaled[:, column] = (x_SF[:, column] - mean) / (deviation or 1.0)
    return scaled
