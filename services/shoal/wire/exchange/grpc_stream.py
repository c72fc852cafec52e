"""The exchange by one long-lived bidirectional gRPC stream of raw bytes per (trainer, shard) pair.

A tensor travels as frames of up to 1 MiB, gradients front to back (the order in which backward fills them), weights
back to front (the order in which forward reads them). Frames are made when the stream takes them and received
straight into their place, so neither side holds a second copy of a tensor.
"""

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

import grpc
import numpy as np
import structlog

from shoal.core.errors import Corrupt, ShoalError, Unavailable
from shoal.core.tree import Block
from shoal.process.threads import start_thread
from shoal.wire.exchange.base import MAX_SLOTS, Endpoints, Hello, ShareEndpoint
from shoal.wire.exchange.frames import (
    MAX_PAYLOAD_BYTES,
    Frame,
    Kind,
    decode,
    decode_all,
    encode,
    encode_header,
    last_frame,
)
from shoal.wire.exchange.memory import ELEMENT_BYTES, FlatSpace, FloatArray
from shoal.wire.status import answered, error_of

SERVICE = "shoal.parameter_server.v1.ParameterServerService"
METHOD = f"/{SERVICE}/Exchange"
_FRAME_ELEMENTS = MAX_PAYLOAD_BYTES // ELEMENT_BYTES
_PENDING_FRAMES = 1024  # small frames kept for a peer that does not read; older ones are lost, it asks again
_CONNECT_SECONDS = 10.0


def _ranges(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + _FRAME_ELEMENTS, length)) for start in range(0, length, _FRAME_ELEMENTS)]


def _bulk(frame: Frame, data: FloatArray, *, then: Frame | None = None) -> bytes:
    """A message with a range of a tensor, and a small frame behind it: a message costs more than its first 100 kB."""
    view = data.data.cast("B")
    return b"".join((encode_header(frame, len(view), view), view, encode(then) if then else b""))


class _Slot:
    """A gradient buffer of a session, and how much of which push it holds."""

    def __init__(self, length: int) -> None:
        self.data: FloatArray = np.zeros(length, dtype=np.float32)
        self.holds: tuple[int, Block] | None = None
        self.elements = 0


