"""Clipping by the global norm, so that neither the number of shards nor what lies on which can show.

Squares are summed in float64 per page of 1,024 elements, then exactly over pages.
torch.nn.utils.clip_grad_norm_ does the same arithmetic in float32 per tensor.
"""

import math

from torch import Tensor

from shoal.core.layout import PAGE


def page_square_sums(flat: Tensor) -> Tensor:
    """float64 [pages] sums of squares of a shard's float32 [pages * 1024] range; padding must be 0.

    A page's sum depends on its own elements only, so the concatenation over the shards of any partition is the same.
    """
    pages_PE = flat.view(-1, PAGE).double()
    return pages_PE.mul_(pages_PE).sum(dim=1)


def clip_factor(square_sums: Tensor, max_norm: float) -> float:
    """`clip_scale` of float64 [pages] sums of squares of the whole flat vector, added exactly: torch's own sum of a
    long vector depends on the number of threads.
    """
    return clip_scale(math.fsum(square_sums.tolist()), max_norm)


def clip_scale(square_sum: float, max_norm: float) -> float:
    """What to multiply the gradient by, at most 1: max_norm / (norm + 1e-6), as torch.nn.utils.clip_grad_norm_.

    `square_sum` is the sum of squares of the whole gradient. A norm of inf gives 0, one of nan gives nan, as in torch.
    """
    norm = math.sqrt(square_sum)
    return norm if math.isnan(norm) else min(1.0, max_norm / (norm + 1e-6))
