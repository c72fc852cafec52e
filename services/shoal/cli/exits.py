"""Exit codes, for scripts. docs/cli.md lists them."""

from enum import IntEnum

from shoal.core.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Forbidden,
    InvalidInput,
    NotFound,
    Refused,
    ShoalError,
    TrainingFailed,
)
from shoal.core.job import Phase


class Exit(IntEnum):
    OK = 0
    FAILED = 1  # the command itself: master not reachable, damaged download, a fault that did not happen, ...
    USAGE = 2
    JOB_FAILED = 100
    NOT_FINISHED = 101
    NOT_FOUND = 102
    JOB_CANCELLED = 103
    TIMED_OUT = 124
    INTERRUPTED = 130  # 128 + SIGINT
    TERMINATED = 143  # 128 + SIGTERM


_ERRORS: tuple[tuple[type[ShoalError], Exit], ...] = (
    (InvalidInput, Exit.USAGE),
    (Forbidden, Exit.USAGE),
    (AlreadyExists, Exit.USAGE),
    (TrainingFailed, Exit.JOB_FAILED),
    (Refused, Exit.NOT_FINISHED),
    (NotFound, Exit.NOT_FOUND),
    (DeadlineExceeded, Exit.TIMED_OUT),
)


def of_error(error: ShoalError) -> Exit:
    return next((code for cls, code in _ERRORS if isinstance(error, cls)), Exit.FAILED)


def of_phase(phase: Phase) -> Exit:
    match phase:
        case Phase.SUCCEEDED:
            return Exit.OK
        case Phase.FAILED:
            return Exit.JOB_FAILED
        case Phase.CANCELLED:
            return Exit.JOB_CANCELLED
        case _:
            return Exit.NOT_FINISHED
