import itertools

import pytest

from tests.chaos.plan import DECK, OF_NETWORK, faults, size_of_deck


def first_deck(seed: int, *, network: bool = True):
    return list(itertools.islice(faults(seed, network=network), size_of_deck(network=network)))


def test_a_seed_makes_the_plan():
    assert first_deck(5) == first_deck(5)
    assert first_deck(5) != first_deck(6)


@pytest.mark.parametrize("network", [True, False])
def test_a_deck_has_at_least_sixty_faults_of_every_kind_that_is_possible(network):
    deck = first_deck(1, network=network)
    assert len(deck) >= 60
    assert {fault.kind for fault in deck} == set(DECK) - (set() if network else set(OF_NETWORK))


def test_targets_take_turns():
    for kind, dealt in DECK.items():
        hit = [fault.target for fault in first_deck(3) if fault.kind is kind]
        counts = [hit.count(target) for target in dealt.targets]
        assert max(counts) - min(counts) <= 1, kind
