"""The table of model families. Adding one: a file beside this one, and its config in `ModelSpec`."""

import contextlib
import math
import threading
from typing import TYPE_CHECKING, Annotated, Any, get_args

import pydantic

from shoal.core.errors import InvalidInput
from shoal.core.seeds import derive_seed
from shoal.models.cnn import CnnConfig
from shoal.models.config import ModelConfig
from shoal.models.logistic import LogisticConfig
from shoal.models.mlp import MlpConfig

if TYPE_CHECKING:
    import torch
    from torch import nn

ModelSpec = Annotated[
    CnnConfig | LogisticConfig | MlpConfig,
    pydantic.Field(discriminator="type"),
]

_DRAWING = threading.Lock()  # torch has one global generator, and a parameter server builds jobs' shares side by side

MODEL_TYPES: tuple[str, ...] = tuple(
    sorted(family.model_fields["type"].default for family in get_args(get_args(ModelSpec)[0]))
)


def build_model(
    config: ModelConfig, *, input_shape: tuple[int, ...], classes: int, seed: int, outline: bool = False
) -> "nn.Module":
    """Builds a model of float32 parameters that are a function of (config, shapes, seed, torch build).

    `input_shape` and `classes` are the dataset's, `seed` is the job's. A config's own `input_shape` may view the same
    elements differently, such as (1, 28, 28) for a table of 784 columns: the model then reshapes what it is given.
    torch's global generator is left as it was; threads that build at the same time wait for each other. With `outline`
    the tensors have shapes and no values (torch's meta device), for whoever has the values already: to draw 125 million
    of them takes a second. Raises InvalidInput if the config contradicts the dataset.
    """
    import torch

    if config.classes is not None and config.classes != classes:
        raise InvalidInput(
            f"model.classes: {config.classes} given, but the dataset has {classes}", field="model.classes"
        )
    shape = config.input_shape or input_shape
    if math.prod(shape) != math.prod(input_shape):
        raise InvalidInput(
            f"model.input_shape: {shape} given, but the dataset's samples are {input_shape}", field="model.input_shape"
        )
    where = torch.device("meta") if outline else contextlib.nullcontext()
    with _DRAWING, torch.random.fork_rng(devices=[]), where:
        torch.default_generator.manual_seed(derive_seed(seed, "weights"))
        model = config.build(input_shape=shape, classes=classes)
    if shape != input_shape:
        # A hook and not a layer, so that parameters keep their names.
        model.register_forward_pre_hook(_Reshape(shape))
    return model


class _Reshape:
    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape

    def __call__(self, _: "nn.Module", arguments: tuple[Any, ...]) -> "torch.Tensor":
        samples: torch.Tensor = arguments[0]
        return samples.reshape(len(samples), *self._shape)
