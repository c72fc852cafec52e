"""The exchange by shared memory: shard and trainer on one host, no tensor byte copied or sent.

The shard owns every mapping. Its weights (two buffers, even and odd versions) are mapped read-only by the trainers;
each gradient buffer belongs to one session and is handed out by descriptor (SCM_RIGHTS) on demand. Frames travel over
a Unix SOCK_SEQPACKET socket in the abstract namespace. The handshake proves the mapping: the shard writes a nonce
into a page of its own, the trainer maps that page and sends back what it reads.
"""

import array
import contextlib
import os
import secrets
import socket
import threading
from collections.abc import Sequence

import structlog

from shoal.core.errors import Corrupt, Exhausted, FencedOff, ShoalError, Unavailable
from shoal.core.layout import PAGE
from shoal.process.threads import start_thread
from shoal.wire.exchange.base import MAX_SLOTS, Endpoints, Hello, ShareEndpoint
from shoal.wire.exchange.frames import Frame, Kind, decode, encode, fenced_error, last_frame
from shoal.wire.exchange.memory import FlatSpace, FloatArray, create_shared

_MESSAGE_BYTES = 1 << 18  # the largest message on the socket: frames without tensors
_HANDSHAKE_SECONDS = 5.0  # both sides are local; a peer that takes longer is frozen
_NONCE_BYTES = 32
_SLOT_SECONDS = 30.0  # the shard may be in the middle of a large update


