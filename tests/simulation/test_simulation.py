"""The unchanged programs pass every seed, and a seed is one history."""

import json
import os
import subprocess
import sys

import pytest

from tests.simulation.running import run
from tests.simulation.scenario import plan_of, simulation

SEEDS = 2000


@pytest.mark.timeout(900)
def test_no_oracle_objects_to_any_of_2000_seeds() -> None:
    report = run(first=1, seeds=SEEDS)
    print(*report.lines(), sep="\n")
    assert not report.failed, "\n".join(report.lines())
    assert not report.missing, "\n".join(report.lines())
    assert report.seeds == SEEDS


_DIGESTS = """
import json
from tests.simulation.scenario import plan_of, simulation
with simulation() as one:
    print(json.dumps([one.run(plan_of(seed)).digest for seed in {seeds}]))
"""


def test_a_seed_is_the_same_history_byte_for_byte_in_every_process() -> None:
    seeds = list(range(1, 25))
    with simulation() as one:
        here = [one.run(plan_of(seed)).digest for seed in seeds]
    there = []
    for hash_seed, order in (("1", seeds), ("2", seeds[::-1])):
        output = subprocess.run(
            [sys.executable, "-c", _DIGESTS.format(seeds=order)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        there.append(json.loads(output))
    assert len(set(here)) == len(here)
    assert there == [here, here[::-1]]


def test_both_stores_are_simulated() -> None:
    stores = [plan_of(seed).store for seed in range(1, 101)]
    assert 10 <= stores.count("sqlite") <= 50


def test_the_programs_are_themselves_again_afterwards() -> None:
    import grpc

    import shoal.master.app
    import shoal.ps.share
    from shoal.process.identity import new_incarnation

    before = grpc.aio.server, shoal.ps.share.Share.receive
    with simulation() as one:
        one.run(plan_of(1))
        assert shoal.master.app.new_incarnation is not new_incarnation
    assert shoal.master.app.new_incarnation is new_incarnation
    assert (grpc.aio.server, shoal.ps.share.Share.receive) == before
