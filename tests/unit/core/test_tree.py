"""The reduction tree: any arrival gives the bits of the recursive definition."""

import random
from collections.abc import Callable

import hypothesis
import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest

from shoal.core.tree import Block, Cover, blocks_of, root, tree_sum

Vector = npt.NDArray[np.float32]


def by_definition(values: list[Vector], start: int, size: int) -> Vector:
    """A node's sum, straight from the description: left half plus right half, ranks beyond the last one missing."""
    if size == 1:
        return values[start]
    left = by_definition(values, start, size // 2)
    if start + size // 2 >= len(values):
        return left
    return left + by_definition(values, start + size // 2, size // 2)


def gradients(world_size: int, seed: int) -> list[Vector]:
    generator = np.random.default_rng(seed)
    scale = 10.0 ** generator.integers(-4, 5, (world_size, 1))
    return list((generator.standard_normal((world_size, 16)) * scale).astype(np.float32))


def nodes(world_size: int) -> list[Block]:
    """Every node of the tree that holds a rank."""
    found, level = [], [root(world_size)]
    while level:
        found += level
        level = [half for node in level if node.size > 1 for half in node.halves if half.start < world_size]
    return found


def arrivals(world_size: int, order: random.Random) -> list[Block]:
    """Blocks that cover everything together, nested or disjoint, with duplicates, in any order."""
    every = nodes(world_size)
    chosen = order.sample(every, order.randint(0, len(every)))
    leaves = [Block(start=rank, size=1) for rank in range(world_size)]
    sequence = chosen + leaves + chosen[: len(chosen) // 2]
    order.shuffle(sequence)
    return sequence


class Reducer:
    """What a shard does with arrivals, in its plainest form."""

    def __init__(self, world_size: int) -> None:
        self.cover = Cover(world_size=world_size)
        self.sums: dict[Block, Vector] = {}

    def receive(self, block: Block, value: Vector) -> bool:
        if self.cover.covers(block):
            return False
        for replaced in self.cover.insert(block):
            del self.sums[replaced]
        self.sums[block] = value
        for step in self.cover.combinations(block):
            left = self.sums.pop(step.left)
            self.sums[step.into] = left if step.right is None else left + self.sums.pop(step.right)
        assert self.sums.keys() == self.cover.present
        return True


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(world_size=st.integers(1, 21), seed=st.integers(0, 2**32), order=st.randoms(use_true_random=False))
def test_any_order_of_nested_and_disjoint_blocks_gives_the_same_bits(
    world_size: int, seed: int, order: random.Random
) -> None:
    values = gradients(world_size, seed)
    expected = by_definition(values, 0, root(world_size).size)
    reducer = Reducer(world_size)
    for block in arrivals(world_size, order):
        reducer.receive(block, by_definition(values, block.start, block.size))
    assert reducer.cover.complete
    assert reducer.cover.missing() == ()
    assert reducer.sums[root(world_size)].tobytes() == expected.tobytes()


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(world_size=st.integers(1, 21), order=st.randoms(use_true_random=False))
def test_it_completes_with_the_arrival_of_the_last_missing_rank(world_size: int, order: random.Random) -> None:
    values = gradients(world_size, 0)
    reducer = Reducer(world_size)
    arrived: set[int] = set()
    for block in arrivals(world_size, order):
        fresh = not set(block.ranks(world_size)) <= arrived
        taken = reducer.receive(block, by_definition(values, block.start, block.size))
        arrived |= set(block.ranks(world_size))
        assert taken or not fresh
        assert reducer.cover.missing() == tuple(sorted(set(range(world_size)) - arrived))
        assert reducer.cover.complete == (len(arrived) == world_size)


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(values=st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=40))
def test_scalars_are_summed_like_vectors(values: list[float]) -> None:
    def node(start: int, size: int) -> float:
        if size == 1:
            return values[start]
        left = node(start, size // 2)
        return left + node(start + size // 2, size // 2) if start + size // 2 < len(values) else left

    assert tree_sum(values) == node(0, root(len(values)).size)


def fewest(ranks: range, world_size: int) -> int:
    """The least number of nodes that cover exactly `ranks`, by dynamic programming over all nodes."""
    best = {ranks.start: 0}
    for position in range(ranks.start, ranks.stop):
        if position not in best:
            continue
        for node in nodes(world_size):
            end = node.ranks(world_size).stop
            if node.start == position and end <= ranks.stop:
                best[end] = min(best.get(end, 1_000_000), best[position] + 1)
    return best[ranks.stop]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8, 13, 16])
def test_blocks_of_covers_exactly_with_the_fewest_nodes(world_size: int) -> None:
    for start in range(world_size):
        for stop in range(start + 1, world_size + 1):
            blocks = blocks_of(range(start, stop), world_size)
            covered = [rank for block in blocks for rank in block.ranks(world_size)]
            assert covered == list(range(start, stop))
            assert len(blocks) == fewest(range(start, stop), world_size)
            assert set(blocks) <= set(nodes(world_size))


def test_no_ranks_need_no_blocks() -> None:
    assert blocks_of(range(3, 3), 8) == ()
    assert blocks_of(range(8), 8) == (root(8),)
    assert blocks_of(range(5), 5) == (root(5),)


@pytest.mark.parametrize("ranks", [range(9), range(-1, 3), range(0, 8, 2)])
def test_ranks_that_do_not_exist_are_refused(ranks: range) -> None:
    with pytest.raises(ValueError, match="not within"):
        blocks_of(ranks, 8)


@pytest.mark.parametrize(("start", "size"), [(1, 2), (0, 3), (0, 0), (-2, 2), (2, 4)])
def test_what_is_no_node_is_refused(start: int, size: int) -> None:
    with pytest.raises(ValueError, match="not a node"):
        Block(start=start, size=size)


def test_a_covered_block_cannot_be_inserted() -> None:
    cover = Cover(world_size=4)
    cover.insert(Block(start=0, size=2))
    with pytest.raises(ValueError, match="covered"):
        cover.insert(Block(start=1, size=1))


@hypothesis.given(size=st.integers(0, 10).map(lambda power: 1 << power), index=st.integers(0, 500))
def test_relatives_fit_together(size: int, index: int) -> None:
    block = Block(start=index * size, size=size)
    family: list[Callable[[Block], Block]] = [lambda b: b.parent, lambda b: b.sibling.parent]
    assert {relative(block) for relative in family} == {block.parent}
    assert set(block.parent.halves) == {block, block.sibling}
    assert block.is_left == (block.parent.halves[0] == block)
    assert block.parent.contains(block)
    assert not block.contains(block.sibling)
    assert str(block) == f"{block.start}+{block.size}"


def test_the_root_is_the_least_power_of_two() -> None:
    assert [root(n).size for n in (1, 2, 3, 4, 5, 8, 9)] == [1, 2, 4, 4, 8, 8, 16]
    with pytest.raises(ValueError, match="at least 1"):
        root(0)
