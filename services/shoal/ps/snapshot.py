"""A share as a file: safetensors with the layout in its metadata, and with what training needs to go on from there.

The model's part is flat slices by layer name, described by the metadata `layout` (the SDK's download joins them). What
only a shard needs has names that begin with `shoal:` and the metadata `share`; the final file of a job has none of it.
"""

import contextlib
import hashlib
import json
import math
import time
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from shoal.core.errors import Corrupt, Exhausted, NotFound, Unavailable
from shoal.core.facts import DatasetFacts
from shoal.metrics.parameter_server import ParameterServerMetrics
from shoal.ps import tensorfile
from shoal.ps.targets.base import SnapshotTarget

_CHUNK_BYTES = 1 << 20
_OWN = "shoal:"  # no name of a layer begins like this
_LOSSES, _INTEGERS, _OPTIMIZER = f"{_OWN}losses", f"{_OWN}integers", f"{_OWN}optimizer:"


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
class EvaluationResult:
    version: int
    correct: int
    samples: int
    loss: float  # mean


@dataclass(frozen=True, kw_only=True, slots=True)
class Continuation:
    """What a share's future depends on beside the weights, the facts and the version."""

    shard: int
    shards: int
    optimizer: Mapping[str, Mapping[str, Tensor]]  # by layer: torch.optim's state of this shard's slice
    integers: bytes  # the model's integer buffers, on every shard
    last_loss: float  # of the step before this version; nan before the first
    losses: "array[float]" = field(default_factory=lambda: array("d"))  # of every step; on the lead shard only
    evaluations: tuple[EvaluationResult, ...] = ()  # so far; on the lead shard only