class _Mailbox:
    """Receives by one buffer: `recv` would take memory for the largest message each time, and give it back."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = memoryview(bytearray(_MESSAGE_BYTES))

    def receive(self, flags: int = 0) -> bytes:
        """One message; empty when the peer is gone."""
        return bytes(self._buffer[: self._socket.recv_into(self._buffer, 0, flags)])


class SharedMemorySession:
    """The shard's side of one link. Frames are read by one thread and may be sent by any."""

    transport = "shared_memory"

    def __init__(self, sock: socket.socket, hello: Hello, endpoint: ShareEndpoint) -> None:
        self.hello = hello
        self._socket = sock
        self._endpoint = endpoint
        self._mailbox = _Mailbox(sock)
        self._slots: list[FloatArray] = []
        self._behind = False  # a frame was lost because the peer did not read

    def send(self, frame: Frame) -> None:
        try:
            self._socket.send(encode(frame), socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._behind = True
        except OSError:
            return  # the peer is gone: the reading thread notices and ends the session

    def version_changed(self) -> None:
        self.send(self._endpoint.version_frame())
        self._endpoint.weights_sent(self, 0.0)

    def slot(self, number: int) -> FloatArray:
        if number >= len(self._slots):
            raise Corrupt(f"gradient buffer {number} was never handed out")
        return self._slots[number]

    def run(self) -> None:
        """Takes frames until the peer is gone."""
        while message := self._mailbox.receive():
            frame = decode(message)
            if self._behind:
                self._behind = False
                self.version_changed()
            if frame.kind is Kind.ASK_SLOT:
                self._hand_out_slot()
            else:
                self._endpoint.receive(self, frame)

    def _hand_out_slot(self) -> None:
        if len(self._slots) >= MAX_SLOTS:
            raise Exhausted(f"more than {MAX_SLOTS} gradient buffers asked for on one link")
        number = len(self._slots)
        fd = create_shared(f"shoal-gradient-{number}", self._endpoint.length)
        try:
            space = FlatSpace(self._endpoint.length)
            space.map_shared(0, self._endpoint.length, fd, writable=True)
            self._slots.append(space.array())
            socket.send_fds(self._socket, [encode(Frame(Kind.SLOT, slot=number))], [fd])
        finally:
            os.close(fd)

    def end(self) -> None:
        with contextlib.suppress(OSError):  # it has ended already
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()
        self._slots.clear()  # a sum that is still pending keeps its buffer alive


class SharedMemoryServer:
    """Listens on an abstract Unix socket; one thread per link."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        self.address = f"shoal-{secrets.token_hex(12)}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind("\0" + self.address)
        self._listener.listen(128)
        self._closing = threading.Event()
        self._log = structlog.get_logger()
        self._thread = start_thread("shared-memory-accept", self._accept)

    def close(self) -> None:
        self._closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=5)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                if self._closing.is_set():
                    return
                raise
            start_thread("shared-memory-link", lambda sock=sock: self._serve(sock), essential=False)  # type: ignore[misc]

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            try:
                session, endpoint = self._handshake(sock)
            except (ShoalError, OSError) as error:
                self._log.info("link_refused", transport="shared_memory", error=str(error))
                return
            try:
                endpoint.attach(session)
                session.run()
            except ConnectionError:
                pass  # the trainer was killed: nothing to say to it
            except ShoalError as error:
                session.send(last_frame(error))
                self._log.warning("link_ended", transport="shared_memory", error=str(error), **_ids(session.hello))
            finally:
                endpoint.detach(session)
                session.close()

    def _handshake(self, sock: socket.socket) -> tuple[SharedMemorySession, ShareEndpoint]:
        sock.settimeout(_HANDSHAKE_SECONDS)
        hello = Hello.from_json(_expect(sock, Kind.HELLO).payload)
        try:
            endpoint = self._endpoints.endpoint(hello)
        except ShoalError as error:
            fenced_off = int(isinstance(error, FencedOff))
            sock.send(encode(Frame(Kind.FENCED, correct=fenced_off, payload=str(error).encode())))
            raise
        nonce = secrets.token_bytes(_NONCE_BYTES)
        probe = create_shared("shoal-probe", PAGE)
        try:
            os.pwrite(probe, nonce, 0)
            descriptors = [probe, endpoint.weights_descriptor(0), endpoint.weights_descriptor(1)]
            socket.send_fds(sock, [encode(Frame(Kind.WELCOME, attempt=endpoint.attempt))], descriptors)
        finally:
            os.close(probe)
        if bytes(_expect(sock, Kind.HELLO).payload) != nonce:
            raise Corrupt("the trainer does not see this shard's memory")
        sock.settimeout(None)
        return SharedMemorySession(sock, hello, endpoint), endpoint


class SharedMemoryLink:
    """The trainer's side. Raises Unavailable if there is no such shard on this host, or it does not answer."""

    transport = "shared_memory"

    def __init__(self, address: str, hello: Hello) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(_HANDSHAKE_SECONDS)
        self._mailbox = _Mailbox(self._socket)
        self._waiting: list[Frame] = []  # frames that came while a slot was awaited
        self._weights: list[int] = []
        try:
            self._socket.connect("\0" + address)
            self._socket.send(encode(Frame(Kind.HELLO, payload=hello.to_json())))
            frame, descriptors = _receive_descriptors(self._socket, 3)
            if frame.kind is Kind.FENCED:
                raise fenced_error(frame)
            if frame.kind is not Kind.WELCOME or len(descriptors) != 3:
                _close_all(descriptors)
                raise Unavailable("the shard did not hand out its memory")
            probe, *self._weights = descriptors
            try:
                space = FlatSpace(PAGE)
                space.map_shared(0, PAGE, probe, writable=False)
                nonce = space.array().tobytes()[:_NONCE_BYTES]
            finally:
                os.close(probe)
            self._socket.send(encode(Frame(Kind.HELLO, payload=nonce)))
            self._socket.settimeout(None)  # with a timeout, Python would wait in spite of MSG_DONTWAIT
        except OSError as error:
            self.close()
            raise Unavailable(f"no shared memory with the shard: {error.strerror or error}") from error
        except ShoalError:
            self.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self) -> Sequence[Frame]:
        frames, self._waiting = self._waiting, []
        while True:
            try:
                message = self._mailbox.receive(socket.MSG_DONTWAIT)
            except BlockingIOError:
                return frames
            except OSError as error:
                raise Unavailable(f"the link to the shard broke: {error.strerror or error}") from error
            if not message:
                if frames:
                    return frames  # the reason why comes first
                raise Unavailable("the shard closed the link")
            frames.append(decode(message))

    def map_weights(self, spaces: tuple[FlatSpace, FlatSpace], start: int, stop: int) -> None:
        for space, fd in zip(spaces, self._weights, strict=True):
            space.map_shared(start, stop, fd, writable=False)

    def map_slot(self, number: int, space: FlatSpace, start: int, stop: int) -> None:
        self.send(Frame(Kind.ASK_SLOT))
        self._socket.settimeout(_SLOT_SECONDS)
        try:
            self._await_slot(number, space, start, stop)
        except TimeoutError as error:
            raise Unavailable("the shard does not hand out a gradient buffer") from error
        except OSError as error:
            raise Unavailable(f"the link to the shard broke: {error.strerror or error}") from error
        finally:
            self._socket.settimeout(None)

    def _await_slot(self, number: int, space: FlatSpace, start: int, stop: int) -> None:
        while True:
            frame, descriptors = _receive_descriptors(self._socket, 1)
            if frame.kind is not Kind.SLOT:
                _close_all(descriptors)
                self._waiting.append(frame)
                if frame.kind is Kind.FENCED:
                    raise fenced_error(frame)
                if frame.kind is Kind.REFUSED and not frame.correct:  # else a push that may be made again
                    raise Unavailable(bytes(frame.payload).decode())
                continue
            try:
                if frame.slot != number or len(descriptors) != 1:
                    raise Corrupt(f"asked for gradient buffer {number} and got {frame.slot}")
                space.map_shared(start, stop, descriptors[0], writable=True)
            finally:
                _close_all(descriptors)
            return

    def push(self, frame: Frame) -> None:
        self.send(frame)

    def send(self, frame: Frame) -> None:
        try:
            self._socket.send(encode(frame))
        except OSError as error:
            raise self._why_it_ended(error) from error

    def _why_it_ended(self, error: OSError) -> ShoalError:
        """What the shard said last, if it did, rather than that nobody reads any more."""
        try:
            while message := self._mailbox.receive(socket.MSG_DONTWAIT):
                if (frame := decode(message)).kind is Kind.FENCED:
                    return fenced_error(frame)
        except OSError:
            pass  # it said nothing more
        return Unavailable(f"the link to the shard broke: {error.strerror or error}")

    def pull(self, version: int) -> None:
        """Nothing to do: both buffers are mapped."""

    def close(self) -> None:
        self._socket.close()
        _close_all(self._weights)
        self._weights = []


def _expect(sock: socket.socket, kind: Kind) -> Frame:
    message = sock.recv(_MESSAGE_BYTES)
    if not message:
        raise Unavailable("the peer closed the link during the handshake")
    frame = decode(message)
    if frame.kind is not kind:
        raise Corrupt(f"{kind.name} was expected, not {frame.kind.name}")
    return frame


def _receive_descriptors(sock: socket.socket, count: int) -> tuple[Frame, list[int]]:
    space = socket.CMSG_SPACE(count * array.array("i").itemsize)
    message, ancillary, _, _ = sock.recvmsg(_MESSAGE_BYTES, space, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    if not message:
        _close_all(list(descriptors))
        raise Unavailable("the shard closed the link")
    return decode(message), list(descriptors)


def _close_all(descriptors: list[int]) -> None:
    for fd in descriptors:
        os.close(fd)


def _ids(hello: Hello) -> dict[str, str | int]:
    return {"job_id": hello.job_id, "worker_id": hello.worker_id, "attempt": hello.attempt}
