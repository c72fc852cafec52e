"""One suite for every place where snapshots can be kept: a local folder, and S3 as moto's server speaks it."""

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.ps.targets.base import SnapshotTarget
from shoal.ps.targets.opening import open_target
from tests.s3 import S3Server, running_s3

LARGE = 40 << 20  # several parts of an upload


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with running_s3() as server:
        yield server


@pytest.fixture(params=["local", "s3"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> SnapshotTarget:
    if request.param == "local":
        return open_target("", data_dir=tmp_path / "ps")
    server: S3Server = request.getfixturevalue("s3")
    return open_target(f"{server.url}/{uuid.uuid4().hex}", data_dir=tmp_path)


def content(target: SnapshotTarget, job_id: str, name: str) -> bytes:
    with target.open(job_id, name) as file:
        return b"".join(iter(lambda: file.read(1 << 20), b""))


def test_a_file_comes_back_as_it_was_written(target: SnapshotTarget) -> None:
    target.write("job", "small", [b"ab", memoryview(b"cd"), b""])
    assert content(target, "job", "small") == b"abcd"
    with target.open("job", "small") as file:
        file.seek(1)
        assert file.read(2) == b"bc"
        target_buffer = bytearray(2)
        file.seek(2)
        assert file.readinto(target_buffer) == 2  # type: ignore[attr-defined]
        assert target_buffer == b"cd"


def test_a_large_file_comes_back_as_it_was_written(target: SnapshotTarget) -> None:
    piece = bytes(range(256)) * 4096
    target.write("job", "large", [piece] * (LARGE >> 20))
    assert content(target, "job", "large") == piece * (LARGE >> 20)


def test_an_empty_file_is_a_file(target: SnapshotTarget) -> None:
    target.write("job", "empty", [])
    assert content(target, "job", "empty") == b""
    assert target.names("job") == ("empty",)


def test_a_file_is_replaced_whole(target: SnapshotTarget) -> None:
    target.write("job", "file", [b"first, and longer"])
    target.write("job", "file", [b"second"])
    assert content(target, "job", "file") == b"second"


def test_what_is_there_is_listed_by_job(target: SnapshotTarget) -> None:
    assert target.jobs() == ()
    assert target.names("job-1") == ()
    target.write("job-1", "b", [b"1"])
    target.write("job-1", "a", [b"1"])
    target.write("job-10", "c", [b"1"])
    assert target.jobs() == ("job-1", "job-10")
    assert target.names("job-1") == ("a", "b")
    assert target.names("job-10") == ("c",)
    assert target.names("job") == ()


def test_a_file_that_is_not_there_is_not_found(target: SnapshotTarget) -> None:
    target.write("job", "there", [b"1"])
    for job_id, name in (("job", "here"), ("another", "there")):
        with pytest.raises(FileNotFoundError):
            target.open(job_id, name)


class _ItBroke(Exception):
    pass


@pytest.mark.parametrize("pieces", [0, 1, LARGE >> 20])
def test_of_a_write_that_breaks_off_nothing_stays_and_the_older_file_does(target: SnapshotTarget, pieces: int) -> None:
    def broken() -> Iterator[bytes]:
        for _ in range(pieces):
            yield bytes(1 << 20)
        raise _ItBroke

    target.write("job", "file", [b"older"])
    for name in ("file", "new"):
        with pytest.raises(_ItBroke):
            target.write("job", name, broken())
    assert target.names("job") == ("file",)
    assert content(target, "job", "file") == b"older"
    assert target.clean() == 0


def test_nothing_is_to_be_seen_of_a_file_before_it_is_whole(target: SnapshotTarget) -> None:
    seen: list[tuple[str, ...]] = []

    def watched() -> Iterator[bytes]:
        for _ in range(LARGE >> 20):
            yield bytes(1 << 20)
        seen.append(target.names("job"))
        with pytest.raises(FileNotFoundError):
            target.open("job", "file")

    target.write("job", "file", watched())
    assert seen == [()]
    assert target.names("job") == ("file",)


def test_deleted_files_are_gone_and_those_that_were_not_there_are_no_error(target: SnapshotTarget) -> None:
    for name in ("a", "b", "c"):
        target.write("job", name, [b"1"])
    target.delete("job", ["a", "c", "never-was"])
    assert target.names("job") == ("b",)
    target.delete("never-was", ["a"])


def test_a_deleted_job_takes_its_files_and_no_others(target: SnapshotTarget) -> None:
    for job_id in ("job", "job-2"):
        target.write(job_id, "a", [b"1"])
        target.write(job_id, "b", [b"1"])
    target.delete_job("job")
    target.delete_job("job")
    assert target.jobs() == ("job-2",)
    assert target.names("job-2") == ("a", "b")


def test_files_of_several_writers_at_a_time_do_not_mix(target: SnapshotTarget) -> None:
    def write(index: int) -> None:
        target.write("job", f"file-{index}", [bytes([index]) * (1 << 20)] * 18)

    threads = [threading.Thread(target=write, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(3):
        assert set(content(target, "job", f"file-{index}")) == {index}


def test_its_name_tells_where_it_is(target: SnapshotTarget) -> None:
    assert str(target).startswith(("s3://snapshots/", "/"))
