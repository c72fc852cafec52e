"""Small convolution net: blocks of 3x3 convolution, BatchNorm, ReLU and 2x2 max-pooling, then a hidden layer with
dropout."""

from typing import TYPE_CHECKING, Literal

import pydantic

from shoal.core.errors import InvalidInput
from shoal.models.config import ModelConfig

if TYPE_CHECKING:
    from torch import nn


class CnnConfig(ModelConfig):
    """One block per entry of `channels`; each halves height and width (rounded down)."""

    type: Literal["cnn"] = "cnn"
    channels: tuple[pydantic.PositiveInt, ...] = pydantic.Field(
        (16, 32, 64), min_length=1, description="output channels of the convolution blocks"
    )
    hidden: pydantic.PositiveInt = pydantic.Field(128, description="width of the hidden layer")
    dropout: float = pydantic.Field(0.25, ge=0, lt=1, description="probability of dropping a hidden unit in training")

    def build(self, *, input_shape: tuple[int, ...], classes: int) -> "nn.Module":
        """Input (batch, channels, height, width). Raises InvalidInput for any other shape, or one too small."""
        from torch import nn

        if len(input_shape) != 3:
            raise InvalidInput(
                f"model.type: cnn needs samples of shape (channels, height, width), not {input_shape}; use mlp or "
                "logistic, or give model.input_shape",
                field="model.type",
            )
        inputs, height, width = input_shape
        layers: list[nn.Module] = []
        for outputs in self.channels:
            # BatchNorm subtracts the mean, so a bias in front of it would do nothing.
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
            inputs, height, width = outputs, height // 2, width // 2
        if height < 1 or width < 1:
            raise InvalidInput(
                f"model.channels: {len(self.channels)} blocks halve samples of shape {input_shape} to nothing; "
                "give fewer",
                field="model.channels",
            )
        layers += [nn.Flatten(), nn.Linear(inputs * height * width, self.hidden), nn.ReLU(), nn.Dropout(self.dropout)]
        return nn.Sequential(*layers, nn.Linear(self.hidden, classes))
