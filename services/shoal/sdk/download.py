"""From the shards' files of a finished job to one model folder. The one module here that needs numpy and safetensors.

Each shard's file is a safetensors file. Its tensors are flat float32 parts of layers, described by the file's
metadata `layout`: a JSON list of {"name", "shape", "first", "last"}, elements [first, last) of the layer. Entries
with "whole": true are complete tensors in their own shape and dtype (integer buffers).
"""

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from safetensors import SafetensorError, safe_open

from shoal.core.errors import Corrupt, Exhausted, InvalidInput
from shoal.models.folder import weights_sha256, write_folder
from shoal.sdk.views import SavedModel
from shoal.wire.v1 import jobs_pb2

Tensor = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """How far a download has come: `offset` bytes of this file are here, and all files before it."""

    file_name: str = ""
    offset: int = 0


@dataclass(slots=True)
class _Incoming:
    """A shard's file on its way."""

    expected: jobs_pb2.ShardFile
    path: Path
    target: IO[bytes]
    digest: Any = field(default_factory=hashlib.sha256)
    size: int = 0


@dataclass(slots=True)
class _Partial:
    """A layer of which some elements are here."""

    flat: Tensor
    shape: tuple[int, ...]
    ranges: list[tuple[int, int]] = field(default_factory=list)


class Assembly:
    """Takes a download's messages in order, then saves the model. A context manager: it cleans up behind itself.

    The messages may come from several streams, each of which begins at the `position` that the one before reached.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._scratch = Path()
        self._config: dict[str, Any] | None = None
        self._expected_sha256 = ""
        self._incoming: _Incoming | None = None
        self._partial: dict[str, _Partial] = {}
        self._whole: dict[str, Tensor] = {}
        self._facts: dict[str, Any] | None = None
        self._version: str | None = None

    def __enter__(self) -> Self:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._scratch = Path(tempfile.mkdtemp(prefix=".download-", dir=self._folder))
        except OSError as error:
            raise InvalidInput(f"folder {self._folder}: {error.strerror}; give another one", field="folder") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._incoming is not None:
            self._incoming.target.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    @property
    def position(self) -> Position:
        """Where the next stream has to begin."""
        if self._incoming is None:
            return Position()
        return Position(file_name=self._incoming.expected.file_name, offset=self._incoming.size)

    def take(self, message: jobs_pb2.DownloadResponse) -> None:
        """Raises Corrupt for a file that is not what was announced, Exhausted if the disk has no room for it."""
        if message.config_json:
            self._config = json.loads(message.config_json)
            self._expected_sha256 = message.weights_sha256
        with self._disk():
            if message.HasField("file"):
                self._begin(message.file, message.offset)
            if message.data:
                self._append(message.data)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Exhausted(f"folder {self._folder}: the download cannot be kept there: {error.strerror}") from error

    def _begin(self, file: jobs_pb2.ShardFile, offset: int) -> None:
        """A file's announcement: of a new one, or of the one that is being received, where a stream goes on with it."""
        if self._incoming is None or self._incoming.expected != file:
            self._finish_file()
            path = self._scratch / f"{file.shard_index}.safetensors"
            self._incoming = _Incoming(expected=file, path=path, target=path.open("wb"))
        if offset != self.position.offset:
            raise Corrupt(
                f"{file.file_name}: data from byte {offset} on came, not from {self.position.offset}; try again"
            )

    def _append(self, data: bytes) -> None:
        if self._incoming is None:
            raise Corrupt("the download began with data of no file; try again")
        self._incoming.target.write(data)
        self._incoming.digest.update(data)
        self._incoming.size += len(data)

    def save(self) -> SavedModel:
        """Writes the folder. Raises Corrupt if anything is missing or the whole is not what the job reported."""
        with self._disk():
            self._finish_file()
        if self._config is None:
            raise Corrupt("the download ended before the model's configuration; try again")
        tensors = {name: _complete(name, layer) for name, layer in self._partial.items()} | self._whole
        if not tensors:
            raise Corrupt("the download has no files of weights; try again")
        have = weights_sha256(tensors)
        if self._expected_sha256 and have != self._expected_sha256:  # an external client reports none
            raise Corrupt(f"the weights' sha256 is {have}, but the job reported {self._expected_sha256}; try again")
        config = {**self._config, "shoal": {**self._config.get("shoal", {}), "dataset": self._facts}}
        write_folder(self._folder, tensors, config)
        size = (self._folder / "model.safetensors").stat().st_size
        return SavedModel(folder=self._folder, weights_sha256=have, size=size, config=config)

    def _finish_file(self) -> None:
        if self._incoming is None:
            return
        done, self._incoming = self._incoming, None
        done.target.close()
        name = done.expected.file_name
        if done.size != done.expected.size:
            raise Corrupt(f"{name}: {done.size} bytes came instead of {done.expected.size}; try again")
        if done.digest.hexdigest() != done.expected.sha256:
            raise Corrupt(f"{name}: the sha256 is not the one that its shard reported; try again")
        try:
            with safe_open(done.path, framework="numpy") as file:
                self._add(name, file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise Corrupt(f"{name} is not a safetensors file: {error}") from error
        done.path.unlink()

    def _add(self, name: str, metadata: dict[str, str], tensors: dict[str, Tensor]) -> None:
        version = metadata.get("version", "")
        if self._version not in (None, version):
            raise Corrupt(f"{name} has version {version}, another shard's file {self._version}")
        self._version = version
        if "facts" in metadata:
            self._facts = json.loads(metadata["facts"])
        for entry in json.loads(metadata.get("layout", "[]")):
            layer, shape = str(entry["name"]), tuple(entry["shape"])
            if layer not in tensors:
                raise Corrupt(f"{name} lacks its part of layer {layer}")
            tensor = tensors[layer]
            if entry.get("whole"):
                self._whole[layer] = tensor.reshape(shape)
                continue
            first, last = int(entry["first"]), int(entry["last"])
            if tensor.size != last - first:
                raise Corrupt(f"{name} has {tensor.size} elements of {layer}, not those from {first} to {last}")
            partial = self._partial.setdefault(
                layer, _Partial(flat=np.empty(math.prod(shape), dtype=tensor.dtype), shape=shape)
            )
            partial.flat[first:last] = tensor.reshape(-1)
            partial.ranges.append((first, last))


def _complete(name: str, layer: _Partial) -> Tensor:
    """The whole tensor. Raises Corrupt unless the ranges follow each other from the first element to the last."""
    reached = 0
    for first, last in sorted(layer.ranges):
        if first != reached:
            raise Corrupt(f"layer {name}: elements {reached} to {first} are missing or double")
        reached = last
    if reached != layer.flat.size:
        raise Corrupt(f"layer {name}: elements {reached} to {layer.flat.size} are missing")
    return layer.flat.reshape(layer.shape)
