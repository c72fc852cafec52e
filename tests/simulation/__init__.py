"""The whole cluster in one thread, under virtual time: the real programs, with faults that a seed decides.

Real: the master, the workers' agents, the trainers' loops and the parameter servers, built by their own `app.py`, and
the job store. Not real, and owned here: time, the network, processes, chance, and the model's arithmetic, which is a
ledger: what a unit contributes is a 1 in a place of its own, so that a shard's weights say what has been counted.

`python -m tests.simulation --seeds N` (or `make simulate SEEDS=N`) runs many; the same seed is the same history.
"""
