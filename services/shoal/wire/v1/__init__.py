"""Generated from proto/shoal/wire/v1 by `make protos`. Never edited."""
