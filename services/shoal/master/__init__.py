"""The master: the only writer of job state. Durable store first, then act.

`app.py` builds everything; open it first. Decisions are pure (`scheduler.py`, `spread.py`), `coordinator.py` applies
them, `attempts.py` is the life of each attempt, `store/` is what must not be forgotten, and `servicers/` only
converts between messages and calls. No torch, no tensors, and nothing of the other roles in here.
"""
