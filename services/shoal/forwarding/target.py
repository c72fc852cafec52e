"""Which pod connections go to: looked up by one thread, waited for by many.

A pod is kept until somebody doubts it, because a connection to it ended or did not come about; then it is looked up
again, and usually found unchanged.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from shoal.core.errors import ShoalError

LOOK_SECONDS = 0.5  # between two questions to the Kubernetes API while no pod is ready
_GLANCE_SECONDS = 0.25  # how often one that waits looks whether its client still does


@dataclass(frozen=True, kw_only=True, slots=True)
class Pod:
    """`uid` tells it from its successor of the same name; `port` is where its master serves gRPC."""

    name: str
    uid: str
    port: int


class Target:
    """`find` says which pod is ready now, None if there is none. `say` hears of every change, as one line."""

    def __init__(
        self, *, find: Callable[[], Pod | None], say: Callable[[str], None], look_seconds: float = LOOK_SECONDS
    ) -> None:
        self._find = find
        self._say = say
        self._look_seconds = look_seconds
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._pod: Pod | None = None
        self._last: Pod | None = None  # that was announced
        self._trouble = ""  # that was announced since

    def run(self) -> None:
        """The looking thread's work, until `close`."""
        while not self._closing.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._pod is None or self._closing.is_set())
            if self._closing.is_set():
                return
            pod = self._look()
            if pod is None:
                self._closing.wait(self._look_seconds)
                continue
            with self._changed:
                self._pod = pod
                self._changed.notify_all()

    def wait(self, *, still_wanted: Callable[[], bool]) -> Pod | None:
        """The pod, as soon as there is one; None if it is not wanted any more, or after `close`."""
        with self._changed:
            while self._pod is None and not self._closing.is_set() and still_wanted():
                self._changed.wait(_GLANCE_SECONDS)
            return None if self._closing.is_set() else self._pod

    def doubt(self, pod: Pod) -> None:
        """It has to be looked up before the next connection. Without effect if another one has taken its place."""
        with self._changed:
            if self._pod == pod:
                self._pod = None
                self._changed.notify_all()

    def close(self) -> None:
        self._closing.set()
        with self._changed:
            self._changed.notify_all()

    def _look(self) -> Pod | None:
        try:
            pod = self._find()
        except ShoalError as error:
            self._tell_trouble(f"{error}; still trying")
            return None
        if pod is None:
            self._tell_trouble("no pod of the master is ready; waiting for one")
            return None
        if self._last is None:
            self._say(f"forwarding to pod {pod.name}")
        elif self._last.uid != pod.uid:
            self._say(f"forwarding to pod {pod.name} now")
        elif self._trouble:
            self._say(f"forwarding to pod {pod.name} again")
        self._last, self._trouble = pod, ""
        return pod

    def _tell_trouble(self, text: str) -> None:
        if text != self._trouble:
            self._trouble = text
            self._say(text)
