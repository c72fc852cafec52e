"""Snapshots on disk: readable by the safetensors library alone, never half, and confined to their folder."""

import errno
import hashlib
import json
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry
from safetensors import safe_open

from shoal.core.errors import Exhausted, NotFound
from shoal.core.facts import DatasetFacts
from shoal.metrics.parameter_server import ParameterServerMetrics
from shoal.metrics.registry import new_registry
from shoal.ps.snapshot import Capture, Part, SnapshotFolder

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


def folder_at(path: Path) -> tuple[SnapshotFolder, CollectorRegistry]:
    registry = new_registry()
    return SnapshotFolder(path, metrics=ParameterServerMetrics(registry)), registry


@pytest.fixture
def snapshots(tmp_path: Path) -> SnapshotFolder:
    return folder_at(tmp_path / "ps")[0]


def test_what_is_written_is_read_back_by_the_safetensors_library_alone(
    snapshots: SnapshotFolder, tmp_path: Path
) -> None:
    capture = capture_of(1_000, version=12)
    file = snapshots.write("job", 3, capture)
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
def test_a_file_is_read_from_any_offset_on(snapshots: SnapshotFolder, offset: int) -> None:
    file = snapshots.write("job", 0, capture_of(700_000, version=1))
    whole = b"".join(snapshots.read("job", file.name, 0))
    assert b"".join(snapshots.read("job", file.name, offset)) == whole[offset:]
    assert list(snapshots.read("job", file.name, file.size)) == []


def test_a_share_without_any_slice_can_be_written(snapshots: SnapshotFolder) -> None:
    """More shards than pages: some hold nothing."""
    file = snapshots.write("job", 9, Capture(tensors={}, parts=(), facts=None, version=5))
    assert len(b"".join(snapshots.read("job", file.name, 0))) == file.size


def test_a_half_written_file_does_not_count_and_is_replaced(snapshots: SnapshotFolder, tmp_path: Path) -> None:
    name = "shard-00000-step-000000000004.safetensors"
    half = tmp_path / "ps" / "job" / f"{name}.tmp"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    for asked in (name, half.name):
        with pytest.raises(NotFound, match="no snapshot"):
            snapshots.read("job", asked, 0)
    file = snapshots.write("job", 0, capture_of(100, version=4))
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
    older = snapshots.write("job", 0, capture_of(100, version=1))
    before = b"".join(snapshots.read("job", older.name, 0))
    with pytest.raises(Exhausted) as refused:
        snapshots.write("job", 0, capture_of(1_000_000, version=2))
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
    assert snapshots.write("job", 0, capture_of(200, version=3)).version == 3  # there is room again


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
        snapshots.write("job", 0, capture_of(100, version=1))


NO_NAMES = ["..", ".", "", "../secret", "job/../../secret", "/etc/passwd", "a/b", "a\0b"]


@pytest.fixture
def confined(tmp_path: Path) -> tuple[SnapshotFolder, Path]:
    """A folder with a job's file in it, and a secret beside it."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "secret").write_text("secret")
    snapshots, _ = folder_at(tmp_path / "ps")
    snapshots.write("job", 0, capture_of(100, version=1))
    (tmp_path / "ps" / "stray").write_text("not a job's")
    return snapshots, tmp_path


def everything(path: Path) -> list[Path]:
    return sorted(path.rglob("*"))


@pytest.mark.parametrize("name", NO_NAMES)
def test_names_that_leave_the_folder_are_not_found(confined: tuple[SnapshotFolder, Path], name: str) -> None:
    snapshots, path = confined
    for job_id, file_name in (("job", name), (name, "secret"), (name, "stray"), (name, name)):
        with pytest.raises(NotFound, match="no snapshot"):
            snapshots.read(job_id, file_name, 0)
    before = everything(path)
    snapshots.delete(name)
    assert everything(path) == before
    with pytest.raises(NotFound):
        snapshots.write(name, 0, capture_of(100, version=1))
    assert everything(path) == before


def test_delete_takes_one_jobs_files_and_no_others(confined: tuple[SnapshotFolder, Path]) -> None:
    snapshots, path = confined
    snapshots.write("job", 1, capture_of(100, version=2))
    kept = snapshots.write("job-2", 0, capture_of(100, version=2))
    (path / "ps" / "job" / "left.tmp").write_bytes(b"half")
    snapshots.delete("job")
    assert not (path / "ps" / "job").exists()
    assert b"".join(snapshots.read("job-2", kept.name, 0))
    snapshots.delete("job")  # again: nothing to do
    snapshots.delete("never-was")
