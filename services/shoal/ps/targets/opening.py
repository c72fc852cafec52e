"""From the setting to the target."""

from pathlib import Path

from shoal.ps.targets.base import SnapshotTarget
from shoal.ps.targets.local import LocalFolder


def open_target(url: str, *, data_dir: Path) -> SnapshotTarget:
    """The folder `data_dir` unless a URL is given. Raises InvalidInput or NotInstalled."""
    if not url:
        return LocalFolder(data_dir)
    if url.startswith("file://"):
        return LocalFolder(Path(url.removeprefix("file://")))
    if "://" not in url:
        return LocalFolder(Path(url))
    from shoal.ps.targets.remote import RemoteFolder

    return RemoteFolder(url)
