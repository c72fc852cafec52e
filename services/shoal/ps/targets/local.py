"""A folder of this machine: <folder>/<job>/<file>, written as *.tmp, synced, renamed, and the folder synced."""

import contextlib
import fcntl
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import BinaryIO

from shoal.process.crashing import crash_point
from shoal.ps.targets.base import SnapshotTarget

_HALF_WRITTEN = ".tmp"


class LocalFolder(SnapshotTarget):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, job_id: str, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        folder = self._folder / job_id
        temporary = folder / (name + _HALF_WRITTEN)
        try:
            self._make(folder)
            with temporary.open("wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # so that the start of another server here does not clean it up
                crash_point("snapshot.opened")
                for piece in pieces:
                    file.write(piece)
                    crash_point("snapshot.half_written")
                file.flush()
                crash_point("snapshot.written")
                os.fsync(file.fileno())
                crash_point("snapshot.synced")
            temporary.rename(folder / name)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                temporary.unlink(missing_ok=True)
            raise
        crash_point("snapshot.renamed")
        _sync(folder)
        crash_point("snapshot.folder_synced")

    def open(self, job_id: str, name: str) -> BinaryIO:
        if name.endswith(_HALF_WRITTEN):
            raise FileNotFoundError(name)
        path = self._folder / job_id / name
        if not path.is_file():
            raise FileNotFoundError(str(path))
        return path.open("rb")

    def jobs(self) -> tuple[str, ...]:
        if not self._folder.is_dir():
            return ()
        return tuple(sorted(entry.name for entry in self._folder.iterdir() if entry.is_dir()))

    def names(self, job_id: str) -> tuple[str, ...]:
        folder = self._folder / job_id
        if not folder.is_dir():
            return ()
        return tuple(sorted(entry.name for entry in folder.iterdir() if not entry.name.endswith(_HALF_WRITTEN)))

    def delete(self, job_id: str, names: Collection[str]) -> None:
        for name in names:
            (self._folder / job_id / name).unlink(missing_ok=True)

    def delete_job(self, job_id: str) -> None:
        folder = self._folder / job_id
        if not folder.is_dir():
            return
        for path in folder.iterdir():
            path.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            folder.rmdir()

    def clean(self) -> int:
        count = 0
        for path in self._folder.glob(f"*/*{_HALF_WRITTEN}"):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue  # somebody writes it just now
                path.unlink()
                count += 1
        return count

    def __str__(self) -> str:
        return str(self._folder)

    def _make(self, folder: Path) -> None:
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            _sync(self._folder)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
