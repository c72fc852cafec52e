"""A folder of IDX files as MNIST and Fashion-MNIST come: images and labels, train and t10k, plain or .gz.

The format (yann.lecun.com/exdb/mnist): two zero bytes, a type code (8: unsigned byte), the number of dimensions,
each dimension as a big-endian 32-bit integer, then the elements.
"""

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shoal.core.errors import Corrupt, InvalidInput, NotFound
from shoal.data.paths import resolve_within
from shoal.data.split import ByteSplit, Dataset, dataset_of

_UNSIGNED_BYTE = 8


def open_idx(folder: Path, roots: Sequence[Path]) -> Dataset:
    """Train files are the training split, t10k files the held-out one; images get shape (1, height, width).

    Raises NotFound for a missing file, Forbidden for one that links out of the roots, Corrupt for a damaged one.
    """
    train, heldout = _split(folder, "train", roots), _split(folder, "t10k", roots)
    if train.x.shape[1:] != heldout.x.shape[1:]:
        raise Corrupt(f"{folder}: train images are {train.x.shape[1:]}, test images are {heldout.x.shape[1:]}")
    if not len(train):
        raise InvalidInput(f"data.source: {folder}: no training images", field="data.source")
    return dataset_of(train, heldout, classes=max(int(split.y.max(initial=0)) for split in (train, heldout)) + 1)


def _split(folder: Path, part: str, roots: Sequence[Path]) -> ByteSplit:
    images = read_idx(_find(folder, f"{part}-images-idx3-ubyte", roots), dimensions=3)
    labels = read_idx(_find(folder, f"{part}-labels-idx1-ubyte", roots), dimensions=1)
    if len(images) != len(labels):
        raise Corrupt(f"{folder}: {len(images)} {part} images but {len(labels)} labels")
    return ByteSplit(x=images[:, np.newaxis], y=labels.astype(np.int64))


def _find(folder: Path, name: str, roots: Sequence[Path]) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return resolve_within(path, roots)
    raise NotFound(f"data.source: {folder}: neither {name} nor {name}.gz is there")


def read_idx(path: Path, *, dimensions: int) -> npt.NDArray[np.uint8]:
    """One IDX file of unsigned bytes, read-only. Raises Corrupt unless header and length are exactly right."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Corrupt(f"{path}: not a whole gzip file: {error}") from error
    except OSError as error:
        raise InvalidInput(f"data.source: {path}: cannot be read: {error.strerror}", field="data.source") from error
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise Corrupt(f"{path}: {len(content)} bytes, shorter than an IDX header of {header}")
    if content[:4] != bytes((0, 0, _UNSIGNED_BYTE, dimensions)):
        raise Corrupt(
            f"{path}: begins with {content[:4].hex()}, not 0000{_UNSIGNED_BYTE:02x}{dimensions:02x} as an IDX file of "
            f"bytes in {dimensions} dimensions"
        )
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    if len(content) != header + math.prod(shape):
        raise Corrupt(f"{path}: {len(content)} bytes, but its header {shape} needs {header + math.prod(shape)}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
