"""Sums that are exact, so that the order and the grouping of the terms cannot show."""

import math
from collections.abc import Sequence


def expansion(values: Sequence[float]) -> tuple[float, ...]:
    """Floats whose exact sum is the exact sum of `values`: that sum rounded, then the rest rounded, and so on.

    An expansion in the sense of Shewchuk (1997, "Adaptive precision floating-point arithmetic"), got from `math.fsum`,
    which rounds the exact sum once. Expansions of parts may be concatenated and summed by `math.fsum`: the result is
    the correctly rounded sum of all, however the parts were cut. Values must be finite.
    """
    parts: list[float] = []
    rest = list(values)
    while (head := math.fsum(rest)) != 0.0:
        parts.append(head)
        rest.append(-head)
    return tuple(parts)
