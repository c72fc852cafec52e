"""What the kernel is asked when a snapshot is written, and in which order: seen by strace on a running server."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.core.job import Phase
from shoal.local import Cluster
from tests.faults.test_crash_points import spec_of, until

SECONDS = 120.0
CALLS = "openat,open,write,pwrite64,writev,fsync,fdatasync,rename,renameat,renameat2,sendmsg,sendto"
_LINE = re.compile(r"^\d+ +[\d.]+ (?P<call>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+)")


@pytest.fixture(scope="module")
def strace() -> str:
    """The program, or a skip that says why there is none."""
    program = shutil.which("strace")
    if program is None:
        pytest.skip("NOT TESTED: the order of a snapshot's system calls; there is no strace (apt-get install strace)")
    tried = subprocess.run([program, "-f", sys.executable, "-c", ""], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"NOT TESTED: the order of a snapshot's system calls; strace may not: {tried.stderr[-200:]}")
    return program


def calls_of(trace: str) -> Iterator[tuple[str, str]]:
    """(call, arguments) of those that succeeded, in order; those that were interrupted by others' put together."""
    begun: dict[str, str] = {}
    for line in trace.splitlines():
        thread = line.partition(" ")[0]
        if line.endswith("<unfinished ...>"):
            begun[thread] = line.removesuffix("<unfinished ...>")
            continue
        if (resumed := re.match(r"^\d+ +[\d.]+ <\.\.\. \w+ resumed>(.*)$", line)) is not None:
            line = begun.pop(thread) + resumed[1]
        if (match := _LINE.match(line)) is not None and int(match["result"]) >= 0:
            yield match["call"], match["arguments"]


@pytest.mark.timeout(180)
def test_a_snapshot_is_synced_before_it_gets_its_name_and_its_folder_before_the_master_hears(
    strace: str, tmp_path: Path
) -> None:
    """write of *.tmp, fsync of it, rename, fsync of the folder, and only then the answer with the file's sha256."""
    output = tmp_path / "trace.txt"
    with Cluster(workers=1, shards=1) as cluster, cluster.client() as client:
        server = cluster.member("ps-1")
        command = [strace, "-f", "-ttt", "-yy", "-s", "20000", "-e", f"trace={CALLS}", "-o", str(output)]
        told = tmp_path / "told.txt"
        with told.open("w") as log:
            follower = subprocess.Popen([*command, "-p", str(server.pid)], stderr=log)
        try:
            until(lambda: told.read_text() or follower.poll() is not None, "strace says nothing")
            if "attached" not in told.read_text():
                pytest.skip(f"NOT TESTED: the order of a snapshot's system calls; {told.read_text()}")
            job_id = client.submit(spec_of(steps=1000, resources={"shards": 1}, snapshots={"every_steps": 100})).job_id
            snapshot = until(lambda: next(iter(client.snapshots(job_id)), None), "no snapshot")
            assert client.wait(job_id, timeout=SECONDS).phase is Phase.SUCCEEDED
        finally:
            follower.terminate()
            follower.wait()
    (file,) = snapshot.files
    temporary, folder = f"{job_id}/{file.name}.tmp", f"{job_id}>"
    seen = list(calls_of(output.read_text(errors="replace")))

    def where(what: str, *calls: str, of: str, after: int = -1) -> int:
        """The first such call behind another one."""
        found = [at for at, (call, arguments) in enumerate(seen) if at > after and call in calls and of in arguments]
        assert found, f"{what} is not to be seen"
        return found[0]

    opened = where("the opening of the file", "openat", "open", of=temporary)
    writes = [
        at for at, (call, arguments) in enumerate(seen) if "write" in call and temporary in arguments.partition(",")[0]
    ]
    synced = where("the fsync of the file", "fsync", "fdatasync", of=temporary)
    renamed = where("the renaming", "rename", "renameat", "renameat2", of=temporary)
    folder_synced = where("the fsync of the folder", "fsync", of=folder, after=renamed)
    answered = where("the answer to the master", "sendmsg", "sendto", "write", "writev", of=file.sha256)
    assert opened < writes[0], "it is opened first"
    assert writes[-1] < synced < renamed < folder_synced < answered
