"""Building models: a function of config, shapes and seed."""

from concurrent.futures import ThreadPoolExecutor

import pydantic
import pytest
import torch

from shoal.core.errors import InvalidInput
from shoal.models.catalog import MODEL_TYPES, ModelSpec, build_model
from shoal.models.cnn import CnnConfig
from shoal.models.config import ModelConfig
from shoal.models.logistic import LogisticConfig
from shoal.models.mlp import MlpConfig

FAMILIES: list[ModelConfig] = [CnnConfig(), LogisticConfig(), MlpConfig()]


def weights(config: ModelConfig, *, input_shape: tuple[int, ...] = (1, 8, 8), seed: int = 0) -> list[torch.Tensor]:
    return list(build_model(config, input_shape=input_shape, classes=10, seed=seed).state_dict().values())


def test_the_table_lists_every_family() -> None:
    assert tuple(sorted(config.type for config in FAMILIES)) == MODEL_TYPES


@pytest.mark.parametrize("config", FAMILIES, ids=lambda config: config.type)
def test_logits_have_one_column_per_class(config: ModelConfig) -> None:
    model = build_model(config, input_shape=(1, 8, 8), classes=7, seed=0)
    assert model(torch.zeros(5, 1, 8, 8)).shape == (5, 7)


@pytest.mark.parametrize("config", FAMILIES, ids=lambda config: config.type)
def test_weights_are_a_function_of_the_seed(config: ModelConfig) -> None:
    first, again, other = weights(config), weights(config), weights(config, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_weights_do_not_depend_on_who_builds_at_the_same_time() -> None:
    """A parameter server builds the shares of several jobs in as many threads, and torch's generator is one for all."""
    config = MlpConfig(hidden=[256, 256])
    expected = [weights(config, seed=seed) for seed in range(4)]
    with ThreadPoolExecutor(max_workers=4) as threads:
        built = list(threads.map(lambda number: weights(config, seed=number % 4), range(200)))
    wrong = [
        number
        for number, tensors in enumerate(built)
        if not all(torch.equal(a, b) for a, b in zip(tensors, expected[number % 4], strict=True))
    ]
    assert wrong == []


@pytest.mark.parametrize("config", FAMILIES, ids=lambda config: config.type)
def test_everything_float_is_float32(config: ModelConfig) -> None:
    assert {tensor.dtype for tensor in weights(config)} <= {torch.float32, torch.int64}


def test_building_leaves_the_global_generator_as_it_was() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    weights(MlpConfig())
    assert torch.equal(torch.get_rng_state(), before)
    first = weights(MlpConfig())
    torch.manual_seed(4)
    assert all(torch.equal(a, b) for a, b in zip(first, weights(MlpConfig()), strict=True))


def test_logistic_is_one_affine_map() -> None:
    model = build_model(LogisticConfig(), input_shape=(3,), classes=2, seed=0)
    weight, bias = model.state_dict().values()
    x = torch.randn(4, 3)
    torch.testing.assert_close(model(x), x @ weight.T + bias)


def test_mlp_has_the_widths_given() -> None:
    shapes = [tuple(tensor.shape) for tensor in weights(MlpConfig(hidden=(32, 16)))]
    assert shapes == [(32, 64), (32,), (16, 32), (16,), (10, 16), (10,)]
    assert [tuple(t.shape) for t in weights(MlpConfig(hidden=()))] == [(10, 64), (10,)]


def test_cnn_has_batchnorm_statistics_and_dropout() -> None:
    model = build_model(CnnConfig(dropout=0.5), input_shape=(1, 28, 28), classes=10, seed=0)
    assert {"1.running_mean", "1.running_var", "1.num_batches_tracked"} <= set(model.state_dict())
    x = torch.randn(2, 1, 28, 28)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_a_table_of_pixels_can_be_seen_as_images() -> None:
    config = CnnConfig(input_shape=(1, 8, 8))
    model = build_model(config, input_shape=(64,), classes=10, seed=0).eval()
    images = build_model(CnnConfig(), input_shape=(1, 8, 8), classes=10, seed=0).eval()
    x = torch.randn(3, 64)
    assert model.state_dict().keys() == images.state_dict().keys()
    assert torch.equal(model(x), images(x.view(3, 1, 8, 8)))


@pytest.mark.parametrize(
    ("config", "input_shape", "field", "said"),
    [
        (CnnConfig(), (64,), "model.type", "channels, height, width"),
        (CnnConfig(channels=(4, 4, 4, 4)), (1, 8, 8), "model.channels", "give fewer"),
        (MlpConfig(classes=3), (64,), "model.classes", "the dataset has 10"),
        (MlpConfig(input_shape=(63,)), (64,), "model.input_shape", "(63,)"),
        (CnnConfig(input_shape=(8, 8)), (64,), "model.type", "not (8, 8)"),
    ],
    ids=str,
)
def test_a_config_that_contradicts_the_dataset_is_refused(
    config: ModelConfig, input_shape: tuple[int, ...], field: str, said: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        build_model(config, input_shape=input_shape, classes=10, seed=0)
    assert caught.value.field == field
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"type": "mlp", "hidden": [0]},
        {"type": "mlp", "width": 3},
        {"type": "cnn", "channels": []},
        {"type": "cnn", "dropout": 1.0},
        {"type": "logistic", "hidden": [3]},
        {"type": "mlp", "input_shape": []},
        {"type": "mlp", "classes": 1},
        {"type": "transformer"},
        {},
    ],
    ids=str,
)
def test_wrong_configs_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(pydantic.ValidationError):
        pydantic.TypeAdapter(ModelSpec).validate_python(values)
