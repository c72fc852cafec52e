"""Which job gets which workers: pure decisions (`scheduler.py`, `spread.py`), and the grants that come of them."""
