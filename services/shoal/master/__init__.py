"""The master: the only writer of job state. Durable store first, then act.

`app.py` builds everything; open it first. `jobs.py` is what users ask, and `servicers/` only converts between messages
and calls. Below them, each importing only those that follow: `coordination/` acts upon who comes and goes,
`lifecycle/` is an attempt's life, `clients/` the calls to other roles, `membership/` knows who is there, `scheduling/`
decides and does nothing, and `store/` keeps what must not be forgotten.

No torch, no tensors, and nothing of the other roles in here.
"""
