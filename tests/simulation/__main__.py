"""`python -m tests.simulation --seeds 2000 --first 1`: prints what happened, exits 1 if an oracle objects."""

import argparse
import sys

from tests.simulation.running import run
from tests.simulation.scenario import plan_of


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--cores", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.seeds == 1:
        print(plan_of(arguments.first))
    report = run(first=arguments.first, seeds=arguments.seeds, cores=arguments.cores)
    for line in report.lines():
        print(line)
    return 1 if report.failed or report.missing else 0


if __name__ == "__main__":
    sys.exit(main())
