"""Snapshots on disk: readable by the safetensors library alone, never half, and confined to their folder."""

import errno
import hashlib
import json
import math
import os
import resource
import subprocess
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import safetensors.torch
import torch
from prometheus_client import CollectorRegistry
from safetensors import safe_open

from shoal.core.errors import Corrupt, Exhausted, NotFound, Unavailable
from shoal.core.facts import DatasetFacts
from shoal.metrics.parameter_server import ParameterServerMetrics
from shoal.metrics.registry import new_registry
from shoal.ps.snapshot import (
    Capture,
    Continuation,
    EvaluationResult,
    Part,
    Restore,
    SnapshotFile,
    Snapshots,
    model_name,
)
from shoal.ps.targets.local import LocalFolder

FACTS = DatasetFacts(train_samples=7, heldout_samples=3, input_shape=(4,), classes=2, fingerprint="abc")


def capture_of(elements: int, version: int) -> Capture:
    values = torch.arange(elements, dtype=torch.float32) * 0.1 + version
    return Capture(
        tensors={"weight": values, "counter": torch.tensor(version)},
        parts=(
            Part(name="weight", shape=(elements // 2, 4), first=0, last=elements),
            Part(name="counter", shape=()),
        ),
        facts=FACTS,
        version=version,
    )


def folder_at(path: Path) -> tuple[Snapshots, CollectorRegistry]:
    registry = new_registry()
    return Snapshots(LocalFolder(path), metrics=ParameterServerMetrics(registry)), registry


def write(snapshots: Snapshots, job_id: str, shard: int, capture: Capture) -> SnapshotFile:
    return snapshots.write(job_id, model_name(shard, capture.version), capture)


@pytest.fixture
def snapshots(tmp_path: Path) -> Snapshots:
    return folder_at(tmp_path / "ps")[0]


def test_what_is_written_is_read_back_by_the_safetensors_library_alone(snapshots: Snapshots, tmp_path: Path) -> None:
    capture = capture_of(1_000, version=12)
    file = write(snapshots, "job", 3, capture)
    data = b"".join(snapshots.read("job", file.name, 0))
    assert (len(data), hashlib.sha256(data).hexdigest(), 12) == (file.size, file.sha256, file.version)
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(data)
    with safe_open(copy, framework="pt") as opened:
        assert sorted(opened.keys()) == ["counter", "weight"]
        assert opened.get_tensor("weight").numpy().tobytes() == capture.tensors["weight"].numpy().tobytes()
        assert opened.get_tensor("counter").item() == 12
        metadata = opened.metadata()
    assert json.loads(metadata["layout"]) == [
        {"name": "weight", "shape": [500, 4], "first": 0, "last": 1_000},
        {"name": "counter", "shape": [], "whole": True},
    ]
    assert json.loads(metadata["facts"])["fingerprint"] == "abc"
    assert metadata["version"] == "12"
    assert sorted(path.name for path in (tmp_path / "ps" / "job").iterdir()) == [file.name]


@pytest.mark.parametrize("offset", [0, 1, 1 << 20, (1 << 20) + 17])
def test_a_file_is_read_from_any_offset_on(snapshots: Snapshots, offset: int) -> None:
    file = write(snapshots, "job", 0, capture_of(700_000, version=1))
    whole = b"".join(snapshots.read("job", file.name, 0))
    assert b"".join(snapshots.read("job", file.name, offset)) == whole[offset:]
    assert list(snapshots.read("job", file.name, file.size)) == []


def test_a_share_without_any_slice_can_be_written(snapshots: Snapshots) -> None:
    """More shards than pages: some hold nothing."""
    file = write(snapshots, "job", 9, Capture(tensors={}, parts=(), facts=None, version=5))
    assert len(b"".join(snapshots.read("job", file.name, 0))) == file.size


def test_a_half_written_file_does_not_count_and_is_replaced(snapshots: Snapshots, tmp_path: Path) -> None:
    name = "shard-00000-step-000000000004.safetensors"
    half = tmp_path / "ps" / "job" / f"{name}.tmp"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    for asked in (name, half.name):
        with pytest.raises(NotFound, match="no snapshot"):
            snapshots.read("job", asked, 0)
    file = write(snapshots, "job", 0, capture_of(100, version=4))
    assert file.name == name
    assert b"".join(snapshots.read("job", name, 0))[:4] != b"half"
    assert not half.exists()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    path = tmp_path / "tiny"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def write_too_much(path: Path) -> None:
    """A small snapshot, then one that does not fit: one clear error, and the small one is untouched."""
    snapshots, registry = folder_at(path)
    older = write(snapshots, "job", 0, capture_of(100, version=1))
    before = b"".join(snapshots.read("job", older.name, 0))
    with pytest.raises(Exhausted) as refused:
        write(snapshots, "job", 0, capture_of(1_000_000, version=2))
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"cannot write snapshot {path}/job/shard-00000-step-000000000002.safetensors")
    assert isinstance(refused.value.__cause__, OSError)
    assert refused.value.__cause__.errno in (errno.ENOSPC, errno.EFBIG)
    assert os.strerror(refused.value.__cause__.errno) in str(refused.value)
    assert [entry.name for entry in (path / "job").iterdir()] == [older.name]
    assert b"".join(snapshots.read("job", older.name, 0)) == before
    assert registry.get_sample_value("shoal_ps_snapshots_total", {"outcome": "failed"}) == 1
    assert registry.get_sample_value("shoal_ps_snapshots_total", {"outcome": "written"}) == 1


def test_a_full_disk_gives_one_clear_error_and_leaves_the_older_file(tiny_disk: Path) -> None:
    write_too_much(tiny_disk)
    snapshots, _ = folder_at(tiny_disk)
    assert write(snapshots, "job", 0, capture_of(200, version=3)).version == 3  # there is room again


def test_a_limit_on_file_sizes_gives_one_clear_error_and_leaves_the_older_file(tmp_path: Path) -> None:
    """The same without any right to mount: Python ignores SIGXFSZ, so the kernel answers EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        write_too_much(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_folder_that_cannot_be_made_gives_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    snapshots, _ = folder_at(tmp_path / "file")
    with pytest.raises(Exhausted, match=r"cannot write snapshot .*: Not a directory"):
        write(snapshots, "job", 0, capture_of(100, version=1))


NO_NAMES = ["..", ".", "", "../secret", "job/../../secret", "/etc/passwd", "a/b", "a\0b"]


@pytest.fixture
def confined(tmp_path: Path) -> tuple[Snapshots, Path]:
    """A folder with a job's file in it, and a secret beside it."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "secret").write_text("secret")
    snapshots, _ = folder_at(tmp_path / "ps")
    write(snapshots, "job", 0, capture_of(100, version=1))
    (tmp_path / "ps" / "stray").write_text("not a job's")
    return snapshots, tmp_path


def everything(path: Path) -> list[Path]:
    return sorted(path.rglob("*"))


@pytest.mark.parametrize("name", NO_NAMES)
def test_names_that_leave_the_folder_are_not_found(confined: tuple[Snapshots, Path], name: str) -> None:
    snapshots, path = confined
    for job_id, file_name in (("job", name), (name, "secret"), (name, "stray"), (name, name)):
        with pytest.raises(NotFound, match="no snapshot"):
            snapshots.read(job_id, file_name, 0)
    before = everything(path)
    snapshots.delete_job(name)
    snapshots.delete(name, ["secret", "stray"])
    snapshots.delete("job", [name])
    assert everything(path) == before
    with pytest.raises(NotFound):
        write(snapshots, name, 0, capture_of(100, version=1))
    assert everything(path) == before


def test_delete_takes_one_jobs_files_and_no_others(confined: tuple[Snapshots, Path]) -> None:
    snapshots, path = confined
    write(snapshots, "job", 1, capture_of(100, version=2))
    kept = write(snapshots, "job-2", 0, capture_of(100, version=2))
    (path / "ps" / "job" / "left.tmp").write_bytes(b"half")
    snapshots.delete_job("job")
    assert not (path / "ps" / "job").exists()
    assert b"".join(snapshots.read("job-2", kept.name, 0))
    snapshots.delete_job("job")  # again: nothing to do
    snapshots.delete_job("never-was")


# -- what a share goes on from -----------------------------------------------------------------------------------


def continued(version: int = 7) -> Capture:
    """With everything that a continuation has; nan and a layer's name with a colon among it."""
    capture = capture_of(40, version)
    return Capture(
        tensors=capture.tensors,
        parts=capture.parts,
        facts=capture.facts,
        version=version,
        continuation=Continuation(
            shard=1,
            shards=3,
            optimizer={"a:b.weight": {"momentum_buffer": torch.arange(4.0), "step": torch.tensor(7.0)}},
            integers=b"\x01\x02\x03",
            last_loss=math.nan,
            losses=array("d", [0.1, math.inf, 0.3]),
            evaluations=(EvaluationResult(version=5, correct=3, samples=4, loss=1 / 3),),
        ),
    )


def restore_of(file: SnapshotFile) -> Restore:
    return Restore(name=file.name, size=file.size, sha256=file.sha256, version=file.version)


def test_a_continuation_comes_back_bit_for_bit(snapshots: Snapshots) -> None:
    capture = continued()
    loaded = snapshots.load("job", restore_of(write(snapshots, "job", 1, capture)))
    assert (loaded.parts, loaded.facts, loaded.version) == (capture.parts, capture.facts, capture.version)
    assert {name: tensor.numpy().tobytes() for name, tensor in loaded.tensors.items()} == {
        name: tensor.numpy().tobytes() for name, tensor in capture.tensors.items()
    }
    have, was = loaded.continuation, capture.continuation
    assert have is not None
    assert was is not None
    assert (have.shard, have.shards, have.integers, have.evaluations) == (1, 3, was.integers, was.evaluations)
    assert math.isnan(have.last_loss)
    assert have.losses.tobytes() == was.losses.tobytes()
    assert list(have.optimizer) == ["a:b.weight"]
    assert torch.equal(have.optimizer["a:b.weight"]["momentum_buffer"], torch.arange(4.0))
    assert torch.equal(have.optimizer["a:b.weight"]["step"], torch.tensor(7.0))


def test_a_download_sees_the_model_in_it_and_nothing_else(snapshots: Snapshots, tmp_path: Path) -> None:
    file = write(snapshots, "job", 1, continued())
    (tmp_path / "copy.safetensors").write_bytes(b"".join(snapshots.read("job", file.name, 0)))
    with safe_open(tmp_path / "copy.safetensors", framework="pt") as opened:
        listed = [entry["name"] for entry in json.loads(opened.metadata()["layout"])]
        assert sorted(listed) == ["counter", "weight"]
        assert all(name.startswith("shoal:") for name in set(opened.keys()) - set(listed))


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    match how:
        case "a bit":
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        case "the end":
            path.write_bytes(data[:-1])
        case "more":
            path.write_bytes(data + b"x")
        case "nothing":
            path.write_bytes(b"")
        case "missing":
            path.unlink()
        case "a folder":
            path.unlink()
            path.mkdir()


@pytest.mark.parametrize("how", ["a bit", "the end", "more", "nothing", "missing", "a folder"])
def test_a_damaged_file_is_corrupt_and_the_message_names_it(snapshots: Snapshots, tmp_path: Path, how: str) -> None:
    file = write(snapshots, "job", 1, continued())
    damage(tmp_path / "ps" / "job" / file.name, how)
    with pytest.raises(Corrupt, match=f"^snapshot {file.name} of job job"):
        snapshots.load("job", restore_of(file))


def test_a_file_of_a_model_alone_or_of_another_version_is_nothing_to_go_on_from(snapshots: Snapshots) -> None:
    model = write(snapshots, "job", 0, capture_of(40, version=3))
    with pytest.raises(Corrupt, match="no state to go on"):
        snapshots.load("job", restore_of(model))
    file = restore_of(write(snapshots, "job", 1, continued(version=7)))
    with pytest.raises(Corrupt, match="it holds version 7, not 8"):
        snapshots.load("job", replace(file, version=8))


def test_a_safetensors_file_of_somebody_else_is_no_snapshot(snapshots: Snapshots, tmp_path: Path) -> None:
    data = safetensors.torch.save({"weight": torch.zeros(3)})
    (tmp_path / "ps" / "job").mkdir(parents=True)
    (tmp_path / "ps" / "job" / "file").write_bytes(data)
    restore = Restore(name="file", size=len(data), sha256=hashlib.sha256(data).hexdigest(), version=1)
    with pytest.raises(Corrupt, match="not a share's snapshot"):
        snapshots.load("job", restore)


def test_a_file_that_may_not_be_read_is_not_called_damaged(snapshots: Snapshots, monkeypatch: Any) -> None:
    """Permissions come back; a snapshot that was given up does not."""
    file = write(snapshots, "job", 1, continued())

    def refuse(*_: object) -> BinaryIO:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(LocalFolder, "open", refuse)
    with pytest.raises(Unavailable, match="may not be read"):
        snapshots.load("job", restore_of(file))


def test_what_earlier_processes_left_half_written_is_removed_but_not_what_is_being_written(tmp_path: Path) -> None:
    snapshots, _ = folder_at(tmp_path)
    file = write(snapshots, "job", 0, capture_of(40, version=1))
    for name in ("job/left.tmp", "other/left.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    seen: list[int] = []

    class Watched(LocalFolder):
        def write(self, job_id: str, name: str, pieces: Iterable[bytes | memoryview]) -> None:
            def watched() -> Iterator[bytes | memoryview]:
                yield from pieces
                seen.append(LocalFolder(tmp_path).clean())  # another server's start

            super().write(job_id, name, watched())

    writer = Snapshots(Watched(tmp_path), metrics=ParameterServerMetrics(new_registry()))
    other = write(writer, "job", 1, capture_of(40, version=1))
    assert seen == [2]
    assert snapshots.names("job") == (file.name, other.name)
    assert snapshots.clean() == 0


def test_a_stopping_server_gives_up_what_it_writes(tmp_path: Path) -> None:
    snapshots, _ = folder_at(tmp_path)
    snapshots.stop()
    with pytest.raises(Unavailable, match="shutting down"):
        write(snapshots, "job", 0, capture_of(40, version=1))
    assert list((tmp_path / "job").iterdir()) == []
