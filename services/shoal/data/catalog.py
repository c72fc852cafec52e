"""The table of sources. Adding a scheme or a file's form: a file beside this one, and a line in a table here."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from shoal.core.errors import InvalidInput
from shoal.data.builtin import check_name, open_builtin
from shoal.data.idx import open_idx
from shoal.data.paths import local_path, resolve_file
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


def check_source(*, source: str, label: str | None) -> None:
    """What can be said without reading anything. Raises InvalidInput with the nearest valid name, or Forbidden."""
    _scheme_of(source).check(source, label)


def open_dataset(
    *, source: str, label: str | None, heldout_fraction: float, split_seed: int, roots: Sequence[Path]
) -> Dataset:
    """Opens a data source and reads it into memory.

    `heldout_fraction` and `split_seed` count where the source has no test split of its own. Raises InvalidInput for an
    address, column or value that cannot be used, Forbidden for a path outside `roots`, NotFound for a path that does
    not exist, Corrupt for a damaged file.
    """
    scheme = _scheme_of(source)
    scheme.check(source, label)
    return scheme.open(
        Request(
            source=source,
            label=label,
            heldout_fraction=heldout_fraction,
            split_seed=split_seed,
            roots=tuple(roots),
        )
    )


def _check_builtin(source: str, label: str | None) -> None:
    check_name(source.removeprefix("builtin://"))
    _no_label(source, label)


def _open_builtin(request: Request) -> Dataset:
    name = request.source.removeprefix("builtin://")
    return open_builtin(name, heldout_fraction=request.heldout_fraction, split_seed=request.split_seed)


def _check_file(source: str, _label: str | None) -> None:
    local_path(source)


def _open_file(request: Request) -> Dataset:
    path = resolve_file(request.source, request.roots)
    if path.is_dir():
        _no_label(request.source, request.label)
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


def _no_label(source: str, label: str | None) -> None:
    if label is not None:
        raise InvalidInput(
            f"data.label: {source} has no columns; leave 'label' out (it is for CSV and Parquet files)",
            field="data.label",
        )


class _Scheme(NamedTuple):
    check: Callable[[str, str | None], None]  # (source, label): raises for what is wrong without reading
    open: Callable[[Request], Dataset]


_SCHEMES = {"builtin": _Scheme(_check_builtin, _open_builtin), "file": _Scheme(_check_file, _open_file)}
_FORMS: dict[str, Callable[..., Dataset]] = {".csv": open_csv, ".parquet": open_parquet}


def _scheme_of(source: str) -> _Scheme:
    name, separator, _ = source.partition("://")
    if not separator:
        raise InvalidInput(
            f"data.source: '{source}' has no scheme; write builtin://NAME or file:///PATH", field="data.source"
        )
    if name not in _SCHEMES:
        near = difflib.get_close_matches(name, _SCHEMES, n=1)
        hint = f"did you mean '{near[0]}://'?" if near else f"known: {', '.join(f'{known}://' for known in _SCHEMES)}"
        raise InvalidInput(f"data.source: unknown scheme '{name}://'; {hint}", field="data.source")
    return _SCHEMES[name]
