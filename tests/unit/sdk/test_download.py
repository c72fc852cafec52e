import hashlib
import json
import resource
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from shoal.core.errors import Corrupt, Exhausted, InvalidInput, Unavailable
from shoal.models.folder import read_folder, weights_sha256
from shoal.sdk import Client
from shoal.wire.v1 import jobs_pb2
from tests.unit.sdk.fake_master import FakeMaster, Script

TENSORS = {
    "weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "bias": np.array([7, 8], dtype=np.float32),
    "batches": np.array(5, dtype=np.int64),
}
FACTS = {"train_samples": 10, "heldout_samples": 2, "input_shape": [4], "classes": 3, "fingerprint": "f"}


def shard_file(parts: dict[str, tuple[int, int]], *, whole: tuple[str, ...] = (), version: str = "20") -> bytes:
    """The file of a shard with elements [first, last) of layers, and complete tensors."""
    layout = [
        {"name": name, "shape": list(TENSORS[name].shape), "first": first, "last": last}
        for name, (first, last) in parts.items()
    ] + [{"name": name, "shape": list(TENSORS[name].shape), "whole": True} for name in whole]
    tensors = {name: TENSORS[name].reshape(-1)[first:last].copy() for name, (first, last) in parts.items()}
    tensors |= {name: TENSORS[name] for name in whole}
    metadata = {"layout": json.dumps(layout), "facts": json.dumps(FACTS), "version": version}
    return safetensors.numpy.save(tensors, metadata=metadata)


def messages(*files: bytes, sha256: str = weights_sha256(TENSORS)) -> list[jobs_pb2.DownloadResponse]:
    stream = [
        jobs_pb2.DownloadResponse(
            config_json=json.dumps({"model_type": "mlp", "shoal": {"spec": {}}}), weights_sha256=sha256
        )
    ]
    for index, content in enumerate(files):
        announced = jobs_pb2.ShardFile(
            shard_index=index,
            file_name=f"shard-{index}.safetensors",
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        stream.append(jobs_pb2.DownloadResponse(file=announced))
        stream += [jobs_pb2.DownloadResponse(data=content[at : at + 100]) for at in range(0, len(content), 100)]
    return stream


def fetch(stream: list[jobs_pb2.DownloadResponse], folder: Path):
    with FakeMaster(Script(download=stream)) as master, Client(master.address) as client:
        return client.download("job-1", folder)


FIRST = shard_file({"weight": (0, 5)}, whole=("batches",))
SECOND = shard_file({"weight": (5, 12), "bias": (0, 2)})


def test_parts_of_layers_become_one_model(tmp_path):
    saved = fetch(messages(FIRST, SECOND), tmp_path / "new" / "model")
    config, tensors = read_folder(saved.folder)
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        np.testing.assert_array_equal(tensors[name], tensor)
    assert config == {"model_type": "mlp", "shoal": {"spec": {}, "dataset": FACTS}}
    file = saved.folder / "model.safetensors"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == saved.weights_sha256
    assert sorted(path.name for path in saved.folder.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("stream", "complaint"),
    [
        (messages(FIRST), "layer weight: elements 5 to 12 are missing"),
        (messages(SECOND), "layer weight: elements 0 to 5 are missing or double"),
        (messages(FIRST, FIRST, SECOND), "missing or double"),
        (messages(FIRST, shard_file({"weight": (5, 12)})), "the weights' sha256 is"),
        (messages(FIRST, SECOND, sha256="0" * 64), "the weights' sha256 is"),
        (messages(FIRST, shard_file({"weight": (5, 12), "bias": (0, 2)}, version="19")), "has version 19"),
        (messages(FIRST, SECOND)[:-1], "bytes came instead of"),
        (messages(FIRST, b"no safetensors"), "is not a safetensors file"),
        (messages(), "no files of weights"),
        ([], "before the model's configuration"),
    ],
)
def test_a_download_that_is_not_whole_saves_nothing(tmp_path, stream, complaint):
    with pytest.raises(Corrupt, match=complaint):
        fetch(stream, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_one_changed_byte_is_noticed(tmp_path):
    stream = messages(FIRST, SECOND)
    stream[-1] = jobs_pb2.DownloadResponse(data=bytes([stream[-1].data[0] ^ 1]) + stream[-1].data[1:])
    with pytest.raises(Corrupt, match="the sha256 is not the one"):
        fetch(stream, tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="give another one"):
        fetch(messages(FIRST, SECOND), tmp_path / "file" / "model")


@pytest.mark.parametrize("messages_a_stream", range(3, 10))
def test_a_download_goes_on_where_its_connection_broke(tmp_path, messages_a_stream):
    stream = messages(FIRST, SECOND)
    script = Script(download=stream, cut_streams_after=messages_a_stream)
    with FakeMaster(script) as master, Client(master.address, patience_seconds=20) as client:
        saved = client.download("job-1", tmp_path)
    assert saved.weights_sha256 == weights_sha256(TENSORS)
    assert master.calls["Download"] > 1
    assert master.positions == sorted(master.positions)
    assert len(set(master.positions)) == len(master.positions)  # each one further than the one before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_download_whose_connections_bring_nothing_ends_with_the_patience(tmp_path):
    script = Script(download=messages(FIRST, SECOND), cut_streams_after=2)  # the head and a file's name, no data
    with FakeMaster(script) as master, Client(master.address, patience_seconds=1) as client:
        with pytest.raises(Unavailable):
            client.download("job-1", tmp_path)
    assert master.calls["Download"] > 2
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_goes_on_elsewhere_is_noticed(tmp_path):
    script = Script(download=messages(FIRST, SECOND), cut_streams_after=4, offset_error=1)
    with FakeMaster(script) as master, Client(master.address) as client:
        with pytest.raises(Corrupt, match="data from byte 201 on came, not from 200"):
            client.download("job-1", tmp_path)


def test_a_disk_without_room_is_told_and_nothing_is_left(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        with pytest.raises(Exhausted, match=f"folder {tmp_path}: the download cannot be kept there: File too large"):
            fetch(messages(FIRST, SECOND), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
