"""The same job as a plain PyTorch loop in one process: what Shoal's weights are compared with, bit for bit.

Of Shoal it uses only what says *which* job it is: the spec, the data set, the model's first weights, the plan's
positions and the seeds. No shards, ranks, trees or flat buffers; the optimizer is torch.optim's own.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy

from shoal.core.plan import split_evenly
from shoal.core.seeds import derive_seed
from shoal.data.catalog import open_dataset
from shoal.data.sampler import Sampler
from shoal.jobspec.spec import JobSpec
from shoal.models.catalog import build_model
from shoal.optim.config import OptimizerConfig
from shoal.optim.schedules import factor

KERNELS: dict[str, tuple[str, dict[str, bool]]] = {  # by name in the spec: torch's class, its CPU implementation
    "adadelta": ("Adadelta", {"foreach": False}),
    "adafactor": ("Adafactor", {"foreach": False}),
    "adagrad": ("Adagrad", {"fused": True}),
    "adam": ("Adam", {"fused": True}),
    "adamw": ("AdamW", {"fused": True}),
    "adamax": ("Adamax", {"foreach": False}),
    "asgd": ("ASGD", {"foreach": False}),
    "nadam": ("NAdam", {"foreach": False}),
    "radam": ("RAdam", {"foreach": False}),
    "rmsprop": ("RMSprop", {"foreach": False}),
    "rprop": ("Rprop", {"foreach": False}),
    "sgd": ("SGD", {"fused": True}),
}


@dataclass(frozen=True, kw_only=True)
class PlainResult:
    weights: dict[str, npt.NDArray[np.generic]]  # the state_dict after the last step
    losses: list[float]  # of each step: the mean over its samples, added in float64


def train_plainly(spec: JobSpec, *, roots: tuple[Path, ...] = (), steps: int | None = None) -> PlainResult:
    """Trains a spec with defaults and world_size 1, to its end or for `steps` steps."""
    assert spec.training.world_size == 1
    assert spec.optimizer is not None
    assert spec.optimizer.learning_rate is not None
    training, rate = spec.training, spec.optimizer.learning_rate
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(training.num_threads)
    torch.use_deterministic_algorithms(True)
    try:
        dataset = open_dataset(**spec.data.model_dump(), roots=roots)
        facts = dataset.facts
        model = build_model(spec.model, input_shape=facts.input_shape, classes=facts.classes, seed=training.seed)
        optimizers = optimizers_of(spec.optimizer, list(model.parameters()))
        plan, sampler = spec.plan(facts), Sampler(training.seed, facts.train_samples)
        losses: list[float] = []
        for step in range(plan.total_steps if steps is None else steps):
            torch.default_generator.manual_seed(derive_seed(training.seed, "unit", step, 0))
            indices = sampler.indices(plan.unit(step, 0))
            model.zero_grad()
            losses.append(0.0)
            for micro_batch in range(training.accumulation):
                part = split_evenly(len(indices), training.accumulation, micro_batch)
                if not part:
                    continue
                x, y = map(torch.from_numpy, dataset.train.batch(indices[part.start : part.stop]))
                loss = cross_entropy(model(x), y)
                (loss * (len(part) / len(indices))).backward()  # type: ignore[no-untyped-call]
                losses[-1] += loss.item() * (len(part) / len(indices))
            if training.clip_norm is not None:
                clip(model, training.clip_norm)
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = rate * factor(spec.schedule, step=step, total_steps=plan.total_steps)
                optimizer.step()
        weights = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
        return PlainResult(weights=weights, losses=losses)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def optimizers_of(config: OptimizerConfig, parameters: list[torch.nn.Parameter]) -> list[torch.optim.Optimizer]:
    """One of torch's optimizers; Muon's second one is AdamW for what is no matrix."""
    hyperparameters = config.model_dump(exclude={"name", "learning_rate"})
    rate = config.learning_rate
    assert rate is not None
    if config.name == "muon":
        matrices, others = [p for p in parameters if p.ndim == 2], [p for p in parameters if p.ndim != 2]
        adamw = torch.optim.AdamW(others, lr=rate, weight_decay=hyperparameters["weight_decay"], fused=True)
        return [torch.optim.Muon(matrices, lr=rate, **hyperparameters), adamw]
    kind, kernel = KERNELS[config.name]
    return [getattr(torch.optim, kind)(parameters, lr=rate, **hyperparameters, **kernel)]


def clip(model: torch.nn.Module, max_norm: float) -> None:
    """clip_grad_norm_ with the norm in float64, for torch's own float32 norm differs in its last bits."""
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = sum(grad.double().square().sum().item() for grad in grads) ** 0.5
    scale = min(1.0, max_norm / (norm + 1e-6))
    if scale < 1.0:
        for grad in grads:
            grad.mul_(scale)
