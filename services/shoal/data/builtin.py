"""`builtin://NAME`: real data sets that come with scikit-learn, no file needed.

digits: 1,797 handwritten digits of 8x8 pixels (UCI Optical Recognition of Handwritten Digits, test part), values
0..16 scaled to 0..1, shape (1, 8, 8). iris, wine, breast_cancer: tables of measurements, each column standardised by
the mean and deviation of the training split.
"""

import difflib
import gzip
import importlib.util
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InvalidInput, NotFound
from shoal.data.split import Dataset, Floats, FloatSplit, Integers, dataset_of
from shoal.data.splitting import split_positions

_Table = tuple[npt.NDArray[np.float64], Integers, int]  # values [samples, features], classes of samples, how many

NAMES = ("breast_cancer", "digits", "iris", "wine")


def check_name(name: str) -> None:
    """Raises InvalidInput for a name that there is not."""
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean 'builtin://{near[0]}'?" if near else f"known: {', '.join(NAMES)}"
        raise InvalidInput(f"data.source: no built-in data set '{name}'; {hint}", field="data.source")


def open_builtin(name: str, *, heldout_fraction: float, split_seed: int) -> Dataset:
    """Raises InvalidInput for a name that there is not."""
    check_name(name)
    values_SF, y, classes = _read_digits() if name == "digits" else _load(name)
    positions = split_positions(len(y), heldout_fraction=heldout_fraction, split_seed=split_seed)
    if name == "digits":
        x: Floats = (values_SF / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    else:
        x = _standardised(values_SF, positions.train)
    return dataset_of(
        FloatSplit(x=x[positions.train], y=y[positions.train]),
        FloatSplit(x=x[positions.heldout], y=y[positions.heldout]),
        classes=classes,
    )


def _load(name: str) -> _Table:
    from sklearn import datasets

    table = getattr(datasets, f"load_{name}")()
    return table.data, table.target.astype(np.int64), len(table.target_names)


def _read_digits() -> _Table:
    """scikit-learn's file, read without importing scikit-learn, which would double a trainer's start."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise NotFound("builtin://digits comes with scikit-learn, which is not installed here")
    with gzip.open(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        table_SF = np.loadtxt(file, delimiter=",")
    return table_SF[:, :-1], table_SF[:, -1].astype(np.int64), 10


def _standardised(x_SF: npt.NDArray[np.float64], train: Integers) -> Floats:
    """(x - mean) / deviation per column. fsum is exact, so the bits do not depend on a machine's vector width."""
    scaled = np.empty(x_SF.shape, np.float32)
    for column in range(x_SF.shape[1]):
        values = x_SF[train, column].tolist()
        mean = math.fsum(values) / len(values)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
        scaled[:, column] = (x_SF[:, column] - mean) / (deviation or 1.0)
    return scaled
