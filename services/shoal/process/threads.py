"""Named threads with a guard: an eternal thread that ends by an exception takes the process down, loudly."""

import os
import threading
from collections.abc import Callable

import structlog


def start_thread(name: str, run: Callable[[], None], *, essential: bool = True) -> threading.Thread:
    """Starts a daemon thread. If `run` raises, the error is logged, and an `essential` thread ends the process.

    A role without one of its loops looks alive and does nothing, which is worse than a restart.
    """

    def guarded() -> None:
        try:
            run()
        except BaseException:
            structlog.get_logger().exception("thread_failed", thread=name, essential=essential)
            if essential:
                os._exit(70)  # EX_SOFTWARE
            raise

    thread = threading.Thread(target=guarded, name=name, daemon=True)
    thread.start()
    return thread
