"""From a `file://` address to a path that may be read."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from shoal.core.errors import Forbidden, InvalidInput, NotFound


def resolve_file(source: str, roots: Sequence[Path]) -> Path:
    """The file or folder that `file:///PATH` names, links followed.

    Raises as `local_path` does; Forbidden for a path that ends up outside every root, NotFound for one that does not
    exist (told only of paths inside a root).
    """
    return resolve_within(local_path(source), roots)


def local_path(source: str) -> Path:
    """The path that `file:///PATH` names; the file system is not asked.

    Raises InvalidInput for an address that names no absolute local path, Forbidden for one with `..`.
    """
    parts = urlsplit(source)
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/"):
        raise InvalidInput(
            f"data.source: {source}: an absolute path is expected, file:///PATH with three slashes", field="data.source"
        )
    if parts.query or parts.fragment or "\0" in path:
        raise InvalidInput(
            f"data.source: {source}: '?', '#' and NUL in a path must be written as %3F, %23 and not at all",
            field="data.source",
        )
    if ".." in PurePosixPath(path).parts:
        raise Forbidden(f"data.source: {source}: '..' is not allowed")
    return Path(path)


def resolve_within(path: Path, roots: Sequence[Path]) -> Path:
    """`path` with links followed, if that is under a root; errors as of `resolve_file`."""
    try:
        resolved = path.resolve(strict=False)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise InvalidInput(f"data.source: {path}: cannot be followed: {error}", field="data.source") from error
    allowed = [root.resolve() for root in roots]
    if not any(resolved.is_relative_to(root) for root in allowed):
        under = ", ".join(str(root) for root in roots) or "none is configured"
        beyond = f" (it links to {resolved})" if any(path.is_relative_to(root) for root in (*roots, *allowed)) else ""
        raise Forbidden(f"data.source: {path} is outside the data roots{beyond}; roots: {under}")
    if not resolved.exists():
        raise NotFound(f"data.source: {path}: no such file or folder")
    return resolved
