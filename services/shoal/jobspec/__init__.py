"""What users write: the job spec, its JSON schema, and its validation with errors that name the field.

The spec is assembled from the catalogs of `models`, `optim` and `data`; nothing here imports torch, so that the
master and the CLI can validate.
"""
