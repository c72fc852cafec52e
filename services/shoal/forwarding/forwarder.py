"""Accepts connections on a port of this machine and carries each to the master's pod, by a WebSocket of its own."""

import errno
import itertools
import select
import socket
import textwrap
import threading
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Protocol, Self

from shoal.core.errors import InvalidInput, NotFound, ShoalError
from shoal.forwarding.carrying import End, carry
from shoal.forwarding.target import Pod, Target
from shoal.process.threads import start_thread

HOST = "127.0.0.1"
CONNECTIONS = 64  # at once; further ones wait to be accepted
_AGAIN_SECONDS = 0.5  # before a pod is tried again that could not be connected to
_SAME_WORDS_SECONDS = 10.0  # between two lines that say the same
_REASON_CHARACTERS = 200
_JOIN_SECONDS = 2.0  # for threads to end; one that just connects may take longer, and ends with the process


class Route(Protocol):
    """The way to a master's pods: `shoal.forwarding.kube.Route`."""

    def ready_pod(self) -> Pod | None:
        """Raises a ShoalError if it cannot be said."""

    def connect(self, pod: Pod) -> socket.socket:
        """A WebSocket for one connection to the pod's port. Raises NotFound for a pod that is gone, or a ShoalError."""


def listen(port: int) -> socket.socket:
    """On this machine only; port 0: any free one. Raises InvalidInput if somebody has it."""
    try:
        listener = socket.create_server((HOST, port), backlog=CONNECTIONS)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited by what it accepts
        return listener
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = "is taken, perhaps by another 'shoal connect'" if taken else f"cannot be used: {error.strerror}"
        raise InvalidInput(f"port {port} {reason}; choose another one by --local-port", field="local_port") from error


class Forwarder:
    """Serves from `start` to `close`, by named threads: one that accepts, one that knows the pod, one per connection.

    `say` hears of what a person wants to know, as one line each, from any thread. A connection whose pod has gone is
    closed: the client connects again and gets to the next pod. A context manager: entering starts it.
    """

    def __init__(self, *, route: Route, listener: socket.socket, say: Callable[[str], None]) -> None:
        self._route = route
        self._listener = listener
        self._say = say
        self._target = Target(find=route.ready_pod, say=say)
        self._closing = threading.Event()
        self._awake, self._wake = socket.socketpair()  # closing the first makes the second readable, for every thread
        self._slots = threading.BoundedSemaphore(CONNECTIONS)
        self._threads: list[threading.Thread] = []
        self._last_words, self._last_said_at = "", 0.0

    @property
    def address(self) -> str:
        host, port = self._listener.getsockname()
        return f"{host}:{port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        self._threads.append(start_thread("forward-target", self._target.run))
        self._threads.append(start_thread("forward-accept", self._accept))

    def wait_ready(self) -> Pod | None:
        """The pod, once one is ready; None after `close`."""
        return self._target.wait(still_wanted=lambda: True)

    def close(self) -> None:
        """Ends every connection and thread."""
        self._closing.set()
        self._target.close()
        self._awake.close()
        deadline = time.monotonic() + _JOIN_SECONDS
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
        self._listener.close()
        if not any(thread.is_alive() for thread in self._threads):
            self._wake.close()

    def _accept(self) -> None:
        numbers = itertools.count(1)
        while not self._closing.is_set():
            if not self._slots.acquire(timeout=_AGAIN_SECONDS):
                continue
            ready, _, _ = select.select([self._listener, self._wake], [], [])
            if self._wake in ready:
                return
            try:
                client, _ = self._listener.accept()
            except ConnectionAbortedError:  # gone before it was accepted
                self._slots.release()
                continue
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            thread = start_thread(f"forward-{next(numbers)}", partial(self._serve, client), essential=False)
            self._threads.append(thread)

    def _serve(self, client: socket.socket) -> None:
        try:
            with client:
                # gRPC's clients speak first. Whoever only looks whether somebody is here costs nothing beyond.
                select.select([client, self._wake], [], [])
                if (reached := self._reach(client)) is None:
                    return
                pod, remote = reached
                with remote:
                    ended = carry(client, remote, self._wake)
            if ended.end is End.BROKEN:
                why = _in_short(ended.reason)
                self._tell(f"a connection to pod {pod.name} broke ({why}); the next one goes to a ready pod")
            if ended.end in (End.BROKEN, End.MASTER):
                self._target.doubt(pod)
        finally:
            self._slots.release()

    def _reach(self, client: socket.socket) -> tuple[Pod, socket.socket] | None:
        """A pod and a connection to it; None if the client does not want it any more."""
        while (pod := self._target.wait(still_wanted=lambda: _still_there(client))) is not None:
            if not _still_there(client):
                return None
            try:
                return pod, self._route.connect(pod)
            except NotFound:
                self._target.doubt(pod)  # which says what has become of it
            except ShoalError as error:
                self._tell(f"pod {pod.name} cannot be connected to: {error}")
                self._target.doubt(pod)
                self._closing.wait(_AGAIN_SECONDS)
        return None

    def _tell(self, text: str) -> None:
        """Once, however many connections it befalls at a time."""
        now = time.monotonic()
        if text != self._last_words or now - self._last_said_at >= _SAME_WORDS_SECONDS:
            self._last_words, self._last_said_at = text, now
            self._say(text)


def _still_there(client: socket.socket) -> bool:
    """Has the client not closed its end? Takes none of its bytes."""
    try:
        return client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _in_short(reason: str) -> str:
    """Kubelets tell of every address that they tried, and of namespaces by their path."""
    if "connection refused" in reason:
        return "connection refused"
    return textwrap.shorten(reason, _REASON_CHARACTERS, placeholder=" ...")
