"""Update rules in alternating buffers, cut into slices, against torch.optim alone: the same bits."""

import subprocess
import sys
from collections.abc import Sequence

import pydantic
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from shoal.core.errors import InvalidInput
from shoal.core.layout import PAGE
from shoal.optim.catalog import Muon, OptimizerSpec, Sgd, needs_whole_layers, slots_of
from shoal.optim.config import OptimizerConfig
from shoal.optim.rules import AlternatingOptimizer, build_optimizer

FUSED, SINGLE = {"fused": True}, {"foreach": False}
RULES: list[tuple[dict[str, object], type[torch.optim.Optimizer], dict[str, bool]]] = [
    ({"name": "adadelta"}, torch.optim.Adadelta, SINGLE),
    ({"name": "adadelta", "weight_decay": 0.01}, torch.optim.Adadelta, SINGLE),
    ({"name": "adafactor"}, torch.optim.Adafactor, SINGLE),
    ({"name": "adafactor", "weight_decay": 0.01}, torch.optim.Adafactor, SINGLE),
    ({"name": "adagrad"}, torch.optim.Adagrad, FUSED),
    ({"name": "adagrad", "lr_decay": 0.01, "initial_accumulator_value": 0.1}, torch.optim.Adagrad, FUSED),
    ({"name": "adam"}, torch.optim.Adam, FUSED),
    ({"name": "adam", "amsgrad": True, "weight_decay": 0.01}, torch.optim.Adam, FUSED),
    ({"name": "adam", "decoupled_weight_decay": True, "weight_decay": 0.01}, torch.optim.Adam, FUSED),
    ({"name": "adamw"}, torch.optim.AdamW, FUSED),
    ({"name": "adamw", "amsgrad": True}, torch.optim.AdamW, FUSED),
    ({"name": "adamax"}, torch.optim.Adamax, SINGLE),
    ({"name": "asgd"}, torch.optim.ASGD, SINGLE),
    ({"name": "asgd", "t0": 10.0, "weight_decay": 0.01}, torch.optim.ASGD, SINGLE),
    ({"name": "nadam"}, torch.optim.NAdam, SINGLE),
    ({"name": "nadam", "weight_decay": 0.01, "decoupled_weight_decay": True}, torch.optim.NAdam, SINGLE),
    ({"name": "radam"}, torch.optim.RAdam, SINGLE),
    ({"name": "radam", "weight_decay": 0.01}, torch.optim.RAdam, SINGLE),
    ({"name": "rmsprop"}, torch.optim.RMSprop, SINGLE),
    ({"name": "rmsprop", "momentum": 0.9, "centered": True}, torch.optim.RMSprop, SINGLE),
    ({"name": "rprop"}, torch.optim.Rprop, SINGLE),
    ({"name": "sgd"}, torch.optim.SGD, FUSED),
    ({"name": "sgd", "momentum": 0.9, "weight_decay": 0.01}, torch.optim.SGD, FUSED),
    ({"name": "sgd", "momentum": 0.9, "nesterov": True}, torch.optim.SGD, FUSED),
    ({"name": "sgd", "momentum": 0.9, "dampening": 0.5}, torch.optim.SGD, FUSED),
]
SHAPES = [(37, 29), (29,), (8, 3, 3, 3), (5000,), (3, 1)]
STEPS = 50
RATES = [0.02 * (1 - step / 100) for step in range(STEPS)]


def config_of(values: dict[str, object]) -> OptimizerConfig:
    adapter: pydantic.TypeAdapter[OptimizerConfig] = pydantic.TypeAdapter(OptimizerSpec)
    return adapter.validate_python({**values, "learning_rate": RATES[0]})


