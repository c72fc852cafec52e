"""What is trained: the catalog of model families, one file per family.

A family's file holds its config (a pydantic model, so that the master can validate it without torch) and `build`,
which imports torch when called. Nothing here knows about workers, shards or data sources.
"""
