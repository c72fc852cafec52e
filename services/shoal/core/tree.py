"""The reduction tree over ranks.

Sums over ranks follow one fixed binary tree over the rank numbers 0..world_size-1, so that the rounding, and with
it every bit of the result, is the same however the ranks are spread over workers. A `Block` is a node of that
tree: the ranks [start, start + size) with `size` a power of two and `start` a multiple of it, cut off at
world_size. The same pairwise order as in recursive-doubling reduction; what is our own is that any set of nodes
that nest or are disjoint may arrive in any order and the sum still follows the tree (`Cover`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, order=True, slots=True)
class Block:
    """A node of the tree: the ranks [start, start + size) that exist."""

    start: int
    size: int  # a power of two

    def __post_init__(self) -> None:
        if self.size < 1 or self.size & (self.size - 1) or self.start < 0 or self.start % self.size:
            raise ValueError(f"not a node of the tree: start {self.start}, size {self.size}")

    def __str__(self) -> str:
        return f"{self.start}+{self.size}"

    @property
    def end(self) -> int:
        return self.start + self.size

    @property
    def parent(self) -> "Block":
        size = self.size * 2
        return Block(start=self.start - self.start % size, size=size)

    @property
    def sibling(self) -> "Block":
        return Block(start=self.start ^ self.size, size=self.size)

    @property
    def is_left(self) -> bool:
        return self.start % (2 * self.size) == 0

    @property
    def halves(self) -> "tuple[Block, Block]":
        """The two children. Raises ValueError for a leaf."""
        half = self.size // 2
        return Block(start=self.start, size=half), Block(start=self.start + half, size=half)

    def contains(self, other: "Block") -> bool:
        return self.start <= other.start and other.end <= self.end

    def ranks(self, world_size: int) -> range:
        return range(self.start, min(self.end, world_size))


def root(world_size: int) -> Block:
    """The node that covers every rank."""
    if world_size < 1:
        raise ValueError("world_size must be at least 1")
    return Block(start=0, size=1 << (world_size - 1).bit_length())


def blocks_of(ranks: range, world_size: int) -> tuple[Block, ...]:
    """The fewest tree nodes that cover exactly `ranks`, in rank order.

    A range that reaches world_size may use nodes that reach beyond it: the ranks there do not exist.
    """
    if ranks.step != 1 or ranks.start < 0 or ranks.stop > world_size:
        raise ValueError(f"ranks {ranks} are not within 0..{world_size - 1}")
    blocks: list[Block] = []
    top = root(world_size)
    start = ranks.start
    end = top.end if ranks.stop == world_size else ranks.stop
    while start < end and start < world_size:
        size = start & -start if start else top.size
        while start + size > end:
            size //= 2
        blocks.append(Block(start=start, size=size))
        start += size
    return tuple(blocks)


@dataclass(frozen=True, kw_only=True, slots=True)
class Combine:
    """Add the sum of `right` to that of `left`; the result belongs to `into`. A missing right leaves left as it is."""

    left: Block
    right: Block | None
    into: Block


@dataclass(slots=True)
class Cover:
    """Which nodes of one step's tree have arrived, and what their arrival allows to add up.

    Two blocks of one tree nest or are disjoint. A block inside one that is here already is a duplicate; one that
    contains others replaces them (their bits are part of its own, by the same order of additions).
    """

    world_size: int
    present: set[Block] = field(default_factory=set)

    @property
    def complete(self) -> bool:
        return root(self.world_size) in self.present

    def covers(self, block: Block) -> bool:
        return any(have.contains(block) for have in self.present)

    def missing(self) -> tuple[int, ...]:
        """Ranks that nothing here covers, ascending."""
        have = {rank for block in self.present for rank in block.ranks(self.world_size)}
        return tuple(rank for rank in range(self.world_size) if rank not in have)

    def insert(self, block: Block) -> tuple[Block, ...]:
        """Takes in a block that is not covered; returns those that it replaces."""
        if self.covers(block):
            raise ValueError(f"block {block} is covered already")
        replaced = tuple(sorted(have for have in self.present if block.contains(have)))
        self.present.difference_update(replaced)
        self.present.add(block)
        return replaced

    def combinations(self, block: Block) -> Iterator[Combine]:
        """The additions that have become possible by `block`'s arrival, lowest first; updates `present`."""
        top = root(self.world_size)
        while block != top:
            left = block if block.is_left else block.sibling
            right = left.sibling
            if right.start >= self.world_size:
                step = Combine(left=left, right=None, into=left.parent)
            elif left in self.present and right in self.present:
                step = Combine(left=left, right=right, into=left.parent)
            else:
                return
            self.present.discard(left)
            self.present.discard(right)
            block = step.into
            self.present.add(block)
            yield step


def tree_sum(values: Sequence[float]) -> float:
    """Adds one value per rank in the tree's order; the scalars that ride along with gradients are added like this."""

    def node(block: Block) -> float:
        if block.size == 1:
            return values[block.start]
        left, right = block.halves
        return node(left) + node(right) if right.start < len(values) else node(left)

    return node(root(len(values)))
