"""A figure of several runs, with its goal."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """`goal` is for the p99 of `values`: at most, unless `at_least`."""

    name: str
    values: Sequence[float]
    unit: str
    goal: float
    at_least: bool = False
    detail: str = ""

    @property
    def met(self) -> bool:
        return self.worst >= self.goal if self.at_least else self.worst <= self.goal

    @property
    def middle(self) -> float:
        return quantile(self.values, 0.5)

    @property
    def worst(self) -> float:
        return quantile(self.values, 0.01 if self.at_least else 0.99)

    def __str__(self) -> str:
        bound = "at least" if self.at_least else "at most"
        shown = f"p50 {self.middle:.3g}{self.unit}, p99 {self.worst:.3g}{self.unit}"
        if len(self.values) == 1:
            shown = f"{self.values[0]:.3g}{self.unit}"
        detail = f"; {self.detail}" if self.detail else ""
        return (
            f"{'ok  ' if self.met else 'MISS'} {self.name}: {shown} (goal: {bound} {self.goal:.3g}{self.unit};"
            f" {len(self.values)} runs){detail}"
        )


def quantile(values: Sequence[float], fraction: float) -> float:
    """Of all values the one that this fraction does not exceed: with 30, the p99 is the largest."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]
