"""The saved model's folder: `model.safetensors` (every tensor of the state_dict) and `config.json`. Numpy only.

The file's bytes are a function of the tensors, so their sha256 stands for the weights: it is a job's `weights_sha256`.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from shoal.core.errors import Corrupt, InvalidInput, NotFound

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"

Tensors = Mapping[str, npt.NDArray[np.generic]]


def serialize(tensors: Tensors) -> bytes:
    """The bytes of model.safetensors, in the safetensors format, marked as PyTorch's as Hugging Face does."""
    # Not ascontiguousarray, which turns a scalar into a vector.
    arrays = {name: np.array(tensors[name], order="C") for name in sorted(tensors)}
    return safetensors.numpy.save(arrays, metadata={"format": "pt"})


def weights_sha256(tensors: Tensors) -> str:
    """sha256, hex, of `serialize(tensors)`."""
    return hashlib.sha256(serialize(tensors)).hexdigest()


def write_folder(path: Path, tensors: Tensors, config: Mapping[str, Any]) -> str:
    """Writes both files, each whole or not at all, config.json last; returns the weights' sha256, hex.

    The folder is created where needed; what else is in it stays. Raises InvalidInput if it cannot be written.
    """
    weights = serialize(tensors)
    try:
        path.mkdir(parents=True, exist_ok=True)
        _replace(path / WEIGHTS_FILE, weights)
        _replace(path / CONFIG_FILE, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    except OSError as error:
        raise InvalidInput(f"{path}: cannot save the model there: {error.strerror}") from error
    return hashlib.sha256(weights).hexdigest()


def read_folder(path: Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.generic]]]:
    """(config, tensors). Raises NotFound for a missing folder or file, InvalidInput for a path that is no folder or may
    not be read, Corrupt for files that are not what they should be.
    """
    if not path.exists():
        raise NotFound(f"{path}: no such model folder")
    if not path.is_dir():
        raise InvalidInput(f"{path}: not a folder; a saved model is one with {CONFIG_FILE} and {WEIGHTS_FILE}")
    config_bytes, weights = _read(path / CONFIG_FILE), _read(path / WEIGHTS_FILE)
    try:
        config = json.loads(config_bytes)
    except ValueError as error:
        raise Corrupt(f"{path / CONFIG_FILE}: not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise Corrupt(f"{path / CONFIG_FILE}: a JSON object is expected, not {type(config).__name__}")
    try:
        tensors = safetensors.numpy.load(weights)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise Corrupt(f"{path / WEIGHTS_FILE}: not a whole safetensors file: {error}") from error
    return config, tensors


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such file; is this a saved model's folder?") from error
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read: {error.strerror}") from error
