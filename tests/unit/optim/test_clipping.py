"""Clipping by the global norm: torch's factor, and the same bits for every partition."""

import itertools
import math

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from shoal.core.layout import PAGE
from shoal.optim.clipping import clip_factor, clip_scale, page_square_sums


def flat_vector(pages: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(pages * PAGE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("max_norm", [0.1, 1.0, 50.0, 1e6])
def test_the_factor_is_that_of_clip_grad_norm(max_norm: float) -> None:
    flat = flat_vector(5)
    parameters = [torch.nn.Parameter(torch.zeros(2 * PAGE)), torch.nn.Parameter(torch.zeros(3 * PAGE))]
    parameters[0].grad, parameters[1].grad = flat[: 2 * PAGE].clone(), flat[2 * PAGE :].clone()
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    clipped = torch.cat([parameter.grad for parameter in parameters if parameter.grad is not None])
    torch.testing.assert_close(flat * clip_factor(page_square_sums(flat), max_norm), clipped, rtol=1e-6, atol=0)


def test_the_sums_are_those_of_exact_arithmetic() -> None:
    flat = flat_vector(3)
    sums = page_square_sums(flat)
    assert sums.dtype == torch.float64
    for page, total in enumerate(sums.tolist()):
        exact = math.fsum(value * value for value in flat[page * PAGE : (page + 1) * PAGE].tolist())
        assert total == pytest.approx(exact, rel=1e-15)
    assert clip_factor(sums, 1.0) == clip_scale(math.fsum(sums.tolist()), 1.0)


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(cuts=st.lists(st.integers(0, 97), max_size=6), threads=st.integers(1, 2))
def test_every_partition_gives_the_same_bits(cuts: list[int], threads: int) -> None:
    flat = flat_vector(97)
    whole = page_square_sums(flat)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        bounds = [0, *sorted(cuts), 97]
        parts = [page_square_sums(flat[a * PAGE : b * PAGE]) for a, b in itertools.pairwise(bounds)]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(torch.cat(parts), whole)


def test_padding_counts_for_nothing() -> None:
    padded = torch.zeros(2 * PAGE)
    padded[:3] = torch.tensor([3.0, 4.0, 12.0])
    assert clip_factor(page_square_sums(padded), 1.3) == pytest.approx(0.1, rel=1e-6)


def test_small_gradients_are_left_alone_and_odd_norms_show() -> None:
    assert clip_scale(0.0, 1.0) == 1.0
    assert clip_scale(0.25, 1.0) == 1.0
    assert clip_scale(math.inf, 1.0) == 0.0
    assert math.isnan(clip_scale(math.nan, 1.0))
