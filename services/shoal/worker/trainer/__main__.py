"""`python -m shoal.worker.trainer`: started by an agent only; grants come on standard input."""

import sys

from shoal.process.allocator import keep_freed_memory
from shoal.process.lifetime import die_first_when_memory_runs_out, die_with_parent, end_now, loading


def main() -> None:
    die_with_parent()
    die_first_when_memory_runs_out()
    keep_freed_memory()
    with loading():
        from shoal.worker.trainer.app import run

    end_now(run(sys.stdin.fileno()))


if __name__ == "__main__":
    main()
