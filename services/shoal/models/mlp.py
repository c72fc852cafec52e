"""Multi-layer perceptron with ReLU: a stack of fully connected layers over the flattened input."""

import itertools
import math
from typing import TYPE_CHECKING, Literal

import pydantic

from shoal.models.config import ModelConfig

if TYPE_CHECKING:
    from torch import nn


class MlpConfig(ModelConfig):
    """Hidden layers of the given widths, each followed by ReLU, then a linear layer to the logits."""

    type: Literal["mlp"] = "mlp"
    hidden: tuple[pydantic.PositiveInt, ...] = pydantic.Field((128,), description="widths of the hidden layers")

    def build(self, *, input_shape: tuple[int, ...], classes: int) -> "nn.Module":
        """Input (batch, *input_shape), any shape: it is flattened."""
        from torch import nn

        widths = (math.prod(input_shape), *self.hidden)
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], classes))
