"""A TCP proxy that breaks: connections at a byte, at an answer, or at will. It counts what it did and carried."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Self

from tests.ports import free_port

CHUNK_BYTES = 16 << 10

Pair = tuple[socket.socket, socket.socket]  # to the client, to the server


class CuttingProxy:
    """Between clients and the server at `upstream`, from `open` to `close`, always on the same port.

    `cut_after` has the bytes from the server after which the next connections are cut, one number for each connection
    that gets so far; then they are not cut any more. `cut_at` is what, when it comes from the server, is not passed on:
    the connection is cut there, once. `cuts` counts; `served` is the bytes that came from the server.
    """

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = (host, int(port))
        self.port = free_port()
        self.cut_after: list[int] = []
        self.cut_at = b""
        self.cuts = 0
        self.served = 0
        self.connections = 0
        self._flowing = threading.Event()
        self._flowing.set()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self._open: set[Pair] = set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive(), thread.name

    def open(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._start(self._accept, self._listener)

    def close(self) -> None:
        """As the end of the forward: nobody listens any more, and every connection is cut."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread
            self._listener.close()
            self._listener = None
        self.flow()
        self.cut()

    def cut(self) -> int:
        """Every connection, now. Returns how many there were."""
        with self._lock:
            pairs = list(self._open)
        return sum(self._cut(pair) for pair in pairs)

    def stall(self) -> None:
        """What the server says is kept, as by a forward that is frozen; `flow` lets it go on."""
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    def await_cuts(self, count: int, *, seconds: float = 20.0) -> None:
        self._await(lambda: self.cuts >= count, seconds, f"{count} cuts")

    def await_connections(self, count: int, *, seconds: float = 20.0) -> None:
        self._await(lambda: self.connections >= count, seconds, f"{count} connections")

    def _await(self, happened: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, f"{what} did not come: {self.cuts} cuts, {self.connections} connections"
            time.sleep(0.005)

    def _start(self, run: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=run, args=arguments, name="proxy", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._upstream, timeout=10)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            pair = (client, server)
            with self._lock:
                self._open.add(pair)
                self.connections += 1
            self._start(self._ask, pair)
            self._start(self._answer, pair)

    def _ask(self, pair: Pair) -> None:
        client, server = pair
        with contextlib.suppress(OSError):
            while data := client.recv(CHUNK_BYTES):
                server.sendall(data)
        self._end(pair)

    def _answer(self, pair: Pair) -> None:
        client, server = pair
        passed = 0
        with contextlib.suppress(OSError):
            while data := server.recv(CHUNK_BYTES):
                self.served += len(data)
                self._flowing.wait()
                if self.cut_at and self.cut_at in data:
                    self.cut_at = b""
                    self._cut(pair)
                    return
                if self.cut_after and passed + len(data) > self.cut_after[0]:
                    client.sendall(data[: self.cut_after.pop(0) - passed])
                    self._cut(pair)
                    return
                passed += len(data)
                client.sendall(data)
        self._end(pair)

    def _cut(self, pair: Pair) -> bool:
        with self._lock:
            if pair not in self._open:
                return False
            self.cuts += 1
        self._end(pair)
        return True

    def _end(self, pair: Pair) -> None:
        with self._lock:
            if pair not in self._open:
                return
            self._open.discard(pair)
        for side in pair:
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads it
            side.close()
