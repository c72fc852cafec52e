"""A model's state by name, and back."""

import numpy as np
import pytest
import torch
from torch import nn

from shoal.core.errors import InvalidInput
from shoal.core.layout import Layer, LayerKind
from shoal.models.catalog import build_model
from shoal.models.cnn import CnnConfig
from shoal.models.mlp import MlpConfig
from shoal.models.state import integer_buffers, layers_of, load_tensors, tensors_of


def cnn() -> nn.Module:
    return build_model(CnnConfig(channels=(2, 3), hidden=4), input_shape=(1, 8, 8), classes=5, seed=0)


class Odd(nn.Module):
    """What layers_of has to tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2, bias=False)
        self.tied = self.first
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.register_buffer("scratch", torch.zeros(4), persistent=False)
        self.register_buffer("kept", torch.zeros(5))
        self.register_buffer("flag", torch.tensor(True))


def test_layers_are_parameters_then_float_buffers_in_the_models_order() -> None:
    parameters, buffers = layers_of(cnn())
    assert [layer.name for layer in parameters] == [
        "0.weight",
        "1.weight",
        "1.bias",
        "4.weight",
        "5.weight",
        "5.bias",
        "9.weight",
        "9.bias",
        "12.weight",
        "12.bias",
    ]
    assert parameters[0] == Layer(name="0.weight", shape=(2, 1, 3, 3), kind=LayerKind.PARAMETER)
    assert [layer.name for layer in buffers] == ["1.running_mean", "1.running_var", "5.running_mean", "5.running_var"]
    assert {layer.kind for layer in buffers} == {LayerKind.BUFFER}


def test_integer_buffers_are_the_models_own_tensors() -> None:
    model = cnn()
    model(torch.zeros(2, 1, 8, 8))
    assert [(name, int(tensor)) for name, tensor in integer_buffers(model)] == [
        ("1.num_batches_tracked", 1),
        ("5.num_batches_tracked", 1),
    ]


def test_tied_frozen_and_scratch_tensors_are_told_apart() -> None:
    parameters, buffers = layers_of(Odd())
    assert [layer.name for layer in parameters] == ["first.weight"]
    assert [layer.name for layer in buffers] == ["kept"]
    assert [name for name, _ in integer_buffers(Odd())] == ["flag"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_floats_than_float32_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(InvalidInput, match="0.weight"):
        layers_of(cnn().to(dtype))


def test_tensors_of_is_a_copy_that_loads_back() -> None:
    model, other = cnn(), cnn()
    model(torch.randn(4, 1, 8, 8))  # moves the statistics
    tensors = tensors_of(model)
    load_tensors(other, tensors)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    with torch.no_grad():
        next(model.parameters()).zero_()
    assert tensors["0.weight"].any()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"1.weight": None}, "lack 1.weight"),
        ({"9.other": np.zeros(3, np.float32)}, "no 9.other"),
        ({"1.weight": np.zeros((3, 3), np.float32)}, "(3, 3)"),
        ({"1.weight": np.zeros((4, 64), np.float64)}, "float64"),
    ],
    ids=str,
)
def test_tensors_that_do_not_fit_change_nothing(change: dict[str, np.ndarray | None], said: str) -> None:
    model = build_model(MlpConfig(hidden=(4,)), input_shape=(64,), classes=2, seed=0)
    before = tensors_of(model)
    wrong = {name: array for name, array in {**before, **change}.items() if array is not None}
    wrong["3.bias"] = before["3.bias"] + 1  # fits, but must not get in either
    with pytest.raises(InvalidInput) as caught:
        load_tensors(model, wrong)
    assert said in str(caught.value)
    assert all(np.array_equal(before[name], array) for name, array in tensors_of(model).items())
