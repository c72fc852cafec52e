"""One step's sum over ranks, built from blocks that arrive in any order, added in the order of the tree."""

from collections.abc import Callable
from typing import Generic, TypeVar

from shoal.core.tree import Block, Cover, root

T = TypeVar("T")


class Reduction(Generic[T]):
    """`add(left, right)` may change `left` in place; it returns the sum."""

    def __init__(self, *, world_size: int, add: Callable[[T, T], T]) -> None:
        self.cover = Cover(world_size=world_size)
        self._add = add
        self._sums: dict[Block, T] = {}

    def insert(self, block: Block, value: T) -> T | None:
        """Takes a block that is not covered yet. Returns the sum over all ranks once it is complete."""
        for replaced in self.cover.insert(block):
            del self._sums[replaced]
        self._sums[block] = value
        for step in self.cover.combinations(block):
            total = self._sums.pop(step.left)
            if step.right is not None:
                total = self._add(total, self._sums.pop(step.right))
            self._sums[step.into] = total
        return self._sums.get(root(self.cover.world_size))
