"""What every model family's config has."""

import abc
from typing import TYPE_CHECKING

import pydantic

if TYPE_CHECKING:
    from torch import nn


class ModelConfig(pydantic.BaseModel, abc.ABC):
    """`input_shape` and `classes` come from the dataset; a spec may give them where there is none (external jobs)."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    type: str
    input_shape: tuple[pydantic.PositiveInt, ...] | None = pydantic.Field(
        None,
        min_length=1,
        description="of one sample: (features) or (channels, height, width); default: the dataset's. One with as many "
        "elements as the dataset's reshapes the samples",
    )
    classes: int | None = pydantic.Field(None, ge=2, description="number of classes; default: the dataset's")

    @abc.abstractmethod
    def build(self, *, input_shape: tuple[int, ...], classes: int) -> "nn.Module":
        """A module from (batch, *input_shape) float32 to (batch, classes) logits; torch's global generator draws the
        weights. Called by `catalog.build_model` only. Raises InvalidInput if the family cannot take that shape.
        """
