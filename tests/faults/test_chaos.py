"""At least 60 faults on one cluster while jobs run: each of them happens, and none of them shows in any result.

What is done is in tests/chaos; `make chaos MINUTES=N` goes on for as long as wanted. A failure prints the seed; the
same plan again: SHOAL_CHAOS_SEED=N.
"""

import itertools
import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from shoal.sdk import JobView
from tests.chaos.checking import differences
from tests.chaos.conductor import JOBS_AT_A_TIME, Report, run_chaos
from tests.chaos.jobs import undisturbed
from tests.chaos.network import Network, what_is_missing
from tests.chaos.plan import DECK, OF_NETWORK, faults, size_of_deck
from tests.postgres import PostgresServer

pytestmark = pytest.mark.timeout(1200)
FAULTS = 60
STEPS = 500  # of most jobs


@pytest.fixture(scope="module")
def expected() -> Mapping[str, JobView]:
    return undisturbed(steps=STEPS)


@pytest.fixture(scope="module")
def missing() -> str:
    return what_is_missing()


@pytest.fixture(scope="module")
def report(
    expected: Mapping[str, JobView], missing: str, postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Report]:
    """One deck of every kind of fault, at random moments."""
    seed = int(os.environ.get("SHOAL_CHAOS_SEED") or random.randrange(1_000_000))
    print(f"chaos: seed {seed}", flush=True)
    deck = itertools.islice(faults(seed, network=not missing), size_of_deck(network=not missing))
    folder: Path = tmp_path_factory.mktemp("chaos")
    if missing:
        yield run_chaos(deck, seed=seed, steps=STEPS, folder=folder, server=postgres, network=None)
    else:
        with Network() as network:
            yield run_chaos(deck, seed=seed, steps=STEPS, folder=folder, server=postgres, network=network)


def test_at_least_sixty_faults_happen_of_each_kind_as_many_as_planned(report: Report) -> None:
    print(report.summary())
    assert [str(one.fault) for one in report.happened if not one.proof] == []
    assert len(report.proven) >= FAULTS
    happened = [one.fault.kind for one in report.proven]
    assert {kind: happened.count(kind) for kind in DECK if kind in happened} == {
        kind: dealt.count for kind, dealt in DECK.items() if kind in happened
    }
    assert set(DECK) - set(happened) <= set(OF_NETWORK)


def test_network_partitions_are_among_them(report: Report, missing: str) -> None:
    if missing:
        pytest.skip(f"NOT TESTED: {missing}")
    assert set(OF_NETWORK) <= {one.fault.kind for one in report.proven}


def test_every_job_ends_once_and_as_if_nothing_had_happened(report: Report, expected: Mapping[str, JobView]) -> None:
    kinds = {ran.kind for ran in report.ran}
    assert len(kinds) >= 1 + JOBS_AT_A_TIME, f"only {kinds} have run: they take turns"
    assert {ran.job.job_id: differences(ran.job, expected[ran.kind]) for ran in report.ran} == {
        ran.job.job_id: [] for ran in report.ran
    }


def test_there_is_one_job_for_each_key_that_was_acknowledged(report: Report) -> None:
    ids = [ran.job.job_id for ran in report.ran]
    assert len({ran.key for ran in report.ran}) == len(set(ids)) == len(ids)
    assert sorted(job.job_id for job in report.listed) == sorted(ids)


def test_nobody_ended_but_by_a_fault_and_no_error_was_left_uncaught(report: Report) -> None:
    assert report.ended_by_themselves == []
    assert report.tracebacks == []
