"""The masters' fencing token, on the side of those who are asked."""

import pytest

from shoal.core.errors import Deposed
from shoal.wire.epochs import MasterEpochs


def test_a_master_of_a_lower_epoch_is_refused_and_the_later_one_and_who_is_no_master_are_not() -> None:
    epochs = MasterEpochs()
    epochs.check(0)
    epochs.check(3)
    epochs.check(3)
    with pytest.raises(Deposed, match="led in epoch 2: another leads now, in epoch 3"):
        epochs.check(2)
    epochs.check(0)
    epochs.check(4)
    assert not epochs.admits(3)
    assert epochs.highest == 4
