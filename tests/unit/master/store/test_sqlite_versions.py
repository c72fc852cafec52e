"""Which SQLite may have more than one connection to a write-ahead log."""

import pytest

from shoal.master.store.sqlite import ALONE, SHARED, layout_of


@pytest.mark.parametrize(
    "version",
    [
        (3, 7, 0),  # the first with a write-ahead log
        (3, 7, 17),
        (3, 34, 1),  # Debian 11
        (3, 40, 1),  # Debian 12
        (3, 44, 0),
        (3, 44, 5),
        (3, 45, 1),  # Ubuntu 24.04
        (3, 46, 1),  # Debian 13
        (3, 49, 9),
        (3, 50, 0),
        (3, 50, 6),
        (3, 51, 0),
        (3, 51, 2),
    ],
)
def test_one_that_may_corrupt_the_log_has_one_exclusive_connection(version):
    assert layout_of(version) == ALONE
    assert ALONE.readers == 0
    assert ALONE.locking == "EXCLUSIVE"


@pytest.mark.parametrize(
    "version", [(3, 44, 6), (3, 44, 7), (3, 50, 7), (3, 50, 9), (3, 51, 3), (3, 51, 4), (3, 52, 0), (4, 0, 0)]
)
def test_a_repaired_one_has_readers_beside_its_writer(version):
    assert layout_of(version) == SHARED
    assert SHARED.readers > 0


def test_one_without_a_log_has_one_connection():
    assert layout_of((3, 6, 23)) == ALONE
