"""Spreading ranks: properties for any input, and cases in which the best answer is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.tree import blocks_of
from shoal.master.scheduling.spread import Hysteresis, respread, spread, step_seconds

HYSTERESIS = Hysteresis(gain=0.25, gain_seconds=0.001, seconds=5.0)


def names(count: int) -> list[str]:
    return [f"w{number:02}" for number in range(count)]


@st.composite
def situations(draw: st.DrawFn) -> dict[str, object]:
    world_size = draw(st.integers(1, 70))
    workers = names(draw(st.integers(1, min(world_size, 12))))
    before = draw(st.integers(0, min(world_size, 12)))
    old = spread(world_size=world_size, workers=names(14)[14 - before :], seconds_per_unit={}, current={})
    speeds = draw(st.dictionaries(st.sampled_from(workers), st.floats(0.0, 5.0)))
    return {"world_size": world_size, "workers": workers, "seconds_per_unit": speeds, "current": old}


@given(situations())
def test_every_rank_is_hosted_once_and_every_worker_hosts_one(situation):
    ranks = spread(**situation)
    assert set(ranks) == set(situation["workers"])
    assert all(len(hosted) >= 1 for hosted in ranks.values())
    assert sorted(rank for hosted in ranks.values() for rank in hosted) == list(range(situation["world_size"]))


@given(situations())
def test_the_same_input_gives_the_same_ranks_in_any_order_of_workers(situation):
    again = {**situation, "workers": situation["workers"][::-1]}
    assert spread(**situation) == spread(**again)


@given(situations())
def test_a_spread_is_stable(situation):
    ranks = spread(**situation)
    assert spread(**{**situation, "current": ranks}) == ranks


@given(situations())
def test_no_single_rank_moved_to_another_worker_makes_the_step_shorter_by_more_than_the_slack(situation):
    ranks = spread(**situation)
    known = [seconds for seconds in situation["seconds_per_unit"].values() if seconds > 0]
    mean = sum(known) / len(known) if known else 1.0
    times = {worker: situation["seconds_per_unit"].get(worker, 0.0) or mean for worker in ranks}
    counts = {worker: len(hosted) for worker, hosted in ranks.items()}
    best = step_seconds(ranks, times) / 1.05
    slowest = max(counts, key=lambda worker: counts[worker] * times[worker])
    if counts[slowest] == 1:
        return
    for other in counts:
        if other != slowest:
            moved = {**counts, slowest: counts[slowest] - 1, other: counts[other] + 1}
            assert max(count * times[worker] for worker, count in moved.items()) >= best * (1 - 1e-9)


@given(situations())
def test_workers_that_stay_keep_their_order(situation):
    ranks = spread(**situation)
    current = situation["current"]
    staying = [worker for worker in ranks if worker in current]
    assert sorted(staying, key=lambda w: ranks[w].start) == sorted(staying, key=lambda w: current[w].start)


@pytest.mark.parametrize(
    ("world_size", "workers", "seconds", "wanted"),
    [
        (8, 1, {}, [8]),
        (8, 2, {}, [4, 4]),
        (8, 3, {}, [2, 3, 3]),  # a cut at 2 needs fewer tree blocks than one at 3
        (8, 8, {}, [1] * 8),
        (8, 2, {"w00": 1.0, "w01": 3.0}, [6, 2]),
        (8, 2, {"w00": 1.0, "w01": 100.0}, [7, 1]),
        (8, 2, {"w00": 2.0}, [4, 4]),  # unknown: the mean of the known
        (9, 3, {"w00": 1.0, "w01": 2.0}, [4, 2, 3]),
    ],
)
def test_ranks_are_in_proportion_to_speed(world_size, workers, seconds, wanted):
    ranks = spread(world_size=world_size, workers=names(workers), seconds_per_unit=seconds, current={})
    assert [len(ranks[worker]) for worker in names(workers)] == wanted


def test_no_worker_means_no_ranks():
    assert spread(world_size=4, workers=[], seconds_per_unit={}, current={}) == {}


def test_more_workers_than_ranks_is_a_fault_of_the_caller():
    with pytest.raises(ValueError, match="3 workers for 2 ranks"):
        spread(world_size=2, workers=names(3), seconds_per_unit={}, current={})


def test_cuts_prefer_round_ranks_where_that_costs_little():
    ranks = spread(world_size=256, workers=names(3), seconds_per_unit={}, current={})
    blocks = sum(len(blocks_of(hosted, 256)) for hosted in ranks.values())
    plain = sum(len(blocks_of(hosted, 256)) for hosted in (range(86), range(86, 171), range(171, 256)))
    assert blocks < plain
    assert max(map(len, ranks.values())) <= 86 * 1.05


def test_the_ranks_of_a_lost_worker_go_to_the_others_and_those_keep_theirs():
    current = {"w00": range(3), "w01": range(3, 6), "w02": range(6, 9)}
    ranks = spread(world_size=9, workers=["w00", "w02"], seconds_per_unit={}, current=current)
    for worker in ranks:
        assert set(current[worker]) <= set(ranks[worker])


def test_a_newcomer_takes_the_place_of_a_lost_worker():
    current = {"w00": range(3), "w01": range(3, 6), "w02": range(6, 9)}
    ranks = spread(world_size=9, workers=["w00", "w02", "w99"], seconds_per_unit={}, current=current)
    assert ranks == {"w00": range(3), "w99": range(3, 6), "w02": range(6, 9)}


def test_many_newcomers_at_once_are_placed_quickly():
    workers = names(5) + [f"n{number}" for number in range(400)]
    current = spread(world_size=4096, workers=names(5), seconds_per_unit={}, current={})
    assert len(spread(world_size=4096, workers=workers, seconds_per_unit={}, current=current)) == 405


EVEN = {"w00": range(4), "w01": range(4, 8)}


@pytest.mark.parametrize(
    ("seconds", "since", "moves"),
    [
        ({"w00": 1.0, "w01": 3.0}, 10.0, True),  # 12 s a step become 6 s
        ({"w00": 1.0, "w01": 3.0}, 4.0, False),  # too soon
        ({"w00": 1.0, "w01": 1.2}, 10.0, False),  # nothing to gain
        ({"w00": 1.0, "w01": 1.5}, 10.0, False),  # 6.0 s become 5.0 s: less than a quarter
        ({"w00": 1e-4, "w01": 3e-4}, 10.0, False),  # half the time, but only 0.6 ms of it
        ({}, 10.0, False),
    ],
)
def test_ranks_move_for_speed_only_if_it_pays(seconds, since, moves):
    ranks = respread(
        world_size=8,
        workers=list(EVEN),
        seconds_per_unit=seconds,
        current=EVEN,
        seconds_since_move=since,
        hysteresis=HYSTERESIS,
    )
    assert (ranks != EVEN) == moves


@pytest.mark.parametrize("workers", [["w00"], ["w00", "w01", "w02"], ["w00", "w02"]])
def test_ranks_move_at_once_when_the_workers_are_others(workers):
    ranks = respread(
        world_size=8,
        workers=workers,
        seconds_per_unit={},
        current=EVEN,
        seconds_since_move=0.0,
        hysteresis=HYSTERESIS,
    )
    assert set(ranks) == set(workers)
