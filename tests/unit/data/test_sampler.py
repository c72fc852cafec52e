"""The sampler: every sample exactly once per epoch, whoever asks, in whatever order."""

import random

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from shoal.core.plan import Plan
from shoal.core.seeds import derive_seed
from shoal.data.sampler import Sampler, permutation

WORD = 0xFFFFFFFFFFFFFFFF


def philox4x64_10(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Ten rounds as in Salmon et al. 2011, section 3.3, with the constants of their Random123 library."""
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c0, 1 << 64)
        high1, low1 = divmod(0xCA5A826395121157 * c2, 1 << 64)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & WORD, (k1 + 0xBB67AE8584CAA73B) & WORD
    return c0, c1, c2, c3


def reference_permutation(length: int, key: int) -> list[int]:
    """numpy's Philox counts up before each block, so the first block is that of counter 1."""
    draws: list[int] = []
    for block in range(1, length // 4 + 2):
        draws += philox4x64_10((block, 0, 0, 0), (key, 0))
    return sorted(range(length), key=draws.__getitem__)  # sorted is stable


def test_the_reference_is_philox() -> None:
    """The known answers that Random123 publishes in kat_vectors for philox4x64-10."""
    assert philox4x64_10((0, 0, 0, 0), (0, 0)) == (
        0x16554D9ECA36314C,
        0xDB20FE9D672D0FDC,
        0xD7E772CEE186176B,
        0x7E68B68AEC7BA23B,
    )
    assert philox4x64_10((WORD,) * 4, (WORD,) * 2) == (
        0x87B092C3013FE90B,
        0x438C3C67BE8D0224,
        0x9CC7D7C69CD777B6,
        0xA09CAEBF594F0BA0,
    )


@pytest.mark.parametrize(("length", "key"), [(1, 0), (5, 1), (37, 12345), (1000, 2**63 - 1)])
def test_the_permutation_is_the_order_of_philox_draws(length: int, key: int) -> None:
    assert permutation(length, key).tolist() == reference_permutation(length, key)


def plans() -> st.SearchStrategy[Plan]:
    return st.builds(
        Plan,
        world_size=st.integers(1, 9),
        batch_size=st.integers(1, 7),
        accumulation=st.integers(1, 3),
        train_samples=st.integers(1, 150),
        heldout_samples=st.just(0),
        epochs=st.just(3),
        steps=st.none(),
        evaluate_every=st.none(),
    )


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(plan=plans(), seed=st.integers(0, 2**63), order=st.randoms(use_true_random=False))
def test_every_sample_is_due_once_per_epoch_in_any_order_of_asking(plan: Plan, seed: int, order: random.Random) -> None:
    units = [plan.unit(step, rank) for step in range(plan.total_steps) for rank in range(plan.world_size)]
    in_turn = Sampler(seed, plan.train_samples)
    expected = [in_turn.indices(unit).tolist() for unit in units]
    for epoch in range(3):
        due = [index for unit, asked in zip(units, expected, strict=True) if unit.epoch == epoch for index in asked]
        assert sorted(due) == list(range(plan.train_samples))
    shuffled = list(range(len(units)))
    order.shuffle(shuffled)
    sampler = Sampler(seed, plan.train_samples)
    assert all(sampler.indices(units[i]).tolist() == expected[i] for i in shuffled)


def test_the_shuffle_is_that_of_seed_and_epoch() -> None:
    plan = Plan(
        world_size=2,
        batch_size=25,
        accumulation=1,
        train_samples=50,
        heldout_samples=0,
        epochs=2,
        steps=None,
        evaluate_every=None,
    )
    for epoch in range(2):
        asked = [index for rank in range(2) for index in Sampler(7, 50).indices(plan.unit(epoch, rank)).tolist()]
        assert asked == reference_permutation(50, derive_seed(7, "epoch", epoch))


def test_only_two_epochs_are_kept() -> None:
    plan = Plan(
        world_size=1,
        batch_size=10,
        accumulation=1,
        train_samples=10,
        heldout_samples=0,
        epochs=None,
        steps=9,
        evaluate_every=None,
    )
    sampler = Sampler(0, 10)
    for step in range(9):
        sampler.indices(plan.unit(step, 0))
    assert list(sampler._epochs) == [7, 8]


def test_indices_cannot_be_changed() -> None:
    plan = Plan(
        world_size=1,
        batch_size=4,
        accumulation=1,
        train_samples=4,
        heldout_samples=0,
        epochs=1,
        steps=None,
        evaluate_every=None,
    )
    indices = Sampler(0, 4).indices(plan.unit(0, 0))
    assert indices.dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        indices[0] = 1
