"""The trainer's view of a job's parameters: every shard's range, side by side in one flat vector."""

import math
import select
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from shoal.core.errors import Unavailable
from shoal.core.layout import Layout, Share
from shoal.core.tree import Block
from shoal.models.evaluation import EvaluationSums
from shoal.wire.exchange.base import ShardLink
from shoal.wire.exchange.frames import Frame, Kind, fenced_error
from shoal.wire.exchange.memory import ELEMENT_BYTES, FlatSpace

_NO_VERSION = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """Of the whole held-out split, at one version."""

    correct: int
    samples: int
    loss: float  # mean

    @property
    def accuracy(self) -> float:
        return self.correct / self.samples


@dataclass(kw_only=True, eq=False, slots=True)
class _Shard:
    """What is known of one shard."""

    held: Share
    link: ShardLink
    version: int = _NO_VERSION
    buffers: list[int] = field(default_factory=lambda: [_NO_VERSION, _NO_VERSION])  # versions in even and odd
    integers: bytes = b""  # the model's integer buffers at `version`
    loss: float = math.nan  # of the step before `version`


@dataclass(frozen=True, kw_only=True, slots=True)
class Missing:
    """Ranks whose work a shard has not got."""

    step: int
    evaluation: bool
    ranks: tuple[int, ...]


