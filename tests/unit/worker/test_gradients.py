"""A block's gradient is the tree's sum of what plain autograd gives for each rank, bit for bit."""

import random

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from shoal.core.tree import Block, blocks_of, root
from tests.unit.worker.plain import IMAGES, Job, added_like_a_tree

JOBS = {
    "even": {"world_size": 4, "batch_size": 4},
    "uneven": {"world_size": 7, "batch_size": 3, "accumulation": 2},  # 37 samples over 7 ranks
    "more ranks than samples": {"world_size": 8, "batch_size": 4},  # the second step has 5 samples for 8 ranks
    "micro-batches that stay empty": {"world_size": 5, "batch_size": 2, "accumulation": 4},  # 37 over 5 x 4
    "one rank": {"world_size": 1, "batch_size": 16},
}


def bits(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()


@pytest.mark.parametrize("model", [IMAGES, {"type": "mlp", "hidden": [20]}], ids=["cnn", "mlp"])
@pytest.mark.parametrize("name", JOBS)
def test_a_block_is_the_trees_sum_of_its_ranks_by_plain_autograd(name: str, model: dict[str, object]) -> None:
    job = Job(model=model, **JOBS[name])
    world_size = job.plan.world_size
    gradients = job.loaded()
    for step in range(2):
        units = [job.plain_unit(step, rank) for rank in range(world_size)]
        blocks = {block for stop in range(1, world_size + 1) for block in blocks_of(range(stop), world_size)}
        for block in sorted(blocks | {root(world_size)}):
            out = torch.full((job.layout.length,), 9.0)
            for layer, offset in zip(job.layout.layers, job.layout.offsets, strict=True):
                out[offset + layer.elements : offset + layer.pages * 1024] = 0  # padding, as a new buffer has it
            loss, integers = gradients.of(block, step, out)
            assert bits(out) == bits(added_like_a_tree([unit[0] for unit in units], block.start, block.size)), block
            assert loss == added_like_a_tree([unit[1] for unit in units], block.start, block.size), block
            assert integers == (units[0][2] if block.start == 0 else b"")


def test_the_whole_steps_gradient_is_that_of_the_mean_loss_over_all_samples() -> None:
    """The closed form behind the weights n_r / N: uneven ranks must not count for more or less."""
    job = Job(model={"type": "mlp", "hidden": [20]}, **JOBS["uneven"])
    out = torch.zeros(job.layout.length)
    loss, _ = job.loaded().of(root(7), 0, out)
    model = job.model()
    indices = torch.cat([torch.from_numpy(job.samples_of_rank(0, rank)[0]) for rank in range(7)])
    assert sorted(indices.tolist()) == list(range(37))
    mean = cross_entropy(model(torch.from_numpy(job.train.x)), torch.from_numpy(job.train.y))
    mean.backward()  # type: ignore[no-untyped-call]
    named = dict(model.named_parameters())
    for layer, offset in zip(job.layout.layers, job.layout.offsets, strict=True):
        gradient = named[layer.name].grad
        assert gradient is not None
        mine = out[offset : offset + layer.elements].view(layer.shape)
        torch.testing.assert_close(mine, gradient, rtol=1e-4, atol=1e-6)
    assert loss == pytest.approx(mean.item(), rel=1e-5)


def test_a_rank_without_samples_adds_exactly_nothing() -> None:
    job = Job(model=IMAGES, **JOBS["more ranks than samples"])
    gradients = job.loaded()
    counts = [len(job.samples_of_rank(1, rank)[0]) for rank in range(8)]
    assert counts == [1, 1, 1, 1, 1, 0, 0, 0]
    for rank in (5, 6, 7):
        out = torch.full((job.layout.length,), 9.0)
        loss, integers = gradients.of(Block(start=rank, size=1), 1, out)
        assert (loss, integers) == (0.0, b"")
        for layer, offset in zip(job.layout.layers, job.layout.offsets, strict=True):
            assert not out[offset : offset + layer.elements].any(), layer.name


def test_dropout_and_statistics_do_not_depend_on_what_was_computed_before() -> None:
    job = Job(model=IMAGES, world_size=6, batch_size=4)
    units = [(step, rank) for step in range(3) for rank in range(6)]
    seen: dict[tuple[int, int], set[bytes]] = {unit: set() for unit in units}
    for seed in range(3):
        gradients = job.loaded()
        order = random.Random(seed).sample(units, len(units))
        for step, rank in order + order[:4]:  # some of them again
            out = torch.zeros(job.layout.length)
            torch.rand(seed + 1)  # whatever else drew numbers in this process
            gradients.of(Block(start=rank, size=1), step, out)
            seen[step, rank].add(bits(out))
    assert all(len(variants) == 1 for variants in seen.values())
    assert len(set.union(*seen.values())) == len(units)  # and each unit is its own


def test_held_out_sums_are_those_of_the_whole_split_however_it_is_divided() -> None:
    job = Job(model=IMAGES, world_size=5, batch_size=4, heldout_samples=601)
    gradients = job.loaded()
    model = job.model().eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(job.heldout.x))
        labels = torch.from_numpy(job.heldout.y)
        correct = int((logits.argmax(1) == labels).sum())
        loss = float(cross_entropy(logits.double(), labels, reduction="sum"))
    whole = gradients.heldout(root(5))
    parts = [gradients.heldout(Block(start=rank, size=1)) for rank in range(5)]
    assert whole.samples == sum(part.samples for part in parts) == 601
    assert whole.correct == sum(part.correct for part in parts) == correct
    assert whole.loss == added_like_a_tree([part.loss for part in parts], 0, 8)
    assert whole.loss == pytest.approx(loss, rel=1e-5)


def test_every_unit_is_timed() -> None:
    job = Job(model={"type": "logistic"}, world_size=4, batch_size=4)
    gradients = job.loaded()
    out = torch.zeros(job.layout.length)
    assert gradients.seconds_per_unit == 0
    gradients.of(root(4), 0, out)
    assert len(gradients.unit_seconds) == 4
    assert min(gradients.unit_seconds) <= gradients.seconds_per_unit <= max(gradients.unit_seconds)