@dataclass(frozen=True, kw_only=True, slots=True)
class Capture:
    """A copy of a share at one version. Without a continuation it is a model's part and nothing more."""

    tensors: Mapping[str, Tensor]
    parts: tuple[Part, ...]
    facts: DatasetFacts | None
    version: int
    continuation: Continuation | None = None

    def to_file(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """(tensors, metadata) as they go into the file."""
        tensors = dict(self.tensors)
        metadata = {
            "layout": json.dumps([part.to_document() for part in self.parts]),
            "facts": json.dumps(asdict(self.facts) if self.facts else None),
            "version": str(self.version),
        }
        if (own := self.continuation) is not None:
            for layer, state in own.optimizer.items():
                tensors |= {f"{_OPTIMIZER}{key}:{layer}": tensor for key, tensor in state.items()}
            if own.losses:
                tensors[_LOSSES] = torch.frombuffer(own.losses, dtype=torch.float64)
            if own.integers:
                tensors[_INTEGERS] = torch.frombuffer(bytearray(own.integers), dtype=torch.uint8)
            metadata["share"] = json.dumps(
                {
                    "shard": own.shard,
                    "shards": own.shards,
                    "last_loss": own.last_loss,
                    "evaluations": [asdict(result) for result in own.evaluations],
                }
            )
        return tensors, metadata

    @classmethod
    def from_file(cls, contents: tensorfile.Contents, *, name: str) -> "Capture":
        """Raises Corrupt for a file that no `to_file` has made."""
        try:
            metadata = contents.metadata
            facts = json.loads(metadata["facts"])
            return cls(
                tensors={key: tensor for key, tensor in contents.tensors.items() if not key.startswith(_OWN)},
                parts=parts_of(metadata),
                facts=None if facts is None else _facts(facts),
                version=int(metadata["version"]),
                continuation=_continuation(contents) if "share" in metadata else None,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise Corrupt(f"{name}: not a share's snapshot: {error!r}") from error


def parts_of(metadata: Mapping[str, str]) -> tuple[Part, ...]:
    """The parts of the model that a file holds. Raises ValueError, KeyError or TypeError for metadata without them."""
    return tuple(
        Part(name=entry["name"], shape=tuple(entry["shape"]), first=entry.get("first"), last=entry.get("last"))
        for entry in json.loads(metadata["layout"])
    )


def _facts(document: Mapping[str, object]) -> DatasetFacts:
    return DatasetFacts(**{**document, "input_shape": tuple(document["input_shape"])})  # type: ignore[arg-type]


def _continuation(contents: tensorfile.Contents) -> Continuation:
    document = json.loads(contents.metadata["share"])
    optimizer: dict[str, dict[str, Tensor]] = {}
    for name, tensor in contents.tensors.items():
        if name.startswith(_OPTIMIZER):
            key, layer = name.removeprefix(_OPTIMIZER).split(":", 1)
            optimizer.setdefault(layer, {})[key] = tensor
    losses = array("d")
    if _LOSSES in contents.tensors:
        losses.frombytes(contents.tensors[_LOSSES].numpy().astype(np.float64, copy=False).tobytes())
    integers = contents.tensors.get(_INTEGERS)
    return Continuation(
        shard=int(document["shard"]),
        shards=int(document["shards"]),
        optimizer=optimizer,
        integers=b"" if integers is None else integers.numpy().tobytes(),
        last_loss=float(document["last_loss"]),
        losses=losses,
        evaluations=tuple(EvaluationResult(**entry) for entry in document["evaluations"]),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotFile:
    name: str
    size: int
    sha256: str
    version: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Restore:
    """A file that a share is to be made of, as its writer reported it."""

    name: str
    size: int
    sha256: str
    version: int


def model_name(shard: int, version: int) -> str:
    """Of a finished model's part."""
    return f"shard-{shard:05d}-step-{version:012d}.safetensors"


def snapshot_name(shard: int, version: int, attempt: int) -> str:
    """With the attempt, so that a server of an earlier one that wakes up cannot write into a later one's file."""
    return f"shard-{shard:05d}-step-{version:012d}-attempt-{attempt:05d}.safetensors"


class Snapshots:
    """The files of jobs on one target, whose names and contents are checked here."""

    def __init__(self, target: SnapshotTarget, *, metrics: ParameterServerMetrics) -> None:
        self._target = target
        self._metrics = metrics
        self._stopping = False

    def stop(self) -> None:
        """Writes that are under way end with Unavailable, and nothing of them stays."""
        self._stopping = True

    def clean(self) -> int:
        """Removes what an earlier process has left half-written; returns how many files that were."""
        return self._target.clean()

    def write(self, job_id: str, name: str, capture: Capture) -> SnapshotFile:
        """Durable when it returns. Raises Exhausted when the disk refuses, Unavailable when a target on the network
        cannot be reached: an older file stays. NotFound for names that are not plain, as the others do.
        """
        self._check(job_id, name)
        tensors, metadata = capture.to_file()
        counted = _Counted(self._until_stopped(tensorfile.pieces(tensors, metadata)))
        began = time.perf_counter()
        try:
            self._target.write(job_id, name, counted)
        except OSError as error:
            self._metrics.snapshots.labels("failed").inc()
            why = error.strerror or " ".join(str(error).split())
            raise Exhausted(f"cannot write snapshot {self._target}/{job_id}/{name}: {why}") from error
        except Unavailable:
            self._metrics.snapshots.labels("failed").inc()
            raise
        self._metrics.snapshots.labels("written").inc()
        self._metrics.snapshot_seconds.observe(time.perf_counter() - began)
        return SnapshotFile(name=name, size=counted.size, sha256=counted.sha256, version=capture.version)

    def read(self, job_id: str, name: str, offset: int) -> Iterator[bytes]:
        """The file's bytes from `offset` on. Raises NotFound, also for a name that is not a plain file name."""
        file = self.open(job_id, name)
        return _chunks(file, offset)

    def load(self, job_id: str, restore: Restore) -> Capture:
        """A share's file, checked by size, sha256 and what it says of itself. Raises Corrupt if it is not the one
        that was written, or not there any more.
        """
        what = f"snapshot {restore.name} of job {job_id}"
        capture = Capture.from_file(self._contents(job_id, restore, what), name=what)
        if capture.version != restore.version or capture.continuation is None:
            raise Corrupt(f"{what}: it holds version {capture.version}, not {restore.version}, or no state to go on")
        return capture

    def _contents(self, job_id: str, file: Restore, what: str) -> tensorfile.Contents:
        try:
            with self.open(job_id, file.name) as opened:
                return tensorfile.read(opened, name=what, size=file.size, sha256=file.sha256)
        except NotFound as error:
            raise Corrupt(f"{what} is missing in {self._target}") from error
        except PermissionError as error:
            raise Unavailable(f"{what} may not be read in {self._target}: {error.strerror}") from error
        except OSError as error:
            raise Corrupt(f"{what} cannot be read in {self._target}: {error.strerror}") from error

    def jobs(self) -> tuple[str, ...]:
        """Those that may have files here."""
        return self._target.jobs()

    def names(self, job_id: str) -> tuple[str, ...]:
        return self._target.names(job_id) if _is_plain(job_id) else ()

    def delete(self, job_id: str, names: Collection[str]) -> None:
        """These files of a job, if they are there."""
        if _is_plain(job_id):
            self._target.delete(job_id, [name for name in names if _is_plain(name)])

    def delete_job(self, job_id: str) -> None:
        """All of a job's files, if there are any."""
        if _is_plain(job_id):
            self._target.delete_job(job_id)

    def open(self, job_id: str, name: str) -> BinaryIO:
        """Raises NotFound."""
        missing = f"no snapshot {name} of job {job_id} here"
        if not _is_plain(job_id) or not _is_plain(name):
            raise NotFound(missing)
        try:
            return self._target.open(job_id, name)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound(missing) from error

    def _until_stopped(self, pieces: Iterator[bytes | memoryview]) -> Iterator[bytes | memoryview]:
        for piece in pieces:
            if self._stopping:
                raise Unavailable("the parameter server is shutting down: the snapshot is not written")
            yield piece

    @staticmethod
    def _check(job_id: str, name: str) -> None:
        if not _is_plain(job_id) or not _is_plain(name):
            raise NotFound(f"no job '{job_id}' with a file '{name}' here")


class _Counted:
    """Pieces, with the size and sha256 of those that have been taken."""

    def __init__(self, pieces: Iterable[bytes | memoryview]) -> None:
        self._pieces = pieces
        self._digest = hashlib.sha256()
        self.size = 0

    def __iter__(self) -> Iterator[bytes | memoryview]:
        for piece in self._pieces:
            self._digest.update(piece)
            self.size += len(piece)
            yield piece

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def _chunks(file: BinaryIO, offset: int) -> Iterator[bytes]:
    with contextlib.closing(file):
        file.seek(offset)
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _is_plain(name: str) -> bool:
    """Does it name an entry of the folder that it is put behind, and nothing else?"""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def covers(parts: Iterable[Part], *, elements: int) -> bool:
    """Do these parts of one layer hold each of its elements once?"""
    reached = 0
    for first, last in sorted((part.first or 0, part.last or math.prod(part.shape)) for part in parts):
        if first != reached:
            return False
        reached = last
    return reached == elements
