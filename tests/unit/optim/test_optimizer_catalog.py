"""The catalog against torch.optim's own signatures and checks, so that they cannot drift apart."""

import inspect
import typing

import pydantic
import pytest
import torch

from shoal.optim.catalog import OptimizerSpec, Rprop, Sgd, needs_whole_layers
from shoal.optim.config import OptimizerConfig

CONFIGS: list[type[OptimizerConfig]] = list(typing.get_args(typing.get_args(OptimizerSpec)[0]))
ADAPTER: pydantic.TypeAdapter[OptimizerConfig] = pydantic.TypeAdapter(OptimizerSpec)

LEFT_OUT_PARAMETERS = {
    "params": "the model's",
    "lr": "called learning_rate; torch's default is torch_learning_rate",
    "foreach": "an implementation of the same rule",
    "fused": "an implementation of the same rule",
    "capturable": "for CUDA graphs",
    "differentiable": "for differentiating through the update",
    "maximize": "what is pushed is the gradient of a loss",
}
LEFT_OUT_RULES = {
    "Optimizer": "the base class",
    "LBFGS": "calls the model again within a step",
    "SparseAdam": "needs sparse gradients",
}


def torch_rules() -> dict[str, type[torch.optim.Optimizer]]:
    rules = {}
    for name, value in vars(torch.optim).items():
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and name not in LEFT_OUT_RULES:
            rules[name.lower()] = value
    return rules


def name_of(config: type[OptimizerConfig]) -> str:
    return str(config.model_fields["name"].default)


def test_every_rule_of_torch_is_in_the_catalog_or_left_out_for_a_reason() -> None:
    assert {name_of(config) for config in CONFIGS} == set(torch_rules())


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_hyperparameters_and_defaults_are_torchs(config: type[OptimizerConfig]) -> None:
    signature = inspect.signature(torch_rules()[name_of(config)])
    theirs = {name: p.default for name, p in signature.parameters.items() if name not in LEFT_OUT_PARAMETERS}
    ours = {name: f.default for name, f in config.model_fields.items() if name not in ("name", "learning_rate")}
    assert ours == theirs
    assert config.torch_learning_rate == signature.parameters["lr"].default


# One value beyond each limit: torch must refuse it too.
WRONG = [
    ("adadelta", {"rho": 1.5}),
    ("adadelta", {"rho": -0.1}),
    ("adadelta", {"eps": -1e-6}),
    ("adafactor", {"beta2_decay": 0.1}),
    ("adafactor", {"eps": (-1.0, 1e-3)}),
    ("adafactor", {"eps": (None, -1.0)}),
    ("adafactor", {"d": 0.5}),
    ("adagrad", {"lr_decay": -1.0}),
    ("adagrad", {"initial_accumulator_value": -1.0}),
    ("adam", {"betas": (1.0, 0.999)}),
    ("adam", {"betas": (0.9, 1.0)}),
    ("adam", {"betas": (-0.1, 0.999)}),
    ("adamw", {"weight_decay": -0.01}),
    ("adamax", {"eps": -1.0}),
    ("asgd", {"weight_decay": -1.0}),
    ("muon", {"momentum": -0.1}),
    ("muon", {"adjust_lr_fn": "other"}),
    ("nadam", {"momentum_decay": -1.0}),
    ("radam", {"betas": (0.9, 1.1)}),
    ("rmsprop", {"alpha": -0.1}),
    ("rmsprop", {"momentum": -0.1}),
    ("rprop", {"etas": (1.0, 1.2)}),
    ("rprop", {"etas": (0.5, 1.0)}),
    ("rprop", {"etas": (0.0, 1.2)}),
    ("sgd", {"momentum": -0.1}),
    ("sgd", {"weight_decay": -0.1}),
    ("sgd", {"nesterov": True}),
    ("sgd", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}),
]


@pytest.mark.parametrize(("name", "values"), WRONG, ids=str)
def test_what_torch_refuses_the_catalog_refuses(name: str, values: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        torch_rules()[name]([torch.nn.Parameter(torch.zeros(2, 2))], **values)  # type: ignore[call-arg]
    with pytest.raises(pydantic.ValidationError):
        ADAPTER.validate_python({"name": name, **values})


EDGES = [
    ("adadelta", {"rho": 1.0, "eps": 0.0}),
    ("adafactor", {"beta2_decay": 0.0, "eps": (0.0, 0.0), "d": 1.0}),
    ("adam", {"betas": (0.0, 0.0), "eps": 0.0}),
    ("asgd", {"lambd": -1.0, "alpha": -1.0, "t0": 0.0}),
    ("rmsprop", {"alpha": 0.0}),
    ("sgd", {"momentum": 1.5, "dampening": 2.0}),
    ("sgd", {"momentum": 0.1, "nesterov": True}),
]


@pytest.mark.parametrize(("name", "values"), EDGES, ids=str)
def test_what_torch_takes_the_catalog_takes(name: str, values: dict[str, object]) -> None:
    torch_rules()[name]([torch.nn.Parameter(torch.zeros(2, 2))], **values)  # type: ignore[call-arg]
    ADAPTER.validate_python({"name": name, **values})


@pytest.mark.parametrize("rate", [0.0, -0.1, float("inf"), float("nan")])
def test_a_learning_rate_that_cannot_train_is_refused(rate: float) -> None:
    with pytest.raises(pydantic.ValidationError):
        Sgd(learning_rate=rate)


def test_only_rules_that_mix_elements_need_whole_layers() -> None:
    assert {name_of(config) for config in CONFIGS if needs_whole_layers(config())} == {"adafactor", "muon"}


def test_configs_survive_json() -> None:
    for config in CONFIGS:
        value = config(learning_rate=0.25)
        assert ADAPTER.validate_json(ADAPTER.dump_json(value)) == value
    assert isinstance(ADAPTER.validate_python({"name": "rprop"}), Rprop)
