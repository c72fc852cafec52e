"""What is trained: the catalog of model families, one file per family, and what is done with any model.

A family's file holds its config (a pydantic model, so that the master can validate it without torch) whose `build`
imports torch when called. `folder.py` is numpy only; `state.py` and `evaluation.py` are for roles that import torch.
Nothing here knows about workers, shards or data sources.
"""
