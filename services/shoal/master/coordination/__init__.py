"""Who comes and goes, and what that means for jobs.

`coordinator.py` is the loop that applies the scheduler's decisions. A member comes in by `registration.py`; one that is
lost is cut off (`fences.py`) and told of to the jobs that it served (`incidents.py`, `pods.py`).
"""
