"""Multinomial logistic regression: one linear layer over the flattened input."""

import math
from typing import TYPE_CHECKING, Literal

from shoal.models.config import ModelConfig

if TYPE_CHECKING:
    from torch import nn


class LogisticConfig(ModelConfig):
    """No hyperparameters of its own."""

    type: Literal["logistic"] = "logistic"

    def build(self, *, input_shape: tuple[int, ...], classes: int) -> "nn.Module":
        """Input (batch, *input_shape), any shape: it is flattened."""
        from torch import nn

        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), classes))
