import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from shoal.process.lifetime import DIE_WITH_PARENT

CHILD = """
import os, time
from shoal.process.lifetime import DIE_WITH_PARENT, die_with_parent
die_with_parent()
print(os.getpid(), DIE_WITH_PARENT in os.environ, flush=True)
time.sleep(60)
"""
PARENT = f"""
import os, subprocess, sys, time
env = {{**os.environ, {DIE_WITH_PARENT!r}: str(os.getpid())}}
subprocess.Popen([sys.executable, "-c", {CHILD!r}], env=env, start_new_session=True)
time.sleep(60)
"""


def test_a_child_ends_with_a_parent_that_is_killed_outright():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid, inherited = parent.stdout.readline().split()
    assert inherited == "False", "the request is for this process, not for its children"
    child = psutil.Process(int(pid))
    parent.kill()
    parent.wait(10)
    parent.stdout.close()
    gone, alive = psutil.wait_procs([child], timeout=10)
    assert (gone, alive) == ([child], [])


def test_a_child_whose_parent_has_ended_already_ends_at_once():
    nobody = str(2**22 - 1)
    child = subprocess.run(
        [sys.executable, "-c", CHILD], env={**os.environ, DIE_WITH_PARENT: nobody}, timeout=30, capture_output=True
    )
    assert child.returncode == -9


def test_without_the_request_nothing_happens():
    code = "from shoal.process.lifetime import die_with_parent; die_with_parent(); print('lives')"
    environment = {name: value for name, value in os.environ.items() if name != DIE_WITH_PARENT}
    child = subprocess.run(
        [sys.executable, "-c", code], env=environment, timeout=30, capture_output=True, text=True, check=True
    )
    assert child.stdout == "lives\n"


@pytest.mark.parametrize("role", ["master", "ps", "worker"])
def test_a_role_that_still_starts_ends_at_sigterm(role):
    starting = subprocess.Popen([sys.executable, "-m", f"shoal.{role}"], stderr=subprocess.PIPE)
    try:
        proc = Path(f"/proc/{starting.pid}")
        deadline = time.monotonic() + 30
        while not handles(proc, signal.SIGTERM):
            assert time.monotonic() < deadline, "the signal is not handled"
        assert "cygrpc" not in (proc / "maps").read_text(), "by then, it may have been serving already"
        starting.terminate()
        assert starting.wait(30) == 0
    finally:
        starting.kill()
        starting.communicate()


def handles(proc: Path, number: signal.Signals) -> bool:
    """Is there a handler of the process' own for the signal (proc(5), SigCgt)?"""
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    return bool(int(status["SigCgt"], 16) & 1 << number - 1)
