"""A job's parts for tests of the trainer, and its units by plain autograd: no replica, no slots, no tree code."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from shoal.core.facts import DatasetFacts
from shoal.core.layout import LayerKind, Layout, flatten, partition
from shoal.core.seeds import derive_seed
from shoal.data.sampler import permutation
from shoal.data.split import FloatSplit
from shoal.models.catalog import build_model
from shoal.models.state import layers_of
from shoal.worker.trainer.gradients import Gradients
from shoal.worker.trainer.replica import Replica
from tests.shards import spec_of

IMAGES: dict[str, object] = {"type": "cnn", "channels": [4, 8], "hidden": 16, "dropout": 0.4}


def split_of(samples: int, *, seed: int, shape: tuple[int, ...] = (1, 8, 8), classes: int = 10) -> FloatSplit:
    """Samples that can be learned: the label is the largest of the first elements."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((samples, *shape)).astype(np.float32)
    return FloatSplit(x=x, y=x.reshape(samples, -1)[:, :classes].argmax(axis=1).astype(np.int64))


class Job:
    """A job over made-up images of 8 x 8."""

    def __init__(
        self,
        *,
        model: dict[str, object],
        world_size: int,
        batch_size: int,
        accumulation: int = 1,
        train_samples: int = 37,
        heldout_samples: int = 11,
        seed: int = 5,
    ) -> None:
        training: dict[str, Any] = {"world_size": world_size, "batch_size": batch_size, "steps": 100, "seed": seed}
        self.spec = spec_of(model=model, training={**training, "accumulation": accumulation})
        self.train = split_of(train_samples, seed=1)
        self.heldout = split_of(heldout_samples, seed=2)
        self.facts = DatasetFacts(
            train_samples=train_samples,
            heldout_samples=heldout_samples,
            input_shape=(1, 8, 8),
            classes=10,
            fingerprint="made up",
        )
        self.plan = self.spec.plan(self.facts)
        parameters, buffers = layers_of(self.model())
        self.layout: Layout = partition(flatten(parameters=parameters, buffers=buffers), shards=1, whole=False)

    def model(self) -> nn.Module:
        return build_model(self.spec.model, input_shape=(1, 8, 8), classes=10, seed=self.spec.training.seed)

    def gradients(self, *, in_place: bool = True) -> tuple[Gradients, Replica]:
        """As a trainer has them."""
        replica = Replica(self.model(), self.layout, device=torch.device("cpu"), in_place=in_place)
        gradients = Gradients(
            replica=replica,
            plan=self.plan,
            seed=self.spec.training.seed,
            train=self.train,
            heldout=self.heldout,
            length=self.layout.length,
        )
        return gradients, replica

    def loaded(self) -> Gradients:
        """With the first weights."""
        gradients, replica = self.gradients()
        gradients.load(flat_of(self.layout, self.model()), replica.integer_layout.capture(replica.model))
        return gradients

    def samples_of_rank(self, step: int, rank: int) -> tuple[np.ndarray[Any, Any], int]:
        """(indices, N): by numpy's own even split of the step's part of the epoch's shuffle."""
        training = self.spec.training
        assert training.batch_size is not None
        length = len(self.train)
        batch = training.world_size * training.batch_size * training.accumulation
        steps_per_epoch = -(-length // batch)
        epoch, position = divmod(step, steps_per_epoch)
        order = permutation(length, derive_seed(training.seed, "epoch", epoch))
        mine = order[position * batch : (position + 1) * batch]
        return np.array_split(mine, training.world_size)[rank], len(mine)

    def plain_unit(self, step: int, rank: int) -> tuple[Tensor, float, bytes]:
        """(flat contribution, loss, integer buffers) of one rank at the first weights."""
        indices, total = self.samples_of_rank(step, rank)
        model = self.model()
        torch.manual_seed(derive_seed(self.spec.training.seed, "unit", step, rank))
        loss = 0.0
        for part in np.array_split(indices, self.spec.training.accumulation):
            if len(part):
                weight = len(part) / len(indices)
                mean = cross_entropy(model(torch.from_numpy(self.train.x[part])), torch.from_numpy(self.train.y[part]))
                (mean * weight).backward()  # type: ignore[no-untyped-call]
                loss += mean.item() * weight
        scale = len(indices) / total
        flat = torch.zeros(self.layout.length)
        named = {name: parameter.grad for name, parameter in model.named_parameters()}
        named |= dict(model.named_buffers())
        for layer, offset in zip(self.layout.layers, self.layout.offsets, strict=True):
            source = named[layer.name]
            if source is not None:
                flat[offset : offset + layer.elements] = source.reshape(-1) * scale
        counters = [buffer for buffer in model.buffers() if not buffer.is_floating_point()]
        return flat, loss * scale, b"".join(counter.numpy().tobytes() for counter in counters)


def flat_of(layout: Layout, model: nn.Module, *, scale: float = 1.0) -> Tensor:
    """A model's parameters, times `scale`, and its float buffers as a flat vector."""
    state = model.state_dict()
    flat = torch.zeros(layout.length)
    for layer, offset in zip(layout.layers, layout.offsets, strict=True):
        factor = scale if layer.kind is LayerKind.PARAMETER else 1.0
        flat[offset : offset + layer.elements] = state[layer.name].reshape(-1) * factor
    return flat


def added_like_a_tree(values: Sequence[Any], start: int, size: int) -> Any:
    """A block's sum by the recursive definition: left half plus right half, ranks beyond the last one missing."""
    if size == 1:
        return values[start]
    left = added_like_a_tree(values, start, size // 2)
    if start + size // 2 >= len(values):
        return left
    return left + added_like_a_tree(values, start + size // 2, size // 2)
