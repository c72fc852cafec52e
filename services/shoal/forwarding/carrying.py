"""One connection's bytes, both ways between a TCP socket and a port-forward's WebSocket, by one thread.

One thread, because a TLS connection must not be read and written by two at once. What one side does not take yet is
held up to a limit, then the other side is not read any more: a slow reader slows its writer and takes no memory.
"""

import contextlib
import selectors
import socket
import ssl
import time
from dataclasses import dataclass
from enum import Enum

from shoal.forwarding import frames

HELD_BYTES = 256 << 10  # per direction; then the writer has to wait
READ_BYTES = 32 << 10
# A client that has said all may still be listening. "No more from me" cannot be told to the other side, so what comes
# within this time after the last byte is delivered, then the connection ends. gRPC clients end both ways at once.
LINGER_SECONDS = 1.0


class End(Enum):
    CLIENT = "the client closed the connection"
    MASTER = "the master closed the connection"
    BROKEN = "the connection broke"
    STOPPED = "the forwarder was closed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a connection ended. `reason` is for people, where it broke."""

    end: End
    reason: str = ""


def carry(client: socket.socket, remote: socket.socket, wake: socket.socket) -> Ended:
    """Returns when either side has ended, or `wake` has become readable. The sockets stay the caller's."""
    client.setblocking(False)
    remote.setblocking(False)
    with selectors.DefaultSelector() as selector:
        return _Carrying(client, remote, wake, selector).run()


class _Carrying:
    def __init__(
        self, client: socket.socket, remote: socket.socket, wake: socket.socket, selector: selectors.BaseSelector
    ) -> None:
        self._client = client
        self._remote = remote
        self._wake = wake
        self._selector = selector
        self._reader = frames.Reader()
        self._to_client = bytearray()
        self._to_remote = bytearray()
        self._client_reads = True  # may still say something
        self._last_byte_at = 0.0  # from the remote, once the client has said all
        self._remote_ended: Ended | None = None
        self._remote_wants_write = False  # TLS has something of its own to say before it can read

    def run(self) -> Ended:
        self._selector.register(self._wake, selectors.EVENT_READ)
        while True:
            if self._remote_ended is not None and not self._to_client:
                return self._remote_ended
            timeout: float | None = None
            if not self._client_reads and not self._to_remote and self._remote_ended is None:
                timeout = self._last_byte_at + LINGER_SECONDS - time.monotonic()
                if timeout <= 0:
                    self._say_goodbye()
                    return Ended(end=End.CLIENT)
            if self._buffered_by_tls():
                timeout = 0
            self._watch(self._client, self._client_events())
            self._watch(self._remote, self._remote_events())
            ready = {key.fileobj for key, _ in self._selector.select(timeout)}
            if self._wake in ready:
                self._say_goodbye()
                return Ended(end=End.STOPPED)
            try:
                self._serve_client()
            except OSError:
                self._say_goodbye()
                return Ended(end=End.CLIENT)
            if self._remote_ended is None:
                self._serve_remote()

    # What to wait for.

    def _client_events(self) -> int:
        events = selectors.EVENT_WRITE if self._to_client else 0
        if self._client_reads and self._remote_ended is None and len(self._to_remote) < HELD_BYTES:
            events |= selectors.EVENT_READ
        return events

    def _remote_events(self) -> int:
        if self._remote_ended is not None:
            return 0
        events = selectors.EVENT_WRITE if self._to_remote or self._remote_wants_write else 0
        return events | selectors.EVENT_READ if len(self._to_client) < HELD_BYTES else events

    def _watch(self, sock: socket.socket, events: int) -> None:
        known = self._selector.get_map().get(sock)
        if known is None and events:
            self._selector.register(sock, events)
        elif known is not None and not events:
            self._selector.unregister(sock)
        elif known is not None and known.events != events:
            self._selector.modify(sock, events)

    def _buffered_by_tls(self) -> bool:
        """Bytes that TLS has decrypted already do not make a socket readable."""
        return (
            self._remote_ended is None
            and len(self._to_client) < HELD_BYTES
            and isinstance(self._remote, ssl.SSLSocket)
            and self._remote.pending() > 0
        )

    # The two sides. Each try costs a system call at most: sockets that are not ready say so.

    def _serve_client(self) -> None:
        """Raises OSError when the client is gone."""
        if self._to_client:
            with contextlib.suppress(BlockingIOError):
                del self._to_client[: self._client.send(self._to_client[:HELD_BYTES])]
        if self._client_reads and self._remote_ended is None and len(self._to_remote) < HELD_BYTES:
            with contextlib.suppress(BlockingIOError):
                if said := self._client.recv(READ_BYTES):
                    self._to_remote += frames.data_frame(said)
                else:
                    self._client_reads = False
                    self._last_byte_at = time.monotonic()

    def _serve_remote(self) -> None:
        try:
            self._write_remote()
            self._read_remote()
        except (OSError, frames.ProtocolError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            self._remote_ended = Ended(end=End.BROKEN, reason=reason)

    def _write_remote(self) -> None:
        while self._to_remote:
            try:
                del self._to_remote[: self._remote.send(self._to_remote[:READ_BYTES])]
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return

    def _read_remote(self) -> None:
        self._remote_wants_write = False
        while self._remote_ended is None and len(self._to_client) < HELD_BYTES:
            try:
                received = self._remote.recv(READ_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError):
                return
            except ssl.SSLWantWriteError:
                self._remote_wants_write = True
                return
            if not received:
                raise ConnectionResetError(0, "the Kubernetes API ended it without a word")
            self._last_byte_at = time.monotonic()
            for event in self._reader.feed(received):
                self._take(event)

    def _take(self, event: frames.Event) -> None:
        match event:
            case frames.Data(payload):
                self._to_client += payload
            case frames.Ping(payload):
                self._to_remote += frames.pong(payload)
            case frames.Failure(text):
                self._remote_ended = Ended(end=End.BROKEN, reason=" ".join(text.split()))
            case frames.Closed():
                self._remote_ended = self._remote_ended or Ended(end=End.MASTER)

    def _say_goodbye(self) -> None:
        """What is held back is of no use any more; the end is told if it can be told at once."""
        with contextlib.suppress(OSError):
            self._remote.send(frames.close_frame())
