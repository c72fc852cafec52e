"""The frames of the exchange: a fixed little-endian header, then the payload. A message holds one or more of them.

| field    | type | meaning                                                                      |
|----------|------|------------------------------------------------------------------------------|
| kind     | u8   | `Kind`                                                                       |
| dtype    | u8   | 0: float32                                                                   |
| codec    | u8   | 0: none                                                                      |
| version  | u8   | of this format                                                               |
| checksum | u32  | CRC-32 of the header (with 0 here) and of payloads up to 4 KiB               |
| attempt  | u64  | fencing token                                                                |
| step     | u64  | step or version that the frame is about                                      |
| start    | u32  | block: first rank                                                            |
| size     | u32  | block: ranks                                                                 |
| offset   | u64  | of the payload in the shard's buffer, elements                               |
| slot     | u32  | number of a gradient buffer of this session                                  |
| length   | u32  | of the payload, bytes                                                        |
| value    | f64  | a loss, a norm                                                               |
| correct  | u64  | evaluation: samples classified correctly                                     |
| samples  | u64  | evaluation: samples                                                          |

Bulk payloads carry no checksum of their own: TCP has one, and at 1 GB/s a second one would cost as much as the copy.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from shoal.core.errors import Corrupt, FencedOff, NotFound, ShoalError, Stale
from shoal.core.tree import Block

FORMAT_VERSION = 1
MAX_PAYLOAD_BYTES = 1 << 20
_CHECKED_PAYLOAD_BYTES = 4096
_HEADER = struct.Struct("<BBBBIQQIIQIIdQQ")
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _HEADER.size

Buffer = bytes | bytearray | memoryview


class Kind(IntEnum):
    # trainer -> shard
    HELLO = 1  # payload: JSON of Hello
    GRADIENT = 2  # a range of a block's sum (gRPC only)
    PUSHED = 3  # the block's sum is complete in `slot`; value: its loss; payload: integer buffers
    EVALUATED = 4  # a block's held-out sums at version `step`
    ASK_MISSING = 5  # which ranks of `step` has the shard not got?
    ASK_SLOT = 6  # another gradient buffer
    NORM = 7  # clipping: value is the whole model's sum of squares in `step`
    PULL = 8  # send the weights of version `step`, the current or the one before (gRPC only)
    # shard -> trainer
    WELCOME = 32  # payload: JSON of Welcome; with the weights' descriptors by shared memory
    WEIGHTS = 33  # a range of the weights of version `step` (gRPC only)
    VERSION = 34  # the shard is at version `step`; value: loss of the step before; payload: integer buffers
    EVALUATION = 35  # the whole evaluation at version `step`
    MISSING = 36  # payload: ranks, u32 each
    SLOT = 37  # gradient buffer number `slot`; with its descriptor by shared memory
    SQUARES = 38  # clipping: payload: this shard's sum of squares as an exact float64 expansion
    REFUSED = 39  # a push was refused; payload: UTF-8 reason; correct: 1 = computing it again may help
    FENCED = 40  # attempt over, job gone, or (correct: 1) the trainer's incarnation counted as dead; payload: reason


@dataclass(frozen=True, slots=True)
class Frame:
    kind: Kind
    attempt: int = 0
    step: int = 0
    start: int = 0
    size: int = 0
    offset: int = 0
    slot: int = 0
    value: float = 0.0
    correct: int = 0
    samples: int = 0
    payload: Buffer = b""

    @property
    def block(self) -> Block:
        """Raises Corrupt if the numbers are not a node of a rank tree."""
        try:
            return Block(start=self.start, size=self.size)
        except ValueError as error:
            raise Corrupt(f"frame {self.kind.name}: {error}") from error


def last_frame(error: ShoalError) -> Frame:
    """With which a shard ends a link."""
    kind = Kind.FENCED if isinstance(error, Stale | NotFound) else Kind.REFUSED
    return Frame(kind, correct=int(isinstance(error, FencedOff)), payload=str(error).encode())


def fenced_error(frame: Frame) -> Stale:
    """What FENCED stands for."""
    return (FencedOff if frame.correct else Stale)(bytes(frame.payload).decode())


def encode_header(frame: Frame, length: int, payload: Buffer = b"") -> bytes:
    """The header for a payload of `length` bytes; short payloads are given, so that the checksum covers them."""
    header = bytearray(
        _HEADER.pack(
            frame.kind,
            0,
            0,
            FORMAT_VERSION,
            0,
            frame.attempt,
            frame.step,
            frame.start,
            frame.size,
            frame.offset,
            frame.slot,
            length,
            frame.value,
            frame.correct,
            frame.samples,
        )
    )
    checksum = zlib.crc32(header)
    if length <= _CHECKED_PAYLOAD_BYTES:
        checksum = zlib.crc32(payload, checksum)
    _CHECKSUM.pack_into(header, 4, checksum)
    return bytes(header)


def encode(frame: Frame) -> bytes:
    payload = frame.payload
    return b"".join((encode_header(frame, len(payload), payload), payload))


def decode(message: Buffer) -> Frame:
    """A message of exactly one frame. Raises Corrupt for anything that `encode` does not make."""
    frame, end = _decode_at(memoryview(message))
    if end != len(message):
        raise Corrupt(f"{len(message) - end} bytes behind the frame")
    return frame


def decode_all(message: Buffer) -> Iterator[Frame]:
    """The frames of a message, in order. Raises Corrupt at the first that makes no sense, and for none at all."""
    view = memoryview(message)
    while True:
        frame, end = _decode_at(view)
        yield frame
        view = view[end:]
        if not view:
            return


def _decode_at(view: memoryview) -> tuple[Frame, int]:
    """The first frame and where it ends. Its payload is a view, not a copy."""
    if len(view) < HEADER_BYTES:
        raise Corrupt(f"frame of {len(view)} bytes is shorter than its header of {HEADER_BYTES}")
    fields = _HEADER.unpack_from(view)
    kind, dtype, codec, version, checksum, attempt, step, start, size, offset, slot, length, *rest = fields
    end = HEADER_BYTES + length
    if version != FORMAT_VERSION:
        raise Corrupt(f"frame format {version} is not {FORMAT_VERSION}: trainer and shard run different releases")
    if end > len(view) or length > MAX_PAYLOAD_BYTES:
        raise Corrupt(f"frame announces {length} payload bytes and carries {len(view) - HEADER_BYTES}")
    payload = view[HEADER_BYTES:end]
    expected = zlib.crc32(view[8:HEADER_BYTES], zlib.crc32(b"\0\0\0\0", zlib.crc32(view[:4])))
    if length <= _CHECKED_PAYLOAD_BYTES:
        expected = zlib.crc32(payload, expected)
    if checksum != expected:
        raise Corrupt("frame checksum does not match")
    if dtype or codec:
        raise Corrupt(f"frame dtype {dtype} and codec {codec} are unknown")
    try:
        known = Kind(kind)
    except ValueError as error:
        raise Corrupt(f"frame kind {kind} is unknown") from error
    value, correct, samples = rest
    return Frame(known, attempt, step, start, size, offset, slot, value, correct, samples, payload), end
