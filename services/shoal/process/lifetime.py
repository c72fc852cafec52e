"""Whom a process must not outlive."""

import ctypes
import os
import signal
import sys

DIE_WITH_PARENT = "SHOAL_DIE_WITH_PARENT"  # environment: process id of the starter that the process must not outlive

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


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
