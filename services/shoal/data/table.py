"""CSV and Parquet files, read by Hugging Face `datasets`: numeric feature columns and one column of labels.

Features keep their values (scale them in the file) and the file's order. Labels may be text or whole numbers; the
classes are their distinct values in ascending order.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shoal.core.errors import InvalidInput
from shoal.data.split import Dataset, Floats, FloatSplit, Integers, dataset_of
from shoal.data.splitting import split_positions

if TYPE_CHECKING:
    import pyarrow


def open_csv(path: Path, *, label: str, heldout_fraction: float, split_seed: int) -> Dataset:
    """A CSV file with a header line. Raises InvalidInput naming the column, and the row where one value is wrong."""
    return _open(path, "from_csv", label=label, heldout_fraction=heldout_fraction, split_seed=split_seed)


def open_parquet(path: Path, *, label: str, heldout_fraction: float, split_seed: int) -> Dataset:
    """A Parquet file. Raises InvalidInput naming the column, and the row where one value is wrong."""
    return _open(path, "from_parquet", label=label, heldout_fraction=heldout_fraction, split_seed=split_seed)


def _open(path: Path, reader: str, *, label: str, heldout_fraction: float, split_seed: int) -> Dataset:
    table = _read(path, reader)
    if label not in table.column_names:
        raise InvalidInput(
            f"data.label: {path.name} has no column '{label}'; its columns: {', '.join(table.column_names)}",
            field="data.label",
        )
    features = [name for name in table.column_names if name != label]
    if not features:
        raise InvalidInput(f"data.source: {path.name} has no columns besides '{label}'", field="data.source")
    if not table.num_rows:
        raise InvalidInput(f"data.source: {path.name} has no rows", field="data.source")
    x = np.stack([_feature(path, name, table.column(name)) for name in features], axis=1)
    y, classes = _labels(path, label, table.column(label))
    positions = split_positions(len(y), heldout_fraction=heldout_fraction, split_seed=split_seed)
    return dataset_of(
        FloatSplit(x=x[positions.train], y=y[positions.train]),
        FloatSplit(x=x[positions.heldout], y=y[positions.heldout]),
        classes=classes,
    )


def _read(path: Path, reader: str) -> "pyarrow.Table":
    """The file's columns, in memory; `datasets` gets no network, and no cache that outlives the call."""
    os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"data.source: {path.name}: '{error.name}', which reads CSV and Parquet files, is not installed here: "
            "install shoal[tables], or build the worker's image with EXTRAS=tables",
            field="data.source",
        ) from error

    datasets.disable_progress_bars()
    read: Callable[..., Any] = getattr(datasets.Dataset, reader)
    with tempfile.TemporaryDirectory(prefix="shoal-datasets-") as cache:
        try:
            table: pyarrow.Table = read(str(path), cache_dir=cache, keep_in_memory=True).data.table
        except Exception as error:  # `datasets` wraps whatever pandas, pyarrow or the file raises
            cause = error
            while cause.__cause__ is not None:
                cause = cause.__cause__  # type: ignore[assignment]
            reason = " ".join(str(cause).split()) or type(cause).__name__
            if "corresponds to no data" in reason or "BatchSize must be greater than 0, got 0" in reason:
                reason = "it has no rows"
            raise InvalidInput(f"data.source: {path.name} cannot be read: {reason}", field="data.source") from error
    return table


def _feature(path: Path, name: str, column: "pyarrow.ChunkedArray") -> Floats:
    import pyarrow.types as types

    kind = column.type
    if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
        raise InvalidInput(
            f"data.source: {path.name}: column '{name}' is {kind}, not numeric; features must be numbers (is it the "
            "label? then give data.label)",
            field="data.source",
        )
    with np.errstate(over="ignore"):
        values: Floats = column.to_numpy().astype(np.float32)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        shown = "is empty or NaN" if np.isnan(values[row]) else "is infinite in float32"
        raise InvalidInput(
            f"data.source: {path.name}: column '{name}', row {row + 1}: the value {shown}", field="data.source"
        )
    return values


def _labels(path: Path, name: str, column: "pyarrow.ChunkedArray") -> tuple[Integers, int]:
    """Class ids 0..classes-1 and the number of classes."""
    if column.null_count:
        row = column.is_null().to_numpy().argmax()
        raise InvalidInput(f"data.label: {path.name}: column '{name}', row {row + 1}: empty", field="data.label")
    values = column.to_pylist()
    for row, value in enumerate(values):
        if not isinstance(value, (str, int)):
            raise InvalidInput(
                f"data.label: {path.name}: column '{name}', row {row + 1}: {value!r} is no class; text or whole "
                "numbers are expected",
                field="data.label",
            )
    names = sorted(set(values))
    if len(names) < 2:
        raise InvalidInput(
            f"data.label: {path.name}: column '{name}' has one class only, {names[0]!r}", field="data.label"
        )
    number = {value: index for index, value in enumerate(names)}
    return np.array([number[value] for value in values], np.int64), len(names)
