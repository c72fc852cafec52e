"""Any fsspec URL, such as s3://bucket/prefix: <url>/<job>/<file>. Every server that has the URL sees the same files.

fsspec is a part of what torch brings along; the driver of the URL's scheme is not (`shoal[s3]`). Where the credentials
come from is the driver's affair: for S3 the environment (AWS_*) and the files of the AWS tools.
"""

import contextlib
import io
from collections.abc import Collection, Iterable, Iterator
from typing import Any, BinaryIO, cast

import fsspec

from shoal.core.errors import InvalidInput, NotInstalled, Unavailable
from shoal.process.crashing import crash_point
from shoal.ps.targets.base import SnapshotTarget

_BLOCK_BYTES = 16 << 20  # of one part of an upload: at most 10,000 parts make 160 GB, more than a share should be


class RemoteFolder(SnapshotTarget):
    """A put is atomic: until it is committed, an object is not there, or is the one before."""

    def __init__(self, url: str) -> None:
        """Raises InvalidInput for a URL that fsspec does not know, NotInstalled for one whose driver is missing."""
        self._url = url
        try:
            self._fs, path = fsspec.core.url_to_fs(url)
        except ImportError as error:
            scheme = url.partition("://")[0]
            raise NotInstalled(
                f"snapshot target {url}: {error}; install the driver, for S3 by pip install 'shoal[{scheme}]'"
            ) from error
        except ValueError as error:
            raise InvalidInput(f"snapshot target {url}: {error}", field="snapshot_target") from error
        self._root = path.rstrip("/")
        self._lost = _connection_errors()

    def write(self, job_id: str, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        with self.reached():
            file = self._fs.open(
                self._path(job_id, name), "wb", autocommit=False, block_size=_BLOCK_BYTES, cache_type="none"
            )
            try:
                for piece in pieces:
                    file.write(piece)
                    crash_point("snapshot.half_written")
                file.close()
                crash_point("snapshot.written")
                file.commit()
            except BaseException:
                with contextlib.suppress(OSError, *self._lost):  # the first error is the one to tell
                    file.discard()
                raise
        crash_point("snapshot.folder_synced")

    def open(self, job_id: str, name: str) -> BinaryIO:
        with self.reached(reading=True):
            return cast(BinaryIO, _Opened(self._fs.open(self._path(job_id, name), "rb"), self))

    def jobs(self) -> tuple[str, ...]:
        return self._listed(self._root, "directory")

    def names(self, job_id: str) -> tuple[str, ...]:
        return self._listed(f"{self._root}/{job_id}", "file")

    def delete(self, job_id: str, names: Collection[str]) -> None:
        for name in names:
            with self.reached(), contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._path(job_id, name))

    def delete_job(self, job_id: str) -> None:
        self.delete(job_id, self.names(job_id))

    def clean(self) -> int:
        return 0  # what was not committed is no object; the parts of uploads that died are for the store's own rules

    def __str__(self) -> str:
        return self._url

    def _path(self, job_id: str, name: str) -> str:
        return f"{self._root}/{job_id}/{name}"

    def _listed(self, path: str, kind: str) -> tuple[str, ...]:
        with self.reached():
            self._fs.invalidate_cache(path)
            try:
                entries: list[dict[str, Any]] = self._fs.ls(path, detail=True)
            except FileNotFoundError:
                return ()
        names = (entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == kind)
        return tuple(sorted(name for name in names if name))

    @contextlib.contextmanager
    def reached(self, *, reading: bool = False) -> Iterator[None]:
        """Around what goes over the network. An error in reading says nothing about the file, unless it is missing."""
        try:
            yield
        except FileNotFoundError:
            raise
        except self._lost as error:
            said = " ".join(str(error).split())
            raise Unavailable(f"snapshot target {self._url} cannot be reached: {said}") from error
        except OSError as error:
            if not reading:
                raise
            said = " ".join(str(error).split())
            raise Unavailable(f"snapshot target {self._url} cannot be read: {said}") from error


class _Opened(io.RawIOBase):
    """A file that is being read, with the same errors."""

    def __init__(self, file: Any, folder: RemoteFolder) -> None:
        self._file = file
        self._folder = folder

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._folder.reached(reading=True):
            return int(self._file.readinto(buffer))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _connection_errors() -> tuple[type[Exception], ...]:
    """What drivers raise, beside OSError, when the other side cannot be reached."""
    lost: tuple[type[Exception], ...] = (TimeoutError, ConnectionError)
    with contextlib.suppress(ImportError):
        from botocore.exceptions import BotoCoreError

        lost = (*lost, BotoCoreError)
    return lost
