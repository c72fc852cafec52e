"""Namespaces: cut off both ways, one way, healed, and gone with their process."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.network import INBOUND, OUTBOUND, Network, Place, what_is_missing

HOLD = (
    "import sys; from tests.chaos.network import Network; network = Network(); print(network._leg, flush=True); input()"
)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if missing := what_is_missing():
        pytest.skip(f"NOT TESTED: {missing}")
    with Network() as network:
        yield network


@pytest.fixture(scope="module")
def place(network: Network) -> Place:
    return network.place()


def answers(address: str) -> bool:
    """Nobody listens there, which its kernel says; unless it cannot."""
    try:
        socket.create_connection((address, 9), timeout=0.5).close()
    except ConnectionRefusedError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("chains", [(INBOUND,), (OUTBOUND,), (INBOUND, OUTBOUND)], ids=str)
def test_a_place_is_cut_off_and_healed(place: Place, chains: tuple[str, ...]) -> None:
    assert answers(place.address)
    place.drop(*chains)
    assert place.dropped() == 0
    assert not answers(place.address)
    assert place.dropped() > 0
    place.heal()
    assert answers(place.address)


def test_places_do_not_share_their_fate(network: Network, place: Place) -> None:
    other = network.place()
    place.drop(INBOUND)
    assert answers(other.address)
    place.heal()


def test_nothing_is_left_after_sigkill(network: Network) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout is not None
        leg = Path("/sys/class/net") / holder.stdout.readline().strip()
        assert leg.exists()
        holder.kill()
    deadline = time.monotonic() + 20
    while leg.exists():
        assert time.monotonic() < deadline, leg
        time.sleep(0.02)