def starting_weights(shapes: Sequence[tuple[int, ...]], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def gradients(shapes: Sequence[tuple[int, ...]], step: int) -> list[Tensor]:
    return starting_weights(shapes, seed=1000 + step)


def in_torch_alone(
    kind: type[torch.optim.Optimizer], hyperparameters: dict[str, object], shapes: Sequence[tuple[int, ...]]
) -> list[Tensor]:
    """The expected weights after STEPS steps, by torch.optim used as its documentation shows."""
    parameters = [Parameter(weights) for weights in starting_weights(shapes)]
    optimizer = kind(parameters, lr=RATES[0], **hyperparameters)  # type: ignore[call-arg]
    for step, rate in enumerate(RATES):
        for parameter, gradient in zip(parameters, gradients(shapes, step), strict=True):
            parameter.grad = gradient
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


class Buffers:
    """Two padded flat buffers, as on a shard, with slices of at most `longest` elements at page boundaries."""

    def __init__(self, config: OptimizerConfig, shapes: Sequence[tuple[int, ...]], cuts: Sequence[int] = ()) -> None:
        self.ranges: list[tuple[int, int, int]] = []  # layer, first, last
        for layer, weights in enumerate(starting_weights(shapes)):
            bounds = [0, *(cut for cut in cuts if cut < weights.numel()), weights.numel()]
            self.ranges += [(layer, bounds[i], bounds[i + 1]) for i in range(len(bounds) - 1)]
        self.shapes = shapes
        self.cut = bool(cuts)
        length = sum(-(-(last - first) // PAGE) * PAGE for _, first, last in self.ranges)
        self.flats = [torch.zeros(length), torch.zeros(length)]
        self.sides = [self._views(flat) for flat in self.flats]
        for parameter, weights in zip(self.sides[0], self.pieces(starting_weights(shapes)), strict=True):
            parameter.data.copy_(weights)
        self.optimizer = AlternatingOptimizer(config, *self.sides)

    def _views(self, flat: Tensor) -> list[Parameter]:
        views, offset = [], 0
        for layer, first, last in self.ranges:
            view = flat[offset : offset + last - first]
            views.append(Parameter(view if self.cut else view.view(self.shapes[layer])))
            offset += -(-(last - first) // PAGE) * PAGE
        return views

    def pieces(self, tensors: list[Tensor]) -> list[Tensor]:
        if not self.cut:
            return tensors
        return [tensors[layer].reshape(-1)[first:last] for layer, first, last in self.ranges]

    def step(self, version: int, grads: Sequence[Tensor | None], rate: float) -> None:
        self.flats[(version + 1) % 2].copy_(self.flats[version % 2])
        self.optimizer.step(version, grads, rate)

    def weights(self, version: int) -> list[Tensor]:
        """Whole layers."""
        side = self.sides[version % 2]
        return [
            torch.cat([p.detach().reshape(-1) for p, r in zip(side, self.ranges, strict=True) if r[0] == layer])
            .reshape(shape)
            .clone()
            for layer, shape in enumerate(self.shapes)
        ]


def trained(buffers: Buffers) -> list[Tensor]:
    for step, rate in enumerate(RATES):
        buffers.step(step, buffers.pieces(gradients(buffers.shapes, step)), rate)
    return buffers.weights(STEPS)


def assert_same_bits(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for mine, expected in zip(ours, theirs, strict=True):
        assert torch.equal(mine.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize(("values", "kind", "options"), RULES, ids=str)
def test_alternating_between_two_buffers_gives_torchs_bits(
    values: dict[str, object], kind: type[torch.optim.Optimizer], options: dict[str, bool]
) -> None:
    hyperparameters = {name: value for name, value in values.items() if name != "name"}
    expected = in_torch_alone(kind, {**hyperparameters, **options}, SHAPES)
    assert_same_bits(trained(Buffers(config_of(values), SHAPES)), expected)


@pytest.mark.parametrize(("values", "kind", "options"), [r for r in RULES if r[0]["name"] != "adafactor"], ids=str)
def test_cutting_a_layer_at_pages_changes_no_bit(
    values: dict[str, object], kind: type[torch.optim.Optimizer], options: dict[str, bool]
) -> None:
    shapes = [(10_007,), (61, 67)]
    hyperparameters = {name: value for name, value in values.items() if name != "name"}
    expected = in_torch_alone(kind, {**hyperparameters, **options}, shapes)
    assert_same_bits(trained(Buffers(config_of(values), shapes, cuts=[PAGE, 3 * PAGE, 9 * PAGE])), expected)


def test_a_million_elements_cut_at_a_page_have_torchs_bits() -> None:
    shapes = [(1_000_003,)]
    expected = in_torch_alone(torch.optim.SGD, {"momentum": 0.9, "fused": True}, shapes)
    config = Sgd(learning_rate=RATES[0], momentum=0.9)
    assert_same_bits(trained(Buffers(config, shapes, cuts=[333 * PAGE, 700 * PAGE])), expected)


def test_every_rule_of_the_catalog_is_tested_here() -> None:
    names = set(pydantic.TypeAdapter(OptimizerSpec).json_schema()["discriminator"]["mapping"])
    assert names == {str(values["name"]) for values, _, _ in RULES} | {"muon"}


@pytest.mark.parametrize("adjust", [None, "match_rms_adamw"])
def test_muon_takes_matrices_and_adamw_the_rest(adjust: str | None) -> None:
    config = config_of({"name": "muon", "adjust_lr_fn": adjust, "weight_decay": 0.05})
    matrices = [shape for shape in SHAPES if len(shape) == 2]
    parameters = [Parameter(weights) for weights in starting_weights(SHAPES)]
    muon = torch.optim.Muon([p for p in parameters if p.ndim == 2], lr=RATES[0], weight_decay=0.05, adjust_lr_fn=adjust)
    adamw = torch.optim.AdamW([p for p in parameters if p.ndim != 2], lr=RATES[0], weight_decay=0.05, fused=True)
    for step, rate in enumerate(RATES):
        for parameter, gradient in zip(parameters, gradients(SHAPES, step), strict=True):
            parameter.grad = gradient
        for optimizer in (muon, adamw):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
    assert len(matrices) == 2
    assert_same_bits(trained(Buffers(config, SHAPES)), [p.detach() for p in parameters])


@pytest.mark.parametrize("shapes", [[(4, 4)], [(4,), (2, 2, 2)]], ids=["matrices only", "no matrix"])
def test_muon_works_without_one_of_its_halves(shapes: list[tuple[int, ...]]) -> None:
    assert needs_whole_layers(Muon())
    trained(Buffers(config_of({"name": "muon"}), shapes))


def test_a_parameter_without_a_gradient_keeps_weights_and_state() -> None:
    buffers = Buffers(Sgd(learning_rate=0.1, momentum=0.9), [(4,), (4,)])
    before = buffers.weights(0)
    ones = torch.ones(4)
    buffers.step(0, [ones, None], 0.1)  # layer 1 gets its first gradient later than layer 0
    buffers.step(1, [ones, ones], 0.1)
    buffers.step(2, [None, ones], 0.1)
    after = buffers.weights(3)
    momentum_once, momentum_twice = 1.0, 1.9
    torch.testing.assert_close(after[0], before[0] - 0.1 * (momentum_once + momentum_twice))
    torch.testing.assert_close(after[1], before[1] - 0.1 * (momentum_once + momentum_twice))


def test_the_other_buffer_is_left_as_it_was() -> None:
    buffers = Buffers(Sgd(learning_rate=0.1, momentum=0.9), SHAPES)
    kept = buffers.flats[0].clone()
    buffers.step(0, gradients(SHAPES, 0), 0.1)
    assert torch.equal(buffers.flats[0], kept)
    assert not torch.equal(buffers.flats[1], kept)


def test_the_gradients_are_neither_changed_nor_kept() -> None:
    for values, _, _ in RULES:
        buffers = Buffers(config_of(values), SHAPES)
        given = gradients(SHAPES, 0)
        buffers.step(0, given, 0.1)
        assert all(torch.equal(a, b) for a, b in zip(given, gradients(SHAPES, 0), strict=True)), values
        assert all(parameter.grad is None for side in buffers.sides for parameter in side)


def test_a_config_without_a_learning_rate_is_refused() -> None:
    with pytest.raises(InvalidInput, match="learning_rate"):
        build_optimizer(Sgd(), [Parameter(torch.zeros(1))])


@pytest.mark.parametrize("values", [*(values for values, *_ in RULES), {"name": "muon"}], ids=str)
def test_a_rule_keeps_no_more_numbers_than_is_said_of_it(values: dict[str, object]) -> None:
    config = config_of(values)
    shapes = [(64, 32), (32,)]
    buffers = Buffers(config, shapes)
    buffers.step(0, gradients(shapes, 0), 0.01)
    kept = sum(tensor.numel() for state in buffers.optimizer.states for tensor in state.values() if tensor.dim())
    assert kept <= slots_of(config) * (64 * 32 + 32)


IN_A_PROCESS_OF_ITS_OWN = """
import sys
import pydantic
import torch
from torch.nn import Parameter
from shoal.optim.catalog import OptimizerSpec
from shoal.optim.rules import AlternatingOptimizer
for name in sys.argv[1:]:
    config = pydantic.TypeAdapter(OptimizerSpec).validate_python({"name": name, "learning_rate": 0.1})
    even, odd = ([Parameter(torch.ones(4, 4)), Parameter(torch.ones(4))] for _ in range(2))
    AlternatingOptimizer(config, even, odd).step(0, [torch.eye(4), torch.ones(4)], 0.1)
    print(name, bool((odd[0] != even[0]).any()), "torch._dynamo" in sys.modules)
"""


def test_no_update_imports_torchs_compiler() -> None:
    """Which takes longer than all else that a shard does before its first update."""
    names = sorted({str(config["name"]) for config, *_ in RULES} | {"muon"})
    command = [sys.executable, "-c", IN_A_PROCESS_OF_ITS_OWN, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{name} True False" for name in names]
