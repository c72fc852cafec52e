import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid

import psutil
import pytest

from shoal.core.errors import DeadlineExceeded, InvalidInput, Unavailable
from shoal.local import processes
from shoal.local.detached import Recorded
from shoal.local.processes import MARK, Member
from tests.ports import free_port

SLEEPER = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "


@pytest.fixture
def cluster_id():
    made = uuid.uuid4().hex
    yield made
    for process in processes.marked(made):
        process.kill()


def run_marked(cluster_id: str, code: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", f"{code}print('up', flush=True); import time; time.sleep(60)"]
    process = subprocess.Popen(
        command, env={**os.environ, MARK: cluster_id}, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.stdout.close()
    return process


def test_the_mark_finds_children_that_nobody_told_of_and_stopping_leaves_none(cluster_id):
    process = run_marked(cluster_id, SLEEPER)
    deadline = time.monotonic() + 10
    while len(processes.marked(cluster_id)) != 2:  # a child that has not come to its exec yet has no environment
        assert time.monotonic() < deadline, processes.marked(cluster_id)
    assert processes.stop_all(cluster_id, [[psutil.Process(process.pid)]], grace_seconds=5) == 0
    assert processes.marked(cluster_id) == []
    process.wait(5)


def test_what_does_not_hear_sigterm_is_killed(cluster_id):
    process = run_marked(cluster_id, DEAF)
    assert processes.stop_all(cluster_id, [[psutil.Process(process.pid)]], grace_seconds=0.2) == 0
    process.wait(5)


def test_a_frozen_process_is_stopped_in_good_order(cluster_id, tmp_path):
    goodbye = f"signal.signal(signal.SIGTERM, lambda *_: (open({str(tmp_path / 'bye')!r}, 'w').close(), sys.exit()))"
    process = run_marked(cluster_id, f"import signal, sys; {goodbye}; ")
    process.send_signal(signal.SIGSTOP)
    assert processes.stop_all(cluster_id, [[psutil.Process(process.pid)]], grace_seconds=5) == 0
    assert (tmp_path / "bye").exists()
    process.wait(5)


def test_a_process_with_a_reused_id_is_not_taken_for_ours():
    me = psutil.Process()
    ours = Recorded(name="worker-1", role="worker", pid=me.pid, started_at=me.create_time())
    assert ours.find() == me
    reused = Recorded(name="worker-1", role="worker", pid=me.pid, started_at=me.create_time() - 5)
    assert reused.find() is None


def test_a_taken_port_is_refused_with_what_to_do():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(InvalidInput, match=r"address already in use; choose another one by --port"):
            processes.require_free_port("127.0.0.1", other.getsockname()[1])
    processes.require_free_port("127.0.0.1", free_port())


@pytest.fixture
def member(tmp_path):
    """Starts a program in a role's place."""
    started = []

    def start(code: str) -> Member:
        with (tmp_path / "log").open("wb") as log:
            started.append(subprocess.Popen([sys.executable, "-c", code], stderr=log))
        return Member(
            name="ps-1", role="ps", process=started[-1], ready_file=tmp_path / "ready", log_file=tmp_path / "log"
        )

    yield start
    for process in started:
        process.kill()
        process.wait(5)


def test_a_process_that_ends_instead_of_serving_is_told_with_its_error_line(member):
    broken = member("import sys; print('chatter', file=sys.stderr); sys.exit('error: port 1 is in use')")
    with pytest.raises(Unavailable, match=r"ps-1 ended with code 1: port 1 is in use \(its log: .*log\)$"):
        processes.wait_ready([broken], seconds=20, pause=threading.Event())


def test_a_process_that_is_never_ready_is_told_after_the_time_given(member):
    slow = member("import time; time.sleep(60)")
    with pytest.raises(DeadlineExceeded, match=r"ps-1 not ready after 0\.1 s"):
        processes.wait_ready([slow], seconds=0.1, pause=threading.Event())


def test_a_ready_file_ends_the_wait(member):
    ready = member("import time; time.sleep(60)")
    ready.ready_file.write_text('{"port": 5}')
    assert processes.wait_ready([ready], seconds=5, pause=threading.Event()) == {"ps-1": {"port": 5}}
