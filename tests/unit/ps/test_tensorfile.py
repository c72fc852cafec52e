"""Files in pieces against the safetensors library's own, and every way in which a file can be another one."""

import hashlib
import io
import json

import pytest
import safetensors.torch
import torch
from torch import Tensor

from shoal.core.errors import Corrupt
from shoal.ps import tensorfile

TENSORS = {
    "weight": torch.arange(15, dtype=torch.float32).view(5, 3) / 7,
    "counter": torch.tensor(3),
    "flags": torch.tensor([True, False, True]),
    "half": torch.arange(4).half(),
    "brain": torch.arange(3).bfloat16(),
    "losses": torch.arange(2, dtype=torch.float64) / 3,
    "ints": torch.arange(3, dtype=torch.int32),
    "bytes": torch.arange(3, dtype=torch.uint8),
    "nothing": torch.empty(0),
    "größe": torch.tensor([1.5]),
    "large": torch.arange(3_000_000, dtype=torch.float32),  # several pieces
}


def written(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    return b"".join(map(bytes, tensorfile.pieces(tensors, metadata)))


def read(data: bytes, *, size: int | None = None, sha256: str | None = None) -> tensorfile.Contents:
    return tensorfile.read(
        io.BytesIO(data),
        name="file",
        size=len(data) if size is None else size,
        sha256=hashlib.sha256(data).hexdigest() if sha256 is None else sha256,
    )


@pytest.mark.parametrize("metadata", [{}, {"layout": '[{"name": "größe\\n"}]'}])
def test_the_bytes_are_those_of_the_library(metadata: dict[str, str]) -> None:
    assert written(TENSORS, metadata) == safetensors.torch.save(TENSORS, metadata or None)
    assert written({}, {"version": "5"}) == safetensors.torch.save({}, {"version": "5"})


def test_what_the_library_writes_is_read() -> None:
    contents = read(safetensors.torch.save(TENSORS, {"a": "b"}))
    assert contents.metadata == {"a": "b"}
    assert contents.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert (contents.tensors[name].dtype, contents.tensors[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(contents.tensors[name], tensor)


def test_only_what_is_wanted_is_kept_but_all_is_checked() -> None:
    data = written(TENSORS, {})
    digest = hashlib.sha256(data).hexdigest()
    found = tensorfile.read(
        io.BytesIO(data), name="file", size=len(data), sha256=digest, wanted=lambda name: name == "weight"
    )
    assert found.tensors.keys() == {"weight"}
    damaged = bytearray(data)
    damaged[-1] ^= 1  # in a tensor that nobody wants
    with pytest.raises(Corrupt, match="file: its sha256 is"):
        tensorfile.read(
            io.BytesIO(damaged), name="file", size=len(data), sha256=digest, wanted=lambda name: name == "weight"
        )


def test_no_piece_is_large() -> None:
    assert max(map(len, tensorfile.pieces(TENSORS, {}))) <= tensorfile.PIECE_BYTES


@pytest.mark.parametrize("at", [0, 5, 9, 200, 3_000_000, -1])
def test_a_flipped_bit_anywhere_is_found(at: int) -> None:
    data = written(TENSORS, {"version": "1"})
    damaged = bytearray(data)
    damaged[at] ^= 0x10
    with pytest.raises(Corrupt, match="file: "):
        read(bytes(damaged), sha256=hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("kept", [0, 7, 8, 100, 5_000_000, -1])
def test_a_truncated_file_is_found_and_the_message_has_both_sizes(kept: int) -> None:
    data = written(TENSORS, {})
    with pytest.raises(Corrupt, match=rf"file: it has \d+ bytes, {len(data)} were written"):
        read(data[:kept], size=len(data), sha256=hashlib.sha256(data).hexdigest())


def test_a_longer_file_is_found() -> None:
    data = written(TENSORS, {})
    with pytest.raises(Corrupt, match="more bytes"):
        read(data + b"x", size=len(data), sha256=hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"[]",
        b'{"a": 5}',
        json.dumps({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4 << 40]}}).encode(),
    ],
)
def test_a_header_that_makes_no_sense_is_refused_before_memory_is_taken(header: bytes) -> None:
    with pytest.raises(Corrupt, match="file: "):
        read(len(header).to_bytes(8, "little") + header + bytes(4))


def test_a_header_longer_than_the_file_is_refused() -> None:
    with pytest.raises(Corrupt, match="a header of"):
        read((1 << 40).to_bytes(8, "little") + b"{}")
