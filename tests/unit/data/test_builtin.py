"""The bundled data sets."""

import numpy as np
import pytest
import sklearn.datasets

from shoal.core.errors import InvalidInput
from shoal.data.builtin import read_table
from shoal.data.catalog import open_dataset
from shoal.data.sources import BUILTIN_NAMES
from shoal.data.split import Dataset
from shoal.data.splitting import split_positions


def opened(name: str, *, heldout_fraction: float = 0.2, split_seed: int = 0) -> Dataset:
    return open_dataset(
        source=f"builtin://{name}",
        label=None,
        heldout_fraction=heldout_fraction,
        split_seed=split_seed,
        roots=[],
    )


def test_digits_are_scikit_learns_scaled_to_one() -> None:
    dataset = opened("digits")
    facts = dataset.facts
    assert (facts.train_samples, facts.heldout_samples, facts.input_shape, facts.classes) == (1438, 359, (1, 8, 8), 10)
    positions = split_positions(1797, heldout_fraction=0.2, split_seed=0)
    source = sklearn.datasets.load_digits()
    for split, where in ((dataset.train, positions.train), (dataset.heldout, positions.heldout)):
        x, y = split.batch(np.arange(len(split)))
        assert (x.dtype, y.dtype) == (np.float32, np.int64)
        assert np.array_equal(x * 16, source.images[where][:, np.newaxis])
        assert np.array_equal(y, source.target[where])


@pytest.mark.parametrize("name", BUILTIN_NAMES)
def test_every_value_is_scikit_learns(name: str) -> None:
    source = getattr(sklearn.datasets, f"load_{name}")()
    values_SF, y = read_table(name)
    assert np.array_equal(values_SF, source.data)
    assert np.array_equal(y, source.target)


@pytest.mark.parametrize("name", sorted(set(BUILTIN_NAMES) - {"digits"}))
def test_tables_are_standardised_by_the_training_split(name: str) -> None:
    dataset = opened(name)
    x, y = dataset.train.batch(np.arange(len(dataset.train)))
    assert x.mean(axis=0) == pytest.approx(0, abs=1e-6)
    assert x.std(axis=0) == pytest.approx(1, abs=1e-6)
    assert set(y.tolist()) == set(range(dataset.facts.classes))


def test_splits_are_disjoint_whole_and_of_their_seed() -> None:
    first, again, other = (split_positions(101, heldout_fraction=0.25, split_seed=seed) for seed in (0, 0, 1))
    assert sorted([*first.train, *first.heldout]) == list(range(101))
    assert len(first.heldout) == 25
    assert np.array_equal(first.heldout, again.heldout)
    assert not np.array_equal(first.heldout, other.heldout)
    assert opened("iris").facts.fingerprint == opened("iris").facts.fingerprint
    assert opened("iris").facts.fingerprint != opened("iris", split_seed=1).facts.fingerprint


def test_a_split_that_leaves_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(InvalidInput, match="none to train on"):
        split_positions(3, heldout_fraction=0.9, split_seed=0)
    assert len(split_positions(3, heldout_fraction=0.0, split_seed=0).heldout) == 0


def test_batches_are_copies_in_the_order_asked_for() -> None:
    split = opened("digits").train
    x, y = split.batch(np.array([3, 1, 3]))
    x[0], y[0] = -1, -1
    again, labels = split.batch(np.array([3, 1, 3]))
    assert np.array_equal(again[0], again[2])
    assert labels[0] == labels[2] >= 0
    assert not np.array_equal(again[0], again[1])
