"""A share as a file: safetensors with the layout in its metadata, written so that a half-written file never counts."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
from torch import Tensor

from shoal.core.errors import Exhausted, NotFound
from shoal.core.facts import DatasetFacts
from shoal.metrics.parameter_server import ParameterServerMetrics

_CHUNK_BYTES = 1 << 20
_HALF_WRITTEN = ".tmp"


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Elements [first, last) of a layer's flattened tensor; without them, the whole tensor in its own shape."""

    name: str
    shape: tuple[int, ...]
    first: int | None = None
    last: int | None = None

    def to_document(self) -> dict[str, object]:
        if self.first is None:
            return {"name": self.name, "shape": self.shape, "whole": True}
        return {"name": self.name, "shape": self.shape, "first": self.first, "last": self.last}


@dataclass(frozen=True, kw_only=True, slots=True)
class Capture:
    tensors: Mapping[str, Tensor]
    parts: tuple[Part, ...]
    facts: DatasetFacts | None
    version: int

    def metadata(self) -> dict[str, str]:
        return {
            "layout": json.dumps([part.to_document() for part in self.parts]),
            "facts": json.dumps(asdict(self.facts) if self.facts else None),
            "version": str(self.version),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotFile:
    name: str
    size: int
    sha256: str
    version: int


class SnapshotFolder:
    """The files of one parameter server's jobs: <folder>/<job>/<file>."""

    def __init__(self, folder: Path, *, metrics: ParameterServerMetrics) -> None:
        self._folder = folder
        self._metrics = metrics

    def write(self, job_id: str, index: int, capture: Capture) -> SnapshotFile:
        """tmp, fsync, rename, fsync of the folder. Raises Exhausted when the disk refuses; an older file stays.

        Raises NotFound for a job id that is not a plain name, as the others do.
        """
        if not _is_plain(job_id):
            raise NotFound(f"no job '{job_id}' here")
        folder = self._folder / job_id
        name = f"shard-{index:05d}-step-{capture.version:012d}.safetensors"
        data = safetensors.torch.save(dict(capture.tensors), metadata=capture.metadata())
        temporary = folder / (name + _HALF_WRITTEN)
        began = time.perf_counter()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(folder / name)
            _sync_folder(folder)
        except OSError as error:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                temporary.unlink(missing_ok=True)
            self._metrics.snapshots.labels("failed").inc()
            raise Exhausted(f"cannot write snapshot {folder / name}: {error.strerror}") from error
        self._metrics.snapshots.labels("written").inc()
        self._metrics.snapshot_seconds.observe(time.perf_counter() - began)
        return SnapshotFile(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest(), version=capture.version)

    def read(self, job_id: str, name: str, offset: int) -> Iterator[bytes]:
        """The file's bytes from `offset` on. Raises NotFound, also for a name that is not a plain file name."""
        path = self._folder / job_id / name
        plain = _is_plain(job_id) and _is_plain(name) and not name.endswith(_HALF_WRITTEN)
        if not plain or not path.is_file():
            raise NotFound(f"no snapshot {name} of job {job_id} here")
        return self._chunks(path, offset)

    @staticmethod
    def _chunks(path: Path, offset: int) -> Iterator[bytes]:
        with path.open("rb") as file:
            file.seek(offset)
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk

    def delete(self, job_id: str) -> None:
        """All of a job's files, if there are any."""
        folder = self._folder / job_id
        if not _is_plain(job_id) or not folder.is_dir():
            return
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def _is_plain(name: str) -> bool:
    """Does it name an entry of the folder that it is put behind, and nothing else?"""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
