"""`make bench-recovery`: p50 and p99 of every figure with its goal. Exits 1 if one is missed."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator

from tests.benchmarks.recovery import endings, faults, goodput, stall, wishes
from tests.benchmarks.recovery.figures import Figure

SCENARIOS: dict[str, Callable[[int], Iterator[Figure]]] = {
    "trainer": faults.trainer_killed,
    "agent": faults.agent_killed,
    "frozen": faults.worker_frozen,
    "shard": faults.shard_killed,
    "master": faults.master_killed,
    "sigterm": endings.every_role,
    "wishes": wishes.pause_and_cancel,
    "stall": stall.of_snapshots,
    "goodput": goodput.under_kills,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(SCENARIOS)}; default: all")
    parser.add_argument("--runs", type=int, default=30, help="of each figure")
    options = parser.parse_args()
    if unknown := set(options.names) - set(SCENARIOS):
        parser.error(f"no such figure: {', '.join(sorted(unknown))}")
    met = []
    print(f"load of the {os.cpu_count()} cores before: {os.getloadavg()[0]:.1f}", flush=True)
    for name in options.names or SCENARIOS:
        for figure in SCENARIOS[name](options.runs):
            met.append(figure.met)
            print(figure, flush=True)
    print(f"load after: {os.getloadavg()[0]:.1f}", flush=True)
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