class GrpcSession:
    """The shard's side of one stream: a reading thread, and the call's own thread as the sending generator."""

    transport = "grpc"

    def __init__(self, hello: Hello, endpoint: ShareEndpoint) -> None:
        self.hello = hello
        self._endpoint = endpoint
        self._slots: dict[int, _Slot] = {}
        self._changed = threading.Condition()
        self._pending: deque[Frame] = deque(maxlen=_PENDING_FRAMES)
        self._version_due = False
        self._ended = False

    def send(self, frame: Frame) -> None:
        with self._changed:
            self._pending.append(frame)
            self._changed.notify()

    def version_changed(self) -> None:
        with self._changed:
            self._version_due = True
            self._changed.notify()

    def slot(self, number: int) -> FloatArray:
        if number not in self._slots:
            raise Corrupt(f"gradient buffer {number} was never filled")
        return self._slots[number].data

    def end(self) -> None:
        """What is pending still goes out."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def receive(self, frame: Frame) -> None:
        """Takes one frame from the peer."""
        if frame.kind is Kind.GRADIENT:
            self._fill(frame)
        elif frame.kind is Kind.PUSHED and self._endpoint.wants(frame.step, frame.block):
            slot = self._slots.get(frame.slot)
            if slot is None or slot.holds != (frame.step, frame.block) or slot.elements != self._endpoint.length:
                self.send(replace(frame, kind=Kind.REFUSED, correct=1, payload=b"the push is not complete"))
            else:
                self._endpoint.receive(self, frame)
        else:
            self._endpoint.receive(self, frame)

    def _fill(self, frame: Frame) -> None:
        block = frame.block
        if not self._endpoint.wants(frame.step, block):
            return
        if frame.slot >= MAX_SLOTS:
            raise Corrupt(f"gradient buffer {frame.slot} is beyond the {MAX_SLOTS} of a link")
        slot = self._slots.get(frame.slot)
        if slot is None:
            slot = self._slots[frame.slot] = _Slot(self._endpoint.length)
        if slot.holds != (frame.step, block) or frame.offset == 0:  # the same push may be made again
            slot.holds, slot.elements = (frame.step, block), 0
        count, rest = divmod(len(frame.payload), ELEMENT_BYTES)
        if rest or frame.offset != slot.elements or frame.offset + count > self._endpoint.length:
            raise Corrupt(
                f"gradient frame of {len(frame.payload)} bytes at element {frame.offset} does not go on from"
                f" {slot.elements} within {self._endpoint.length} elements"
            )
        slot.data[frame.offset : frame.offset + count] = np.frombuffer(frame.payload, dtype="<f4")
        slot.elements += count

    def outgoing(self) -> Iterator[bytes]:
        """Frames for the peer until the session ends."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._version_due or self._ended)
                if self._ended and not self._pending:
                    return
                frames = list(self._pending)
                self._pending.clear()
                due, self._version_due = self._version_due, False
            for frame in frames:
                if frame.kind is Kind.PULL:
                    yield from self._weights(frame.step, then=frame)
                else:
                    yield encode(frame)
            while due:
                began = time.perf_counter()
                told = self._endpoint.version_frame()
                if (yield from self._weights(told.step, then=told)):
                    due = False
                    self._endpoint.weights_sent(self, time.perf_counter() - began)

    def _weights(self, version: int, *, then: Frame) -> Generator[bytes, None, bool]:
        """A version's weights, back to front, and a frame that says so. Returns False if the share went on."""
        weights = self._endpoint.weights(version)
        attempt = self._endpoint.attempt
        for start, stop in reversed(_ranges(self._endpoint.length)):
            frame = Frame(Kind.WEIGHTS, attempt=attempt, step=version, offset=start)
            message = _bulk(frame, weights[start:stop], then=None if start else then)
            if self._endpoint.touched > version + 1:
                return False
            yield message
        return True


