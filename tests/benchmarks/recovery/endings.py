"""SIGTERM to each role while a job runs: how long until the process has ended."""

from collections.abc import Iterator

from tests.benchmarks.recovery.clusters import LONGEST_SECONDS, timed, training
from tests.benchmarks.recovery.figures import Figure


def every_role(runs: int) -> Iterator[Figure]:
    seconds: dict[str, list[float]] = {"worker": [], "parameter server": [], "master": []}
    with training() as bench:
        cluster = bench.cluster
        for _ in range(runs):
            for role, name in (("worker", cluster.workers[-1]), ("parameter server", "ps-2"), ("master", "master")):
                process = cluster.member(name).process
                with timed(seconds[role]):
                    process.terminate()
                    assert process.wait(timeout=LONGEST_SECONDS) == 0
                match role:
                    case "worker":
                        cluster.add_worker()
                    case "parameter server":
                        cluster.restart_server(name)
                    case _:
                        cluster.restart_master()
                bench.trains_on(*cluster.workers)
    for role, values in seconds.items():
        yield Figure(name=f"SIGTERM to a {role}, until it has ended", values=values, unit=" s", goal=2)
