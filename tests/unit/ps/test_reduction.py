"""The shard's reduction: any arrival of blocks gives the bits of the recursive definition, and takes each rank once."""

import random

import hypothesis
import hypothesis.strategies as st
import numpy as np
import torch
from torch import Tensor

from shoal.core.tree import Block, root
from shoal.ps.reduction import Reduction
from tests.unit.ps.by_hand import tree_total


def vectors(world_size: int, seed: int) -> list[Tensor]:
    """Values of such different sizes that any other order of additions shows in the bits."""
    generator = np.random.default_rng(seed)
    scale = 10.0 ** generator.integers(-4, 5, (world_size, 1))
    return list(torch.from_numpy((generator.standard_normal((world_size, 16)) * scale).astype(np.float32)))


def every_node(world_size: int) -> list[Block]:
    found, level = [], [root(world_size)]
    while level:
        found += level
        level = [half for node in level if node.size > 1 for half in node.halves if half.start < world_size]
    return found


def add_in_place(left: Tensor, right: Tensor) -> Tensor:
    """As the shard adds: the left buffer takes the sum."""
    return left.add_(right)


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[int, list[Block]]:
    """A world size, and blocks that together cover it: nested, disjoint, repeated, in any order."""
    world_size = draw(st.integers(1, 19))
    nodes = every_node(world_size)
    chosen = draw(st.lists(st.sampled_from(nodes), max_size=12))
    leaves = [Block(start=rank, size=1) for rank in range(world_size)]
    return world_size, draw(st.permutations(chosen + leaves))


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(arrival=arrivals(), seed=st.integers(0, 2**32))
def test_any_order_of_nested_and_repeated_blocks_gives_the_bits_of_the_recursive_definition(
    arrival: tuple[int, list[Block]], seed: int
) -> None:
    world_size, blocks = arrival
    values = vectors(world_size, seed)
    reduction: Reduction[Tensor] = Reduction(world_size=world_size, add=add_in_place)
    totals = []
    for block in blocks:
        if reduction.cover.covers(block):
            continue
        own = tree_total(values, block.start, block.size).clone()  # each push lies in a buffer of its own
        if (total := reduction.insert(block, own)) is not None:
            totals.append(total)
    assert len(totals) == 1
    assert totals[0].numpy().tobytes() == tree_total(values).numpy().tobytes()


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(arrival=arrivals())
def test_each_rank_counts_exactly_once(arrival: tuple[int, list[Block]]) -> None:
    """Tuples of ranks instead of numbers: what was added, and in which order, can be read off the sum."""
    world_size, blocks = arrival
    reduction: Reduction[tuple[int, ...]] = Reduction(world_size=world_size, add=lambda left, right: left + right)
    total = None
    for block in blocks:
        if not reduction.cover.covers(block):
            total = reduction.insert(block, tuple(block.ranks(world_size)))
    assert total == tuple(range(world_size))


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(world_size=st.integers(2, 19), order=st.randoms(use_true_random=False))
def test_nothing_is_returned_before_the_last_rank_is_in(world_size: int, order: random.Random) -> None:
    ranks = list(range(world_size))
    order.shuffle(ranks)
    reduction: Reduction[int] = Reduction(world_size=world_size, add=lambda left, right: left + right)
    answers = [reduction.insert(Block(start=rank, size=1), 1) for rank in ranks]
    assert answers == [None] * (world_size - 1) + [world_size]