class Parameters:
    """All links of one trainer; one thread. Methods raise Unavailable when a link breaks, Stale when fenced off."""

    def __init__(self, *, layout: Layout, links: Sequence[ShardLink], attempt: int) -> None:
        """`links` belong to `layout.active`, in that order."""
        self._layout = layout
        self._attempt = attempt
        self._shards = [_Shard(held=held, link=link) for held, link in zip(layout.active, links, strict=True)]
        self._spaces = (FlatSpace(layout.length), FlatSpace(layout.length))
        self._poll = select.poll()
        self._by_descriptor = {shard.link.fileno(): (position, shard) for position, shard in enumerate(self._shards)}
        for shard in self._shards:
            shard.link.map_weights(self._spaces, shard.held.start, shard.held.stop)
            self._poll.register(shard.link.fileno(), select.POLLIN)
        self._flat = tuple(torch.from_numpy(space.array()) for space in self._spaces)
        self._slots: list[Tensor] = []
        self._squares: dict[int, tuple[int, tuple[float, ...]]] = {}  # the last ones by shard position, and their step
        self.evaluations: dict[int, Evaluated] = {}
        self.refused: list[tuple[int, Block]] = []  # pushes to make again
        self.missing: Missing | None = None
        self.pushed: Counter[str] = Counter()  # blocks by transport, for whoever reports them and clears it
        self.pushed_bytes: Counter[str] = Counter()

    @property
    def version(self) -> int:
        """The version at which every shard is, or one less; -1 before all of them have spoken."""
        return self._latest.version

    @property
    def integers(self) -> bytes:
        """The model's integer buffers at `version`."""
        return self._latest.integers

    @property
    def loss(self) -> float:
        """Of the last step that is complete everywhere; nan before the first."""
        return self._latest.loss

    @property
    def _latest(self) -> _Shard:
        """A shard that is not ahead of any other."""
        return min(self._shards, key=lambda shard: shard.version)

    def flat(self, version: int) -> Tensor | None:
        """The whole flat vector at a version, float32 [layout.length]; None if the shards have gone on."""
        for shard in self._shards:
            if shard.buffers[version % 2] != version:
                shard.link.pull(version)
                self._drain()
                if shard.buffers[version % 2] != version:
                    return None
        return self._flat[version % 2]

    def slot(self, number: int) -> Tensor:
        """Gradient buffer `number`, float32 [layout.length], over all shards."""
        while len(self._slots) <= number:
            space = FlatSpace(self._layout.length)
            for shard in self._shards:
                shard.link.map_slot(len(self._slots), space, shard.held.start, shard.held.stop)
            self._slots.append(torch.from_numpy(space.array()))
            self._drain()  # what came while the buffer was awaited
        return self._slots[number]

    def push(self, *, step: int, block: Block, slot: int, loss: float, integers: bytes) -> None:
        """Hands the sum in a gradient buffer to the shards that still wait for this step."""
        frame = Frame(
            Kind.PUSHED,
            attempt=self._attempt,
            step=step,
            start=block.start,
            size=block.size,
            slot=slot,
            value=loss,
            payload=integers,
        )
        for shard in self._shards:
            if shard.version == step:
                shard.link.push(frame)
                self.pushed[shard.link.transport] += 1
                self.pushed_bytes[shard.link.transport] += shard.held.length * ELEMENT_BYTES

    def push_evaluation(self, *, version: int, block: Block, sums: EvaluationSums) -> None:
        """Evaluations are added up by the first shard."""
        self._shards[0].link.send(
            Frame(
                Kind.EVALUATED,
                attempt=self._attempt,
                step=version,
                start=block.start,
                size=block.size,
                value=sums.loss,
                correct=sums.correct,
                samples=sums.samples,
            )
        )

    def ask_missing(self, *, step: int, evaluation: bool) -> None:
        """The answer comes as `missing`; where there is other news, that comes instead.

        A step that is clipped needs the squares of every shard, also of those that are done with it: whoever sent
        them the norm may have died before it told the others.
        """
        self.missing = None
        late = [shard for shard in self._shards if shard.version == step]
        if not late:
            return
        asked = self._shards[:1] if evaluation else late[:1]
        told = {position for position, (of_step, _) in self._squares.items() if of_step == step}
        if told and not evaluation:
            asked = [shard for position, shard in enumerate(self._shards) if position not in told] or asked
        for shard in asked:
            shard.link.send(Frame(Kind.ASK_MISSING, attempt=self._attempt, step=step, correct=int(evaluation)))

    def watch(self, descriptor: int) -> None:
        """`wait` returns, too, when something has come there."""
        self._poll.register(descriptor, select.POLLIN)

    def wait(self, timeout_seconds: float) -> None:
        """Returns when something has come, or after the time."""
        for descriptor, _ in self._poll.poll(timeout_seconds * 1000):
            if descriptor in self._by_descriptor:
                position, shard = self._by_descriptor[descriptor]
                for frame in shard.link.receive():
                    self._take(position, shard, frame)

    def close(self) -> None:
        for shard in self._shards:
            shard.link.close()

    def _drain(self) -> None:
        """Takes in all that has come."""
        for position, shard in enumerate(self._shards):
            for frame in shard.link.receive():
                self._take(position, shard, frame)

    def _take(self, position: int, shard: _Shard, frame: Frame) -> None:
        match frame.kind:
            case Kind.VERSION:
                if frame.step > shard.version:
                    if shard.link.transport == "shared_memory":  # both buffers are there
                        shard.buffers[(frame.step - 1) % 2] = frame.step - 1
                    shard.version = frame.step
                    shard.buffers[frame.step % 2] = frame.step
                    shard.integers, shard.loss = bytes(frame.payload), frame.value
            case Kind.PULL:
                shard.buffers[frame.step % 2] = frame.step
            case Kind.EVALUATION:
                self.evaluations[frame.step] = Evaluated(correct=frame.correct, samples=frame.samples, loss=frame.value)
            case Kind.MISSING:
                ranks = tuple(int(rank) for rank in np.frombuffer(frame.payload, dtype="<u4"))
                self.missing = Missing(step=frame.step, evaluation=bool(frame.correct), ranks=ranks)
            case Kind.SQUARES:
                self._take_squares(position, frame)
            case Kind.REFUSED:
                if not frame.correct:
                    raise Unavailable(f"the shard refused a push: {bytes(frame.payload).decode()}")
                self.refused.append((frame.step, frame.block))
            case Kind.FENCED:
                raise fenced_error(frame)
            case _:
                raise Unavailable(f"the shard sent an unexpected {frame.kind.name}")

    def _take_squares(self, position: int, frame: Frame) -> None:
        """When every shard's squares of a step are here, their exact sum goes to all of them."""
        self._squares[position] = (frame.step, struct.unpack(f"<{len(frame.payload) // 8}d", frame.payload))
        parts = [parts for step, parts in self._squares.values() if step == frame.step]
        if len(parts) == len(self._shards):
            total = math.fsum(square for squares in parts for square in squares)
            norm = Frame(Kind.NORM, attempt=self._attempt, step=frame.step, value=total)
            for shard in self._shards:
                if shard.version == frame.step:
                    shard.link.send(norm)
