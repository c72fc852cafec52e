"""Gradients of blocks: units computed one by one and summed along the tree, with the same bits wherever it is done."""

import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from shoal.core.plan import Plan, split_evenly
from shoal.core.seeds import derive_seed
from shoal.core.tree import Block
from shoal.data.sampler import Sampler
from shoal.data.split import Split
from shoal.models.evaluation import EVALUATION_BATCH, EvaluationSums, evaluate
from shoal.worker.trainer.replica import Replica

_SMOOTHING = 0.2  # weight of the newest unit in the moving mean of unit seconds


class Gradients:
    """The model must hold the version that the step is about (`Replica.load`)."""

    def __init__(
        self,
        *,
        replica: Replica,
        plan: Plan,
        seed: int,
        train: Split,
        heldout: Split,
        length: int,
    ) -> None:
        self._replica = replica
        self._plan = plan
        self._seed = seed
        self._train = train
        self._heldout = heldout
        self._sampler = Sampler(seed, len(train))
        self._scratch: list[Tensor] = []  # one flat buffer per level of the tree
        self._length = length
        self._flat: Tensor | None = None
        self._integers = b""
        self.seconds_per_unit = 0.0
        self.unit_seconds: list[float] = []  # for whoever reports them, and empties the list

    def load(self, flat: Tensor, integers: bytes) -> None:
        """Takes the weights of the version that the next steps are about."""
        self._flat, self._integers = flat, integers
        self._replica.load(flat, integers)

    def of(self, block: Block, step: int, out: Tensor) -> tuple[float, bytes]:
        """Fills `out` with the block's sum; returns its loss and, from rank 0, the integer buffers after the step."""
        if block.size == 1:
            return self._unit(step, block.start, out)
        left, right = block.halves
        loss, integers = self.of(left, step, out)
        if right.start < self._plan.world_size:
            level = block.size.bit_length() - 2
            while len(self._scratch) <= level:
                self._scratch.append(torch.zeros(self._length))
            right_loss, _ = self.of(right, step, self._scratch[level])
            out.add_(self._scratch[level])
            loss += right_loss
        return loss, integers

    def _unit(self, step: int, rank: int, out: Tensor) -> tuple[float, bytes]:
        """One rank's part of a step: mean loss and gradient over its samples, weighted by n_r / N."""
        began = time.perf_counter()
        replica, plan = self._replica, self._plan
        unit = plan.unit(step, rank)
        assert self._flat is not None
        replica.reset_statistics(self._flat, self._integers)
        torch.default_generator.manual_seed(seed := derive_seed(self._seed, "unit", step, rank))
        if replica.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        indices = self._sampler.indices(unit)
        loss = 0.0
        for part in range(plan.accumulation):
            micro = split_evenly(unit.samples, plan.accumulation, part)
            if not micro:
                continue
            x, y = self._train.batch(indices[micro.start : micro.stop])
            weight = len(micro) / unit.samples
            mean = cross_entropy(replica.model(self._on_device(x)), self._on_device(y))
            (mean if weight == 1.0 else mean * weight).backward()  # type: ignore[no-untyped-call]
            loss += mean.item() * weight
        scale = unit.samples / unit.total
        replica.write_contribution(out, scale)
        seconds = time.perf_counter() - began
        previous = self.seconds_per_unit
        self.seconds_per_unit = seconds if not previous else previous + _SMOOTHING * (seconds - previous)
        self.unit_seconds.append(seconds)
        return loss * scale, replica.integer_layout.capture(replica.model) if rank == 0 else b""

    def heldout(self, block: Block) -> EvaluationSums:
        """A block's held-out sums at the version loaded, added along the tree."""
        if block.size == 1:
            assert self._flat is not None
            self._replica.reset_statistics(self._flat, self._integers)
            return evaluate(self._replica.model, self._heldout_batches(block.start))
        left, right = block.halves
        sums = self.heldout(left)
        if right.start < self._plan.world_size:
            other = self.heldout(right)
            sums = EvaluationSums(
                correct=sums.correct + other.correct,
                samples=sums.samples + other.samples,
                loss=sums.loss + other.loss,
            )
        return sums

    def _heldout_batches(self, rank: int) -> Iterator[tuple[Tensor, Tensor]]:
        part = self._plan.heldout(rank)
        for first in range(part.start, part.stop, EVALUATION_BATCH):
            x, y = self._heldout.batch(np.arange(first, min(first + EVALUATION_BATCH, part.stop)))
            yield self._on_device(x), self._on_device(y)

    def _on_device(self, array: npt.NDArray[np.generic]) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self._replica.device.type == "cpu" else tensor.to(self._replica.device)
