"""The two sides of the exchange as interfaces, the same for every transport.

    trainer                                  shard
    ShardLink ---- frames (+ memory) ----  Session -> ShareEndpoint (ps/share.py)

A `ShardLink` owns nothing durable. A session whose peer is gone just ends.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from shoal.core.errors import Corrupt
from shoal.core.tree import Block
from shoal.wire.exchange.frames import Buffer, Frame
from shoal.wire.exchange.memory import FlatSpace, FloatArray

MAX_SLOTS = 256  # gradient buffers of one session: a trainer pushes at most 2 log2(world_size) blocks a step


@dataclass(frozen=True, kw_only=True, slots=True)
class Hello:
    """How a trainer introduces itself on a new link."""

    job_id: str
    worker_id: str
    incarnation: str
    attempt: int

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: Buffer) -> "Hello":
        try:
            document = json.loads(bytes(data))
            return cls(
                job_id=str(document["job_id"]),
                worker_id=str(document["worker_id"]),
                incarnation=str(document["incarnation"]),
                attempt=int(document["attempt"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise Corrupt(f"hello is not understood: {error}") from error


class Session(Protocol):
    """One attached trainer, seen from the shard. Methods may be called from any thread and never block for the peer."""

    hello: Hello
    transport: str  # "shared_memory" or "grpc"

    def send(self, frame: Frame) -> None:
        """Sends a small frame now; a peer that does not read loses it and is told the state when it asks again."""

    def version_changed(self) -> None:
        """Tells the peer the share's version, and moves its weights there."""

    def end(self) -> None:
        """Ends the link; what was sent before still arrives."""

    def slot(self, number: int) -> FloatArray:
        """Gradient buffer `number` as the shard reads it. Raises Corrupt for one that was never handed out."""


class ShareEndpoint(Protocol):
    """A job's share, seen from the transports."""

    length: int  # elements of the shard's buffer
    attempt: int
    touched: int  # the highest version whose buffer has begun to be written: version, or version + 1

    def attach(self, session: Session) -> None:
        """Raises Stale for a wrong attempt, FencedOff for an incarnation that counts as dead."""

    def detach(self, session: Session) -> None: ...

    def receive(self, session: Session, frame: Frame) -> None:
        """Takes one frame of an attached session, in order. Raises Corrupt if it makes no sense: the link ends."""

    def wants(self, step: int, block: Block) -> bool:
        """Would a push of this block be used? If not, its bytes need not be kept."""

    def weights(self, version: int) -> FloatArray:
        """The buffer that holds `version`, unless `touched` is beyond version + 1: check it after reading."""

    def weights_descriptor(self, parity: int) -> int:
        """Descriptor of the shared memory of even (0) or odd (1) versions."""

    def version_frame(self) -> Frame:
        """VERSION as of now."""

    def weights_sent(self, session: Session, seconds: float) -> None:
        """A version's weights have been sent whole (or are visible, by shared memory), for the figures."""


class Endpoints(Protocol):
    def endpoint(self, hello: Hello) -> ShareEndpoint:
        """The share that a trainer asks for. Raises NotFound, Stale for a wrong attempt, or FencedOff."""


class ShardLink(Protocol):
    """One shard, seen from a trainer's single thread."""

    transport: str  # "shared_memory" or "grpc"

    def fileno(self) -> int:
        """Readable when `receive` has something."""

    def receive(self) -> Sequence[Frame]:
        """Frames that have come; empty if none. WEIGHTS are put in place and not returned.

        Raises Unavailable when the link is broken.
        """

    def map_weights(self, spaces: tuple[FlatSpace, FlatSpace], start: int, stop: int) -> None:
        """Lays this shard's weights of even and odd versions at elements [start, stop) of the two spaces."""

    def map_slot(self, number: int, space: FlatSpace, start: int, stop: int) -> None:
        """Lays gradient buffer `number` (0, 1, ... in order) at elements [start, stop) of the space."""

    def push(self, frame: Frame) -> None:
        """Sends PUSHED; the sums lie in the buffer `frame.slot`."""

    def send(self, frame: Frame) -> None: ...

    def pull(self, version: int) -> None:
        """Asks for the weights of a version that the shard still has. By shared memory they are there already."""

    def close(self) -> None: ...
