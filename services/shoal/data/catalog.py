"""The table of what opens a source. Adding a scheme or a file's form: a file beside this one, and a line in a table
here; a scheme also says in `sources.py` what can be checked without reading.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shoal.core.errors import InvalidInput
from shoal.data.builtin import open_builtin
from shoal.data.idx import open_idx
from shoal.data.paths import resolve_file
from shoal.data.sources import builtin_name, check_source, refuse_label, scheme_of
from shoal.data.split import Dataset
from shoal.data.table import open_csv, open_parquet


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A job's DataSpec and what the machine allows."""

    source: str
    label: str | None
    heldout_fraction: float
    split_seed: int
    roots: tuple[Path, ...]


def open_dataset(
    *, source: str, label: str | None, heldout_fraction: float, split_seed: int, roots: Sequence[Path]
) -> Dataset:
    """Opens a data source and reads it into memory.

    `heldout_fraction` and `split_seed` count where the source has no test split of its own. Raises InvalidInput for an
    address, column or value that cannot be used, Forbidden for a path outside `roots`, NotFound for a path that does
    not exist, Corrupt for a damaged file.
    """
    check_source(source=source, label=label)
    return OPENERS[scheme_of(source)](
        Request(
            source=source,
            label=label,
            heldout_fraction=heldout_fraction,
            split_seed=split_seed,
            roots=tuple(roots),
        )
    )


def _open_builtin(request: Request) -> Dataset:
    return open_builtin(
        builtin_name(request.source), heldout_fraction=request.heldout_fraction, split_seed=request.split_seed
    )


def _open_file(request: Request) -> Dataset:
    path = resolve_file(request.source, request.roots)
    if path.is_dir():
        refuse_label(request.source, request.label)
        return open_idx(path, request.roots)
    if path.suffix not in _FORMS:
        raise InvalidInput(
            f"data.source: {path}: the form '{path.suffix}' is not known; a folder of IDX files, or a file that ends "
            f"in {' or '.join(_FORMS)} is expected",
            field="data.source",
        )
    return _FORMS[path.suffix](
        path,
        label=request.label or "label",
        heldout_fraction=request.heldout_fraction,
        split_seed=request.split_seed,
    )


OPENERS: dict[str, Callable[[Request], Dataset]] = {"builtin": _open_builtin, "file": _open_file}
_FORMS: dict[str, Callable[..., Dataset]] = {".csv": open_csv, ".parquet": open_parquet}
