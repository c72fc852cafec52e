"""Which processes a command has left behind: those that carry the mark it was given in its environment."""

import time
import uuid

import psutil

TAG = "SHOALTEST_TAG"  # inherited by everything that the command starts, whatever becomes of their parents


def new_tag() -> str:
    return uuid.uuid4().hex


def processes(tag: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(TAG) == tag and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            continue
    return found


def none_left(tag: str, *, seconds: float = 0) -> bool:
    """Within `seconds`: the kernel needs a moment to carry out SIGKILL."""
    end = time.monotonic() + seconds
    while (alive := processes(tag)) and time.monotonic() < end:
        psutil.wait_procs(alive, timeout=0.1)
    return not alive
