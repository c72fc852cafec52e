"""Optional parts of the installation: one line instead of a traceback where one is missing."""

from collections.abc import Iterator
from contextlib import contextmanager

from shoal.core.errors import NotInstalled


@contextmanager
def needs(extra: str, purpose: str) -> Iterator[None]:
    """Around the imports of an extra of pyproject.toml. Raises NotInstalled with what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "shoal").partition(".")[0] == "shoal":
            raise
        raise NotInstalled(
            f"{purpose} needs {error.name}, which is not installed; run: pip install 'shoal[{extra}]'"
        ) from error
