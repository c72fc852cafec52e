"""Fixtures that several folders share."""

from collections.abc import Iterator

import pytest

from shoal.local import Cluster
from tests.postgres import PostgresServer, running_server

LONG = {"faults", "simulation"}  # folders


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three workers and three parameter servers, undisturbed, for all tests of this process that want one."""
    with Cluster(workers=3, shards=3, worker_options=("--max-concurrent-jobs", "2")) as running:
        yield running


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A real server of this test process, or a skip that says why there is none."""
    with running_server() as server:
        yield server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take minutes come first, so that at the end of a run no process waits for another's."""
    items.sort(key=lambda item: item.path.parent.name not in LONG)
