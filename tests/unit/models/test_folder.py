"""The saved model's folder."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch

from shoal.core.errors import Corrupt, InvalidInput, NotFound, ShoalError
from shoal.models.folder import CONFIG_FILE, WEIGHTS_FILE, read_folder, serialize, weights_sha256, write_folder

TENSORS = {
    "b.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "a.bias": np.array([-0.0, np.float32(1e-45), 3.0], np.float32),
    "counter": np.array(7, np.int64),
    "empty": np.zeros((0, 2), np.float32),
}
CONFIG = {"model": {"type": "mlp"}, "accuracy": 0.5}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    digest = write_folder(tmp_path / "deep" / "model", TENSORS, CONFIG)
    config, tensors = read_folder(tmp_path / "deep" / "model")
    assert config == CONFIG
    assert tensors.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        assert (tensors[name].dtype, tensors[name].shape) == (array.dtype, array.shape)
        assert tensors[name].tobytes() == array.tobytes()
    assert digest == hashlib.sha256((tmp_path / "deep" / "model" / WEIGHTS_FILE).read_bytes()).hexdigest()
    assert sorted(path.name for path in (tmp_path / "deep" / "model").iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def test_the_bytes_depend_on_the_tensors_only() -> None:
    shuffled = dict(reversed(list(TENSORS.items())))
    shuffled["b.weight"] = np.asfortranarray(TENSORS["b.weight"])
    assert serialize(shuffled) == serialize(TENSORS)
    assert weights_sha256(shuffled) == weights_sha256(TENSORS) == hashlib.sha256(serialize(TENSORS)).hexdigest()
    changed = TENSORS | {"a.bias": np.array([0.0, 1e-45, 3.0], np.float32)}  # only the sign of a zero
    assert weights_sha256(changed) != weights_sha256(TENSORS)


def test_the_bytes_are_the_documented_format() -> None:
    """Against a reader written from the format's description: length, JSON header, data."""
    content = serialize({"x": np.array([1.5, 2.5], np.float32)})
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert header == {"__metadata__": {"format": "pt"}, "x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    assert np.frombuffer(content[8 + length :], np.float32).tolist() == [1.5, 2.5]


def test_torch_reads_it(tmp_path: Path) -> None:
    write_folder(tmp_path, TENSORS, CONFIG)
    tensors = safetensors.torch.load_file(tmp_path / WEIGHTS_FILE)
    assert all(np.array_equal(tensors[name].numpy(), array) for name, array in TENSORS.items())


def test_writing_again_replaces_and_keeps_other_files(tmp_path: Path) -> None:
    (tmp_path / "README").write_text("mine")
    write_folder(tmp_path, TENSORS, CONFIG)
    write_folder(tmp_path, {"x": np.zeros(1, np.float32)}, {"again": True})
    config, tensors = read_folder(tmp_path)
    assert config == {"again": True}
    assert list(tensors) == ["x"]
    assert (tmp_path / "README").read_text() == "mine"


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write_folder(tmp_path, TENSORS, CONFIG)

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(InvalidInput, match="No space left"):
        write_folder(tmp_path, {"x": np.zeros(1, np.float32)}, {})
    assert weights_sha256(read_folder(tmp_path)[1]) == before
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [
        (lambda folder: (folder / WEIGHTS_FILE).unlink(), NotFound, WEIGHTS_FILE),
        (lambda folder: (folder / CONFIG_FILE).unlink(), NotFound, CONFIG_FILE),
        (lambda folder: (folder / CONFIG_FILE).write_text("{"), Corrupt, "not valid JSON"),
        (lambda folder: (folder / CONFIG_FILE).write_text("[]"), Corrupt, "JSON object"),
        (lambda folder: (folder / CONFIG_FILE).write_bytes(b"\xff"), Corrupt, "not valid JSON"),
        (lambda folder: (folder / WEIGHTS_FILE).write_bytes(b""), Corrupt, "safetensors"),
        (lambda folder: os.truncate(folder / WEIGHTS_FILE, 60), Corrupt, "safetensors"),
        (lambda folder: (folder / WEIGHTS_FILE).write_bytes(b"x" * 500), Corrupt, "safetensors"),
    ],
)
def test_a_damaged_folder_is_one_clear_line(tmp_path: Path, damage: object, error: type[ShoalError], said: str) -> None:
    write_folder(tmp_path, TENSORS, CONFIG)
    assert callable(damage)
    damage(tmp_path)
    with pytest.raises(error) as caught:
        read_folder(tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_that_is_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="not a folder"):
        read_folder(tmp_path / "file")
    with pytest.raises(InvalidInput, match="cannot save"):
        write_folder(tmp_path / "file", TENSORS, CONFIG)
    with pytest.raises(NotFound, match="no such model folder"):
        read_folder(tmp_path / "absent")
