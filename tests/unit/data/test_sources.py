"""What is checked without reading agrees with what can be opened."""

from shoal.data.catalog import OPENERS
from shoal.data.sources import SCHEMES


def test_every_scheme_can_be_checked_and_opened() -> None:
    assert SCHEMES.keys() == OPENERS.keys()
