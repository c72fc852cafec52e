import gc
import os
import subprocess
import sys

import numpy as np
import pytest

from shoal.core.layout import PAGE
from shoal.wire.exchange.memory import FlatSpace, create_shared


def test_ranges_of_several_owners_lie_side_by_side() -> None:
    one, two = create_shared("one", 2 * PAGE), create_shared("two", PAGE)
    space = FlatSpace(4 * PAGE)
    space.map_shared(0, 2 * PAGE, one, writable=True)
    space.map_shared(2 * PAGE, 3 * PAGE, two, writable=True)
    space.map_private(3 * PAGE, 4 * PAGE)
    flat = space.array()
    flat[:] = np.arange(4 * PAGE, dtype=np.float32)
    other = FlatSpace(PAGE)
    other.map_shared(0, PAGE, two, writable=False)
    os.close(one)
    os.close(two)
    assert np.array_equal(other.array(), np.arange(2 * PAGE, 3 * PAGE, dtype=np.float32))


def test_an_array_keeps_its_pages_after_the_space_is_forgotten() -> None:
    space = FlatSpace(PAGE)
    space.map_private(0, PAGE)
    view = space.array()[10:20]
    view[:] = 7
    del space
    gc.collect()
    assert view.sum() == 70


def test_ranges_must_lie_on_pages_and_inside() -> None:
    space = FlatSpace(2 * PAGE)
    for start, stop in ((1, PAGE), (0, 3 * PAGE), (PAGE, 0)):
        with pytest.raises(ValueError, match="not on pages"):
            space._place(start, stop, 0, 0, -1)


def test_a_write_to_a_read_only_range_ends_the_writer() -> None:
    program = (
        "from shoal.wire.exchange.memory import FlatSpace, create_shared\n"
        "fd = create_shared('x', 1024); space = FlatSpace(1024)\n"
        "space.map_shared(0, 1024, fd, writable=False)\n"
        "array = space.array(); print(array[0], flush=True); array[0] = 1; print('written')\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.stdout == "0.0\n"
    assert result.returncode == -11
