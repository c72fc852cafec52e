"""Update rules on the shard: torch.optim's own, built so that a layer's bits do not depend on its neighbours.

Where torch has a fused CPU kernel it is used: one pass over memory. Elsewhere `foreach=False`: one tensor after the
other. Both treat each tensor by itself; what is left that could move a bit is a kernel's boundary between its vector
body and its scalar tail, and the layout's pages keep that in place.

torch.optim wraps methods for torch.compile, and a wrapper's first call imports the compiler: more than a second and
70 MB. Nothing is compiled here, so what they wrap is called instead, with gradients off as they have it.
"""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from shoal.core.errors import InvalidInput
from shoal.optim.config import OptimizerConfig

_ADD = inspect.unwrap(Optimizer.add_param_group)
setattr(_ADD, "__dynamo_disable", _ADD)  # where torch keeps what it calls instead, once the compiler has wrapped it


@torch.no_grad()
def step(optimizer: Optimizer) -> None:
    """One update of every parameter that has a gradient."""
    inspect.unwrap(type(optimizer).step)(optimizer)


class MuonAndAdamW(Optimizer):
    """Muon for matrices, AdamW for every other parameter, with one state and one learning rate."""

    def __init__(self, params: Sequence[Parameter], *, lr: float, weight_decay: float, **muon: Any) -> None:
        super().__init__(params, {"lr": lr})
        matrices = [parameter for parameter in params if parameter.ndim == 2]
        others = [parameter for parameter in params if parameter.ndim != 2]
        self._rules: list[Optimizer] = []
        if matrices:
            self._rules.append(torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, **muon))
        if others:
            self._rules.append(torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay, fused=True))
        for rule in self._rules:
            rule.state = self.state
        self.param_groups = [group for rule in self._rules for group in rule.param_groups]

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """One update of every parameter that has a gradient."""
        for rule in self._rules:
            step(rule)


class _Rule(NamedTuple):
    build: Callable[..., Optimizer]
    options: dict[str, bool]  # of the implementation


_RULES: dict[str, _Rule] = {
    "adadelta": _Rule(torch.optim.Adadelta, {"foreach": False}),
    "adafactor": _Rule(torch.optim.Adafactor, {"foreach": False}),
    "adagrad": _Rule(torch.optim.Adagrad, {"fused": True}),
    "adam": _Rule(torch.optim.Adam, {"fused": True}),
    "adamw": _Rule(torch.optim.AdamW, {"fused": True}),
    "adamax": _Rule(torch.optim.Adamax, {"foreach": False}),
    "asgd": _Rule(torch.optim.ASGD, {"foreach": False}),
    "muon": _Rule(MuonAndAdamW, {}),
    "nadam": _Rule(torch.optim.NAdam, {"foreach": False}),
    "radam": _Rule(torch.optim.RAdam, {"foreach": False}),
    "rmsprop": _Rule(torch.optim.RMSprop, {"foreach": False}),
    "rprop": _Rule(torch.optim.Rprop, {"foreach": False}),
    "sgd": _Rule(torch.optim.SGD, {"fused": True}),
}


def build_optimizer(config: OptimizerConfig, parameters: Sequence[Parameter]) -> Optimizer:
    """torch's optimizer for float32 CPU parameters. Raises InvalidInput for a config without a learning rate: fill in
    the defaults first (`JobSpec.with_defaults`).
    """
    if config.learning_rate is None:
        raise InvalidInput("optimizer.learning_rate: missing", field="optimizer.learning_rate")
    rule = _RULES[config.name]
    hyperparameters = config.model_dump(exclude={"name", "learning_rate"})
    return rule.build(parameters, lr=config.learning_rate, **hyperparameters, **rule.options)


class AlternatingOptimizer:
    """One optimizer over two sets of the same parameters: even and odd versions, each in its own flat buffer.

    A shard keeps version v while version v + 1 comes into being in the other buffer. Momentum and the like belong to
    both: the two torch optimizers share each parameter's state.
    """

    def __init__(self, config: OptimizerConfig, even: Sequence[Parameter], odd: Sequence[Parameter]) -> None:
        """`even[i]` and `odd[i]` stand for the same slice, with equal shapes. Raises InvalidInput as
        `build_optimizer` does.
        """
        self._sides = tuple((build_optimizer(config, side), tuple(side)) for side in (even, odd))
        self._fresh = set(range(len(even)))  # parameters that have had no update yet
        (even_optimizer, _), (odd_optimizer, _) = self._sides
        for even_parameter, odd_parameter in zip(even, odd, strict=True):
            odd_optimizer.state[odd_parameter] = even_optimizer.state[even_parameter]

    def step(self, version: int, grads: Sequence[Tensor | None], learning_rate: float) -> None:
        """Makes version + 1, in place, of the buffer of its parity, into which the caller has copied `version`.

        `grads[i]` is float32 with the shape of parameter i; a parameter with None is left alone, its state too.
        """
        if self._fresh:
            first = {index for index in self._fresh if grads[index] is not None}
            self._fresh -= first
            if first and any(gradient is not None and index not in first for index, gradient in enumerate(grads)):
                # torch's fused SGD makes momentum buffers for all of its tensors or for none.
                self._step(
                    version, [None if i in first else gradient for i, gradient in enumerate(grads)], learning_rate
                )
                grads = [gradient if i in first else None for i, gradient in enumerate(grads)]
        self._step(version, grads, learning_rate)

    @property
    def states(self) -> tuple[Mapping[str, Tensor], ...]:
        """The state itself, not a copy, by parameter and torch's own key: momentum, moments, step counters."""
        optimizer, parameters = self._sides[0]
        return tuple(optimizer.state[parameter] for parameter in parameters)

    def restore(self, states: Sequence[Mapping[str, Tensor]], *, fresh: Collection[int]) -> None:
        """Takes over the states of a run that was interrupted, and which parameters had had no update yet."""
        for mine, taken in zip(self.states, states, strict=True):
            assert isinstance(mine, dict)
            mine.clear()
            mine.update(taken)
        self._fresh = set(fresh)

    def _step(self, version: int, grads: Sequence[Tensor | None], learning_rate: float) -> None:
        optimizer, parameters = self._sides[(version + 1) % 2]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        for parameter, gradient in zip(parameters, grads, strict=True):
            parameter.grad = gradient
        step(optimizer)
        for parameter in parameters:  # the gradients' memory is the caller's: keep no hold of it
            parameter.grad = None
