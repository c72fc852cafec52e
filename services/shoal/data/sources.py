"""What can be said of a source before anything is read: `check_source`, and the table of schemes behind it.

The master and clients validate jobs with it, so nothing here opens a file or imports numpy; `catalog.py` has the table
of what opens each scheme.
"""

import difflib
from collections.abc import Callable

from shoal.core.errors import InvalidInput
from shoal.data.paths import local_path

BUILTIN_NAMES = ("breast_cancer", "digits", "iris", "wine")


def check_source(*, source: str, label: str | None) -> None:
    """Raises InvalidInput with the nearest valid name, or Forbidden."""
    SCHEMES[scheme_of(source)](source, label)


def scheme_of(source: str) -> str:
    """The address' scheme, one of SCHEMES. Raises InvalidInput."""
    name, separator, _ = source.partition("://")
    if not separator:
        raise InvalidInput(
            f"data.source: '{source}' has no scheme; write builtin://NAME or file:///PATH", field="data.source"
        )
    if name not in SCHEMES:
        near = difflib.get_close_matches(name, SCHEMES, n=1)
        hint = f"did you mean '{near[0]}://'?" if near else f"known: {', '.join(f'{known}://' for known in SCHEMES)}"
        raise InvalidInput(f"data.source: unknown scheme '{name}://'; {hint}", field="data.source")
    return name


def builtin_name(source: str) -> str:
    """The name in `builtin://NAME`. Raises InvalidInput for one that there is not."""
    name = source.removeprefix("builtin://")
    if name not in BUILTIN_NAMES:
        near = difflib.get_close_matches(name, BUILTIN_NAMES, n=1)
        hint = f"did you mean 'builtin://{near[0]}'?" if near else f"known: {', '.join(BUILTIN_NAMES)}"
        raise InvalidInput(f"data.source: no built-in data set '{name}'; {hint}", field="data.source")
    return name


def refuse_label(source: str, label: str | None) -> None:
    """For sources without columns. Raises InvalidInput if there is a label."""
    if label is not None:
        raise InvalidInput(
            f"data.label: {source} has no columns; leave 'label' out (it is for CSV and Parquet files)",
            field="data.label",
        )


def _check_builtin(source: str, label: str | None) -> None:
    builtin_name(source)
    refuse_label(source, label)


def _check_file(source: str, _label: str | None) -> None:
    local_path(source)


SCHEMES: dict[str, Callable[[str, str | None], None]] = {"builtin": _check_builtin, "file": _check_file}
