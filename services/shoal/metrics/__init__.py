"""Every metric's name, unit, labels and help, one class per role; the HTTP endpoint; the gRPC interceptors.

Metrics are objects that a role's `app.py` builds over its own registry and passes on: no module-level registry,
no module-level metric. Nothing here measures by itself or knows a role's code.

Label values that come and go (workers, jobs) are removed by their owner when the worker or the job ends.
"""
