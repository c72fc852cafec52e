"""The trainer: one process for one job on one worker. pull, forward and backward, push.

It holds nothing durable. Everything it computes is a pure function of (spec, dataset, version, rank).
"""
