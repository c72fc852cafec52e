"""Integer buffers as bytes."""

import pytest
import torch

from shoal.core.errors import Corrupt
from shoal.models.catalog import build_model
from shoal.models.cnn import CnnConfig
from shoal.models.integers import IntegerLayout
from shoal.models.mlp import MlpConfig
from shoal.models.state import integer_buffers, layers_of


def test_what_is_captured_is_restored() -> None:
    model = build_model(CnnConfig(channels=(2, 3)), input_shape=(1, 8, 8), classes=2, seed=0)
    layout = IntegerLayout(model)
    model(torch.zeros(2, 1, 8, 8))
    data = layout.capture(model)
    model(torch.zeros(2, 1, 8, 8))
    assert len(data) == layout.size == 2 * 8
    assert {name: int(value) for name, value in layout.tensors(data).items()} == {
        "1.num_batches_tracked": 1,
        "5.num_batches_tracked": 1,
    }
    layout.restore(dict(integer_buffers(model)), data)
    assert [int(value) for _, value in integer_buffers(model)] == [1, 1]


def test_bytes_of_another_length_are_refused() -> None:
    layout = IntegerLayout(build_model(CnnConfig(channels=(2, 3)), input_shape=(1, 8, 8), classes=2, seed=0))
    with pytest.raises(Corrupt, match="16"):
        layout.tensors(b"\0" * 15)


def test_a_model_without_any_needs_no_bytes() -> None:
    model = build_model(MlpConfig(), input_shape=(4,), classes=2, seed=0)
    layout = IntegerLayout(model)
    assert layout.capture(model) == b""
    assert layout.tensors(b"") == {}


@pytest.mark.parametrize("config", [CnnConfig(channels=(4, 8)), MlpConfig(hidden=(8,))], ids=["cnn", "mlp"])
def test_an_outline_has_the_names_and_shapes_of_the_model_and_no_values(config: CnnConfig | MlpConfig) -> None:
    before = torch.random.get_rng_state()
    model, outline = (
        build_model(config, input_shape=(1, 8, 8), classes=3, seed=0, outline=outline) for outline in (False, True)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert layers_of(outline) == layers_of(model)
    assert IntegerLayout(outline).names == IntegerLayout(model).names
    assert IntegerLayout(outline).size == IntegerLayout(model).size == len(IntegerLayout(model).capture(model))
    assert all(tensor.is_meta for tensor in outline.state_dict().values())
