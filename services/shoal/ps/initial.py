"""The weights that a new job begins with: those of another job, whose files lie here or on other parameter servers.

That job may have had another number of shards: each of this job's shards reads all files, and takes what it holds.
"""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from shoal.core.errors import Corrupt, InvalidInput, NotFound
from shoal.core.layout import Layer, Slice
from shoal.models.integers import IntegerLayout
from shoal.ps import tensorfile
from shoal.ps.snapshot import Part, Restore, Snapshots, covers, parts_of
from shoal.wire.options import UNARY_LIMIT_BYTES, open_channel
from shoal.wire.status import raised_from_call
from shoal.wire.v1 import shard_pb2, shard_pb2_grpc

_READ_SECONDS = 600.0  # deadline of one file from another server, as of a snapshot in the master's settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A file of the other job, and who has it where it is not on this server's own target."""

    file: Restore
    host: str
    port: int


class InitialWeights:
    """Nothing is kept in memory: files are read when a share is built."""

    def __init__(self, *, job_id: str, sources: Sequence[Source], snapshots: Snapshots) -> None:
        self._job_id = job_id
        self._sources = tuple(sources)
        self._snapshots = snapshots

    def check(self) -> None:
        """Can all of them be had? Raises NotFound or Unavailable."""
        for source in self._sources:
            with self._opened(source) as file:
                file.read(1)

    def read(
        self, *, pieces: Sequence[Slice], layers: Sequence[Layer], integers: IntegerLayout
    ) -> tuple[dict[str, Tensor], bytes]:
        """The pieces' elements, float32 [piece.elements] by layer, and the integer buffers.

        Raises InvalidInput if the other job's model is not this one, Corrupt for a file that is not what it was.
        """
        shapes = {layer.name: layer.shape for layer in layers}
        held = {piece.layer.name: piece for piece in pieces}
        values = {piece.layer.name: torch.zeros(piece.elements) for piece in pieces}
        whole: dict[str, Tensor] = {}
        seen: dict[str, list[Part]] = {}
        for source in self._sources:
            contents = self._contents(source, held.keys() | integers.names)
            try:
                parts = parts_of(contents.metadata)
            except (ValueError, KeyError, TypeError) as error:
                raise Corrupt(f"{self._what(source)}: not a share's snapshot: {error!r}") from error
            for part in parts:
                if part.last is None:
                    if part.name in contents.tensors:
                        whole[part.name] = contents.tensors[part.name]
                    continue
                self._check_shape(part, shapes)
                seen.setdefault(part.name, []).append(part)
                if part.name in held:
                    _copy_overlap(contents.tensors[part.name], part, held[part.name], values[part.name])
        for layer in layers:
            if not covers(seen.get(layer.name, ()), elements=layer.elements):
                raise self._other_model(f"it lacks (a part of) layer {layer.name}")
        try:
            return values, integers.pack(whole)
        except KeyError as error:
            raise self._other_model(f"it lacks the buffer {error.args[0]}") from error

    def _check_shape(self, part: Part, shapes: Mapping[str, tuple[int, ...]]) -> None:
        shape = shapes.get(part.name)
        if shape is None:
            raise self._other_model(f"it has a layer {part.name}, this job's model has none")
        if shape != part.shape:
            raise self._other_model(f"its layer {part.name} has the shape {part.shape}, this job's has {shape}")

    def _other_model(self, why: str) -> InvalidInput:
        return InvalidInput(
            f"initial_weights: the weights of job {self._job_id} do not fit: {why}", field="initial_weights.job"
        )

    def _contents(self, source: Source, names: Any) -> tensorfile.Contents:
        with self._opened(source) as file:
            return tensorfile.read(
                file,
                name=self._what(source),
                size=source.file.size,
                sha256=source.file.sha256,
                wanted=lambda name: name in names,
            )

    def _what(self, source: Source) -> str:
        return f"snapshot {source.file.name} of job {self._job_id}"

    @contextlib.contextmanager
    def _opened(self, source: Source) -> Iterator[BinaryIO]:
        try:
            file = self._snapshots.open(self._job_id, source.file.name)
        except NotFound:
            with open_channel(f"{source.host}:{source.port}", limit_bytes=UNARY_LIMIT_BYTES) as channel:
                stub = shard_pb2_grpc.ShardServiceStub(channel)
                request = shard_pb2.ReadSnapshotRequest(job_id=self._job_id, file_name=source.file.name)
                with raised_from_call():
                    yield cast(BinaryIO, _Received(stub.ReadSnapshot(request, timeout=_READ_SECONDS)))
        else:
            with file:
                yield file


class _Received(io.RawIOBase):
    """A file that another server sends."""

    def __init__(self, messages: Iterator[shard_pb2.ReadSnapshotResponse]) -> None:
        self._messages = messages
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        target = memoryview(buffer).cast("B")
        while not self._rest:
            message = next(self._messages, None)
            if message is None:
                return 0
            self._rest = memoryview(message.data)
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def _copy_overlap(tensor: Tensor, part: Part, piece: Slice, into: Tensor) -> None:
    assert part.first is not None
    assert part.last is not None
    first, last = max(part.first, piece.first), min(part.last, piece.last)
    if first < last:
        flat = tensor.reshape(-1)
        into[first - piece.first : last - piece.first].copy_(flat[first - part.first : last - part.first])
