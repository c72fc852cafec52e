"""The master: the only writer of job state. Durable store first, then act.

`app.py` builds everything; open it first. Decisions are pure (`scheduler.py`, `spread.py`), `coordinator.py` applies
them. An attempt's life: `beginning.py`, `following.py`, `completion.py`, `endings.py`, over what `live.py` holds in
memory and `store/` must not forget. `members.py` knows who is there, `grants.py` what each worker is to do. `jobs.py`
is what users ask, and `servicers/` only converts between messages and calls.

No torch, no tensors, and nothing of the other roles in here.
"""
