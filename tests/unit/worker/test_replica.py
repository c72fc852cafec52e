"""Both ways of holding the weights, as views and as copies, give the same bits."""

import numpy as np
import pytest
import torch
from torch import Tensor

from shoal.core.tree import root
from tests.unit.worker.plain import IMAGES, Job, flat_of


def trained(job: Job, *, in_place: bool) -> dict[str, Tensor | bytes | float | int]:
    """Everything that one replica hands out over two versions."""
    gradients, replica = job.gradients(in_place=in_place)
    seen: dict[str, Tensor | bytes | float | int] = {}
    integers = replica.integer_layout.capture(replica.model)
    for step in range(2):
        flat = flat_of(job.layout, job.model(), scale=1.0 + step)
        gradients.load(flat, integers)
        out = torch.zeros(job.layout.length)
        loss, integers = gradients.of(root(job.plan.world_size), step, out)
        sums = gradients.heldout(root(job.plan.world_size))
        seen |= {f"gradient {step}": out, f"loss {step}": loss, f"integers {step}": integers}
        seen |= {f"heldout loss {step}": sums.loss, f"correct {step}": sums.correct}
        replica.load(flat, integers)
        seen |= {f"{name} {step}": tensor.clone() for name, tensor in replica.tensors().items()}
    return seen


@pytest.mark.parametrize("model", [IMAGES, {"type": "mlp", "hidden": [20]}, {"type": "logistic"}], ids=str)
def test_copies_of_the_weights_give_the_bits_of_views(model: dict[str, object]) -> None:
    job = Job(model=model, world_size=3, batch_size=4)
    views, copies = trained(job, in_place=True), trained(job, in_place=False)
    assert views.keys() == copies.keys()
    for name, value in views.items():
        other = copies[name]
        if isinstance(value, Tensor):
            assert isinstance(other, Tensor)
            assert value.detach().numpy().tobytes() == other.detach().numpy().tobytes(), name
        else:
            assert value == other, name


def test_views_follow_the_flat_vector_and_copies_do_not() -> None:
    """That is: the two paths above really are two."""
    job = Job(model=IMAGES, world_size=1, batch_size=4)
    for in_place in (True, False):
        _, replica = job.gradients(in_place=in_place)
        flat = flat_of(job.layout, job.model())
        replica.load(flat, replica.integer_layout.capture(replica.model))
        before = {name: parameter.detach().numpy().copy() for name, parameter in replica.model.named_parameters()}
        flat += 1
        for name, parameter in replica.model.named_parameters():
            assert np.array_equal(parameter.detach().numpy(), before[name] + np.float32(in_place)), name


def test_a_parameter_without_a_gradient_contributes_zeros_and_gradients_are_forgotten() -> None:
    job = Job(model=IMAGES, world_size=1, batch_size=4)
    for in_place in (True, False):
        _, replica = job.gradients(in_place=in_place)
        parameters = dict(replica.model.named_parameters())
        name = next(iter(parameters))
        parameters[name].grad = torch.full_like(parameters[name], 3.0)
        out = torch.full((job.layout.length,), 7.0)
        replica.write_contribution(out, 0.5)
        for layer, offset in zip(job.layout.layers, job.layout.offsets, strict=True):
            if layer.name in parameters:
                expected = 1.5 if layer.name == name else 0.0
                assert bool((out[offset : offset + layer.elements] == expected).all()), layer.name
        assert all(parameter.grad is None for parameter in parameters.values())
