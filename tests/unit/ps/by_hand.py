"""Shares of one job in this process, stepped by hand through a session that writes down what it is told.

The session is a fake of the smallest kind: the real ones are met in tests/contract/test_exchange.py.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from prometheus_client import CollectorRegistry
from torch import Tensor

from shoal.core.facts import DatasetFacts
from shoal.core.layout import LayerKind, Layout
from shoal.core.tree import Block
from shoal.jobspec.spec import JobSpec
from shoal.metrics.parameter_server import ParameterServerMetrics
from shoal.metrics.registry import new_registry
from shoal.ps.share import Share
from shoal.ps.shares import Shares
from shoal.ps.snapshot import Restore, Snapshots
from shoal.ps.targets.local import LocalFolder
from shoal.wire.exchange.base import Hello
from shoal.wire.exchange.frames import Frame, Kind
from shoal.wire.exchange.memory import FloatArray

NOWHERE = Path("/nonexistent")  # for shares that nobody writes


def shares_at(registry: CollectorRegistry, folder: Path = NOWHERE) -> Shares:
    metrics = ParameterServerMetrics(registry)
    return Shares(snapshots=Snapshots(LocalFolder(folder), metrics=metrics), metrics=metrics)


class WrittenSession:
    """Keeps the frames that it is sent; its gradient buffers are filled by the test."""

    transport = "grpc"

    def __init__(self, share: Share, *, attempt: int = 1, worker_id: str = "worker") -> None:
        self.hello = Hello(job_id=share.job_id, worker_id=worker_id, incarnation=worker_id, attempt=attempt)
        self._share = share
        self.frames: list[Frame] = []
        self.slots: dict[int, FloatArray] = {}

    def send(self, frame: Frame) -> None:
        self.frames.append(frame)

    def version_changed(self) -> None:
        self.frames.append(self._share.version_frame())

    def slot(self, number: int) -> FloatArray:
        return self.slots[number]

    def of_kind(self, kind: Kind) -> list[Frame]:
        return [frame for frame in self.frames if frame.kind is kind]


class ByHand:
    """A job's shares on `count` shards, each in a `Shares` of its own, with one attached session."""

    def __init__(
        self,
        spec: JobSpec,
        facts: DatasetFacts,
        *,
        count: int = 1,
        attempt: int = 1,
        folder: Path = NOWHERE,
        restore: Mapping[int, Restore] | None = None,
    ) -> None:
        """`restore` has the files in `folder`, by shard, that the shares go on from."""
        self.spec, self.facts, self.attempt = spec, facts, attempt
        self.registries = [new_registry() for _ in range(count)]
        self.holders = [shares_at(registry, folder) for registry in self.registries]
        self.shares = [
            holder.create(
                job_id="job",
                attempt=attempt,
                spec_json=spec.model_dump_json(),
                index=index,
                shards=count,
                restore=(restore or {}).get(index),
            )
            for index, holder in enumerate(self.holders)
        ]
        for share in self.shares:
            share.register(facts)
        self.active = [self.shares[held.index] for held in self.layout.active]
        self.sessions = [WrittenSession(share, attempt=attempt) for share in self.active]
        for share, session in zip(self.active, self.sessions, strict=True):
            share.attach(session)
        self._next_slot = 0

    @property
    def layout(self) -> Layout:
        return self.shares[0].layout

    def flat(self, tensors: Mapping[str, Tensor], scale: float = 1.0) -> Tensor:
        """Named tensors, times `scale`, as one flat vector with zero padding."""
        flat = torch.zeros(self.layout.length)
        for layer, offset in zip(self.layout.layers, self.layout.offsets, strict=True):
            flat[offset : offset + layer.elements] = tensors[layer.name].detach().reshape(-1) * scale
        return flat

    def push(
        self,
        flat: Tensor,
        *,
        step: int,
        block: Block,
        loss: float = 1.0,
        integers: bytes = b"",
        attempt: int | None = None,
    ) -> None:
        """A block's sum to every shard, in a buffer of its own."""
        self._next_slot += 1
        for share, session in zip(self.active, self.sessions, strict=True):
            session.slots[self._next_slot] = flat[share.held.start : share.held.stop].numpy().copy()
            frame = Frame(
                Kind.PUSHED,
                attempt=self.attempt if attempt is None else attempt,
                step=step,
                start=block.start,
                size=block.size,
                slot=self._next_slot,
                value=loss,
                payload=integers if block.start == 0 else b"",
            )
            share.receive(session, frame)

    def exchange_norms(self, step: int) -> float:
        """What trainers do with SQUARES: their exact sum goes back to all shards. Returns it."""
        parts: list[float] = []
        for session in self.sessions:
            payload = [bytes(frame.payload) for frame in session.of_kind(Kind.SQUARES) if frame.step == step][-1]
            parts += struct.unpack(f"<{len(payload) // 8}d", payload)
        total = math.fsum(parts)
        for share, session in zip(self.active, self.sessions, strict=True):
            share.receive(session, Frame(Kind.NORM, attempt=self.attempt, step=step, value=total))
        return total

    def weights(self, kind: LayerKind = LayerKind.PARAMETER) -> dict[str, Tensor]:
        """Copies of all layers of a kind at the present version."""
        flat = torch.cat([torch.from_numpy(np.array(share.weights(share.version))) for share in self.active])
        return {
            layer.name: flat[offset : offset + layer.elements].reshape(layer.shape)
            for layer, offset in zip(self.layout.layers, self.layout.offsets, strict=True)
            if layer.kind is kind
        }

    def versions(self) -> list[int]:
        return [share.version for share in self.active]


def random_tensors(layout: Layout, seed: int) -> dict[str, Tensor]:
    """One gradient: a normal tensor for each layer."""
    generator = torch.Generator().manual_seed(seed)
    return {layer.name: torch.randn(layer.shape, generator=generator) for layer in layout.layers}


def tree_total(values: Sequence[Tensor], start: int = 0, size: int | None = None) -> Tensor:
    """The sum over ranks by the recursive definition: left half plus right half, ranks beyond the last one missing."""
    if size is None:
        size = 1
        while size < len(values):
            size *= 2
    if size == 1:
        return values[start]
    left = tree_total(values, start, size // 2)
    return left + tree_total(values, start + size // 2, size // 2) if start + size // 2 < len(values) else left
