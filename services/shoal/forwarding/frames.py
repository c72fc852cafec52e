"""A port-forward as the Kubernetes API speaks it: WebSocket (RFC 6455), subprotocol v4.channel.k8s.io. No I/O here.

Each message's first byte is its channel: 0 carries the connection's bytes, 1 an error in words. The first message of
each channel is the port's number. There is no way to say "no more from me": closing ends both directions.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from websocket import ABNF

SUBPROTOCOL = "v4.channel.k8s.io"
LARGEST_MESSAGE_BYTES = 16 << 20  # of the other side; kubelets send 32 KiB

_DATA, _ERROR = 0, 1  # channels
_GREETING_BYTES = 2  # the port's number


class ProtocolError(Exception):
    """The other side does not speak this protocol."""


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes of the connection."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """The other side's words on why it cannot go on."""

    text: str


@dataclass(frozen=True, slots=True)
class Ping:
    """To be answered by `pong` with the same payload."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Closed:
    """The other side has ended the WebSocket in good order."""


Event = Data | Failure | Ping | Closed


class Reader:
    """From received bytes, cut anywhere, to events."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._fragments = bytearray()
        self._greeted: set[int] = set()

    def feed(self, received: bytes) -> Iterator[Event]:
        """What is complete now. Raises ProtocolError."""
        self._bytes += received
        while (frame := self._next_frame()) is not None:
            yield from self._events(*frame)

    def _next_frame(self) -> tuple[bool, int, bytes] | None:
        """(final, opcode, payload) of the first frame, if all of it is here."""
        have = self._bytes
        if len(have) < 2:
            return None
        if have[0] & 0x70 or have[1] & 0x80:
            raise ProtocolError("a frame has reserved bits or a mask")
        head, size = 2, have[1] & 0x7F
        if size >= 126:
            form = ">H" if size == 126 else ">Q"
            head += struct.calcsize(form)
            if len(have) < head:
                return None
            (size,) = struct.unpack_from(form, have, 2)
        if size > LARGEST_MESSAGE_BYTES:
            raise ProtocolError(f"a frame of {size} bytes")
        if len(have) < head + size:
            return None
        final, opcode, payload = bool(have[0] & 0x80), have[0] & 0x0F, bytes(have[head : head + size])
        del have[: head + size]
        return final, opcode, payload

    def _events(self, final: bool, opcode: int, payload: bytes) -> Iterator[Event]:
        match opcode:
            case ABNF.OPCODE_CLOSE:
                yield Closed()
            case ABNF.OPCODE_PING:
                yield Ping(payload)
            case ABNF.OPCODE_PONG:
                return
            case ABNF.OPCODE_BINARY | ABNF.OPCODE_CONT:
                self._fragments += payload
                if len(self._fragments) > LARGEST_MESSAGE_BYTES:
                    raise ProtocolError("a message is too large")
                if final:
                    message, self._fragments = bytes(self._fragments), bytearray()
                    yield from self._message(message)
            case _:
                raise ProtocolError(f"a frame of kind {opcode}")

    def _message(self, message: bytes) -> Iterator[Event]:
        if not message or message[0] not in (_DATA, _ERROR):
            raise ProtocolError("a message of no known channel")
        channel, payload = message[0], message[1:]
        if channel not in self._greeted:
            self._greeted.add(channel)
            if len(payload) != _GREETING_BYTES:
                raise ProtocolError("a channel does not begin with its port")
        elif channel == _DATA:
            if payload:
                yield Data(payload)
        else:
            yield Failure(payload.decode(errors="replace"))


def data_frame(payload: bytes) -> bytes:
    return _frame(bytes([_DATA]) + payload, ABNF.OPCODE_BINARY)


def pong(payload: bytes) -> bytes:
    return _frame(payload, ABNF.OPCODE_PONG)


def close_frame() -> bytes:
    return _frame(struct.pack(">H", 1000), ABNF.OPCODE_CLOSE)


def _frame(payload: bytes, opcode: int) -> bytes:
    """Masked, as everything from a client has to be."""
    return ABNF.create_frame(payload, opcode).format()
