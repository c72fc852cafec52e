"""How a process begins and ends: quickly, with its parent, at a signal, when memory runs out."""

import contextlib
import ctypes
import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

DIE_WITH_PARENT = "SHOAL_DIE_WITH_PARENT"  # environment: process id of the starter that the process must not outlive

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_OOM_SCORE = 1000  # of -1000..1000 (proc(5)): before all others; to raise it needs no privilege


def die_first_when_memory_runs_out() -> None:
    """Makes the kernel end this process, whose work can be done again, before any other when memory has run out."""
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text(str(_OOM_SCORE))


def end_at_sigterm() -> None:
    """SIGTERM ends this process at once with exit code 0, until it handles the signal itself. To be called first thing.

    As a container's first process (id 1) it has no default action for signals: one that comes while it starts, such as
    the deletion of its pod, would pass unnoticed, and the process be killed when the grace period is over.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Around the import of a program: nothing that it loads is searched for garbage, neither now nor later.

    The search takes half of the time that torch takes to load: it comes again and again while only more is added.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def end_now(code: int) -> NoReturn:
    """Ends this process without taking its modules apart, which takes up to a second. To be called last."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def die_with_parent(parent: int | None = None) -> None:
    """Asks the kernel to kill this process when its parent ends, even by SIGKILL. To be called first thing.

    `parent` is the process id of the expected parent; without it the environment variable SHOAL_DIE_WITH_PARENT says
    it, and without that nothing happens. The variable is taken out of the environment: it is meant for this process,
    not for its children. Linux ties the request to the *thread* that started this process, so that thread has to
    live as long as the process shall. Without effect outside Linux.
    """
    asked = os.environ.pop(DIE_WITH_PARENT, None)
    expected = parent if parent is not None else int(asked) if asked else None
    if expected is None or not sys.platform.startswith("linux"):
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != expected:  # it ended before the request was in force
        os.kill(os.getpid(), signal.SIGKILL)
