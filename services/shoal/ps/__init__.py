"""The parameter server role: one process, one shard of each of its jobs.

It owns weights, optimizer state, versions and the blocks received. Whether a push counts is decided in `consistency`,
how it is applied in `optim`; how bytes move is `wire.exchange`'s affair.
"""
