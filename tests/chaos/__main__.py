"""`python -m tests.chaos --minutes N --seed S`: prints each fault and the sum; exits 1 unless everything is right."""

import argparse
import itertools
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.chaos.checking import problems
from tests.chaos.conductor import run_chaos
from tests.chaos.jobs import undisturbed
from tests.chaos.network import Network, what_is_missing
from tests.chaos.plan import Fault, faults
from tests.postgres import running_server


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Needs PostgreSQL; root for partitions.")
    parser.add_argument("--minutes", type=float, default=5, help="for how long faults are carried out")
    parser.add_argument("--seed", type=int, default=None, help="makes the plan; default: a new one")
    parser.add_argument("--steps", type=int, default=1500, help="of most jobs")
    parser.add_argument("--plan", action="store_true", help="only print the first 100 faults of the plan")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.randrange(1_000_000)
    missing = what_is_missing()
    print(f"chaos: seed {seed}" + (f"; NOT TESTED: {missing}" if missing else ""), flush=True)
    plan = faults(seed, network=not missing)
    if arguments.plan:
        for fault in itertools.islice(plan, 100):
            print(f"+{fault.after_seconds:4.2f} s {fault}")
        return 0
    expected = undisturbed(steps=arguments.steps)
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="shoal-chaos-"))
        report = run_chaos(
            _until(plan, time.monotonic() + 60 * arguments.minutes),
            seed=seed,
            steps=arguments.steps,
            folder=folder,
            server=stack.enter_context(running_server()),
            network=None if missing else stack.enter_context(Network()),
            tell=lambda line: print(line, flush=True),
        )
    print(report.summary())
    found = problems(report, expected)
    for problem in found:
        print(f"PROBLEM: {problem} (logs: {folder})")
    if not found:
        shutil.rmtree(folder)
    return 1 if found else 0


def _until(plan: Iterator[Fault], end: float) -> Iterator[Fault]:
    return itertools.takewhile(lambda _: time.monotonic() < end, plan)


if __name__ == "__main__":
    sys.exit(main())
