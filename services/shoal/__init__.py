"""Shoal: PyTorch training with sharded parameter servers, whose result does not depend on who was alive."""

__version__ = "0.1.0"
