"""Multi-layer perceptron with ReLU: a stack of fully connected layers over the flattened input."""

from typing import TYPE_CHECKING, Literal

import pydantic

from shoal.models.config import ModelConfig

if TYPE_CHECKING:
    from torch import nn


class MlpConfig(ModelConfig):
    type: Literal["mlp"] = "mlp"
    hidden: tuple[pydantic.PositiveInt, ...] = pydantic.Field((128,), description="widths of the hidden layers")


def build(config: MlpConfig, *, input_shape: tuple[int, ...], classes: int) -> "nn.Module":
    """Input (batch, *input_shape) float32, output (batch, classes) logits."""
    import math

    from torch import nn

    widths = (math.prod(input_shape), *config.hidden)
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))
