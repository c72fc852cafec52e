"""The safetensors format in pieces: written from tensors and read into tensors without a second copy of them all.

The library's `save` and `load` make one, and what is written here runs beside training. The bytes are those that the
library's `save` gives. Format: https://huggingface.co/docs/safetensors (8 bytes of header length, a JSON header, the
tensors end to end; little-endian).
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

import torch
from torch import Tensor

from shoal.core.errors import Corrupt

PIECE_BYTES = 4 << 20  # of one write or read: large enough for a disk, small enough to bound what is in flight
_ALIGNMENT = 8
_LONGEST_HEADER_BYTES = 100 << 20  # the library's own bound
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_ORDER = ["I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL"]  # as the library sorts dtypes


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    metadata: Mapping[str, str]
    tensors: Mapping[str, Tensor]


def pieces(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The file's bytes. The tensors must be contiguous and stay as they are until the last piece has been taken."""
    ordered = sorted(tensors, key=lambda name: (_ORDER.index(_NAMES[tensors[name].dtype]), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in ordered:
        tensor = tensors[name]
        end = offset + tensor.nbytes
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    yield len(text).to_bytes(8, "little") + text
    for name in ordered:
        yield from _cut(_bytes_of(tensors[name]))


def read(
    file: BinaryIO, *, name: str, size: int, sha256: str, wanted: Callable[[str], bool] = lambda _: True
) -> Contents:
    """The wanted tensors of a file that must have this size and sha256. Raises Corrupt, naming it, if it has not."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="sha256") as hashing:
        return _read(_Checked(file, name, size, hashing), name, sha256, wanted)


def _read(source: "_Checked", name: str, sha256: str, wanted: Callable[[str], bool]) -> Contents:
    length = int.from_bytes(source.take(8), "little")
    if length > min(_LONGEST_HEADER_BYTES, source.left):
        raise Corrupt(f"{name}: not a safetensors file, or a damaged one: a header of {length} bytes")
    header, metadata = _parsed(source.take(length), name)
    tensors: dict[str, Tensor] = {}
    for key, (dtype, shape, count) in header.items():
        if count > source.left:
            raise Corrupt(f"{name}: it ends within {key}")
        if wanted(key):
            tensors[key] = torch.empty(shape, dtype=dtype)
            source.fill(_bytes_of(tensors[key]))
        else:
            source.skip(count)
    source.end(sha256)
    return Contents(metadata=metadata, tensors=tensors)


class _Checked:
    """A file from its first to its last byte, counted and hashed on the way.

    It is hashed behind the reader's back: sha256 takes longer than the copy from the page cache, and each lets the
    other run. Whoever uses a buffer twice waits for `_hashed` in between.
    """

    def __init__(self, file: BinaryIO, name: str, size: int, hashing: Executor) -> None:
        self._file = file
        self._name = name
        self._size = size
        self.left = size
        self._digest = hashlib.sha256()
        self._hashing = hashing
        self._hashed: Future[None] = hashing.submit(self._digest.update, b"")  # done when all parts so far are in

    def fill(self, target: memoryview) -> None:
        for part in _cut(target):
            got = 0
            while got < len(part):
                count = self._file.readinto(part[got:])  # type: ignore[attr-defined]
                if not count:
                    have = self._size - self.left + got
                    raise Corrupt(f"{self._name}: it has {have} bytes, {self._size} were written")
                got += count
            self._hashed = self._hashing.submit(self._digest.update, part)  # one thread: in this order
            self.left -= len(part)

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise Corrupt(f"{self._name}: it should have only {self._size} bytes")
        data = bytearray(count)
        self.fill(memoryview(data))
        return bytes(data)

    def skip(self, count: int) -> None:
        scratch = memoryview(bytearray(min(count, PIECE_BYTES)))
        while count:
            part = scratch[: min(count, PIECE_BYTES)]
            self.fill(part)
            self._hashed.result()
            count -= len(part)

    def end(self, sha256: str) -> None:
        if self.left or self._file.read(1):
            raise Corrupt(f"{self._name}: it has more bytes than its header says or than the {self._size} written")
        self._hashed.result()
        if self._digest.hexdigest() != sha256:
            raise Corrupt(f"{self._name}: its sha256 is {self._digest.hexdigest()}, that of what was written {sha256}")


_Header = dict[str, tuple[torch.dtype, tuple[int, ...], int]]  # dtype, shape, bytes; in the order of the data


def _parsed(text: bytes, name: str) -> tuple[_Header, dict[str, str]]:
    try:
        document = json.loads(text)
        metadata = {str(key): str(value) for key, value in document.pop("__metadata__", {}).items()}
        entries = sorted(document.items(), key=lambda entry: int(entry[1]["data_offsets"][0]))
        header: _Header = {}
        reached = 0
        for key, entry in entries:
            dtype, shape = _DTYPES[entry["dtype"]], tuple(int(length) for length in entry["shape"])
            first, last = (int(offset) for offset in entry["data_offsets"])
            count = math.prod(shape) * dtype.itemsize
            if first != reached or last != first + count or min(shape, default=0) < 0:
                raise ValueError(f"{key} lies at {first} to {last}")
            header[key] = (dtype, shape, count)
            reached = last
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(f"{name}: its header is not understood: {error}") from error
    return header, metadata


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _cut(data: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(data), PIECE_BYTES):
        yield data[start : start + PIECE_BYTES]
