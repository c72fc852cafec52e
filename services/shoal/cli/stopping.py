"""Ctrl-C, SIGTERM and a closed terminal as exceptions, so that everything is put away on the way out."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from shoal.cli.exits import Exit

_CODES = {
    signal.SIGINT: (Exit.INTERRUPTED, "interrupted"),
    signal.SIGTERM: (Exit.TERMINATED, "terminated"),
    signal.SIGHUP: (Exit.TERMINATED, "terminal closed"),
}


class Stopped(BaseException):  # not an Exception: nothing may catch it by accident
    """Somebody wants the command to end."""

    def __init__(self, code: Exit, text: str) -> None:
        super().__init__(text)
        self.code = code


def install() -> None:
    """From now on these signals raise Stopped in the main thread."""
    for number in _CODES:
        signal.signal(number, _raise)


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """An impatient second Ctrl-C must not cut short the clean-up."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _CODES}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int, _: FrameType | None) -> None:
    code, text = _CODES[signal.Signals(number)]
    raise Stopped(code, text)