class GrpcExchangeServer:
    """The handler of the raw stream; `handler` goes to `grpc.Server.add_generic_rpc_handlers`."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        self._log = structlog.get_logger()
        self.handler = grpc.method_handlers_generic_handler(
            SERVICE, {"Exchange": grpc.stream_stream_rpc_method_handler(self._exchange)}
        )

    def _exchange(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        with answered(context):
            first = decode(next(requests, b""))
            if first.kind is not Kind.HELLO:
                raise Corrupt(f"HELLO was expected, not {first.kind.name}")
            hello = Hello.from_json(first.payload)
            endpoint = self._endpoints.endpoint(hello)
            session = GrpcSession(hello, endpoint)
            context.add_callback(session.end)
            endpoint.attach(session)
        yield encode(Frame(Kind.WELCOME, attempt=endpoint.attempt))

        def read() -> None:
            try:
                for message in requests:
                    for frame in decode_all(message):
                        session.receive(frame)
            except ShoalError as error:
                session.send(last_frame(error))
                self._log.warning(
                    "link_ended", transport="grpc", error=str(error), job_id=hello.job_id, worker_id=hello.worker_id
                )
            except grpc.RpcError as error:
                # The trainer was killed or the connection broke: nothing to say to it. gRPC keeps the error with the
                # call, which its traceback leads back to: a circle, in which the share's memory would stay.
                error.__traceback__ = None
            finally:
                session.end()
                endpoint.detach(session)

        start_thread("grpc-link", read, essential=False)
        yield from session.outgoing()


class GrpcLink:
    """The trainer's side. Raises Unavailable, or the error with which the shard refused the session."""

    transport = "grpc"

    def __init__(self, channel: grpc.Channel, hello: Hello, length: int) -> None:
        self._attempt = hello.attempt
        self._length = length
        self._outgoing: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self._incoming: deque[Frame] = deque()
        self._error: ShoalError | None = None
        self._weights: tuple[FloatArray, FloatArray] | None = None
        self._slots: list[FloatArray] = []
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._arrived = threading.Condition()
        self._closed = False
        open_stream: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(METHOD)
        self._call = open_stream(self._requests())
        self._outgoing.put(Frame(Kind.HELLO, payload=hello.to_json()))
        self._thread: threading.Thread | None = None
        try:
            first = decode(next(self._call))
        except grpc.RpcError as error:
            os.close(self._wake)
            raise error_of(error) from error
        if first.kind is not Kind.WELCOME:
            raise Corrupt(f"WELCOME was expected, not {first.kind.name}")

    def fileno(self) -> int:
        return self._wake

    def receive(self) -> Sequence[Frame]:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return ()
        with self._arrived:
            frames = list(self._incoming)
            self._incoming.clear()
            if not frames and self._error is not None:
                os.eventfd_write(self._wake, 1)
                raise self._error
            if self._error is not None:
                os.eventfd_write(self._wake, 1)
        return frames

    def map_weights(self, spaces: tuple[FlatSpace, FlatSpace], start: int, stop: int) -> None:
        for space in spaces:
            space.map_private(start, stop)
        self._weights = (spaces[0].array(start, stop), spaces[1].array(start, stop))
        self._thread = start_thread("grpc-link", self._read, essential=False)

    def map_slot(self, number: int, space: FlatSpace, start: int, stop: int) -> None:
        if number != len(self._slots):
            raise ValueError(f"gradient buffers are made in order: {number} is not {len(self._slots)}")
        space.map_private(start, stop)
        self._slots.append(space.array(start, stop))

    def push(self, frame: Frame) -> None:
        self._outgoing.put(frame)

    def send(self, frame: Frame) -> None:
        self._outgoing.put(frame)

    def pull(self, version: int) -> None:
        """Returns when the weights are in place. Raises Unavailable if the shard has gone on meanwhile."""
        self.send(Frame(Kind.PULL, attempt=self._attempt, step=version))
        with self._arrived:
            done = self._arrived.wait_for(
                lambda: (
                    self._error is not None
                    or any(f.kind in (Kind.PULL, Kind.VERSION) and f.step >= version for f in self._incoming)
                ),
                timeout=60.0,
            )
            if self._error is not None:
                raise self._error
            if not done:
                raise Unavailable(f"the shard did not send version {version} within 60 s")

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._outgoing.put(None)
        self._call.cancel()
        if self._thread is not None:
            self._thread.join(timeout=5)
        os.close(self._wake)

    def _requests(self) -> Iterator[bytes]:
        while (frame := self._outgoing.get()) is not None:
            if frame.kind is not Kind.PUSHED:
                yield encode(frame)
                continue
            data = self._slots[frame.slot]
            for start, stop in _ranges(self._length):
                part = replace(frame, kind=Kind.GRADIENT, offset=start, payload=b"")
                yield _bulk(part, data[start:stop], then=frame if stop == self._length else None)

    def _read(self) -> None:
        try:
            for message in self._call:
                for frame in decode_all(message):
                    if frame.kind is Kind.WEIGHTS:
                        self._place(frame)
                    else:
                        self._arrive(frame, None)
            self._arrive(None, Unavailable("the shard closed the link"))
        except grpc.RpcError as error:
            self._arrive(None, error_of(error))
        except ShoalError as error:
            self._arrive(None, error)

    def _place(self, frame: Frame) -> None:
        assert self._weights is not None
        count, rest = divmod(len(frame.payload), ELEMENT_BYTES)
        if rest or frame.offset + count > self._length:
            raise Corrupt(f"weights of {count} elements at {frame.offset} exceed {self._length}")
        target = self._weights[frame.step % 2]
        target[frame.offset : frame.offset + count] = np.frombuffer(frame.payload, dtype="<f4")

    def _arrive(self, frame: Frame | None, error: ShoalError | None) -> None:
        with self._arrived:
            if frame is not None:
                self._incoming.append(frame)
            self._error = error or self._error
            self._arrived.notify_all()
        if not self._closed:
            os.eventfd_write(self._wake, 1)
