"""When may a push be applied? Pure decisions, one file per mode; no tensors, no locks, no clock.

The shard asks, then acts. Every answer carries its reason.
"""
