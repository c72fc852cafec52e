"""How long faults, endings and snapshots hold a job up: `python -m tests.benchmarks.recovery [--runs N] [NAME ...]`."""
