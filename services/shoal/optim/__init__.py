"""Update rules and learning-rate schedules.

The rules are torch.optim's own, by name, with typed hyperparameters (`catalog.py`, no torch, so that the master can
validate); `rules.py` builds them with torch on the shard. Own rules stand here only where torch has none.
"""
