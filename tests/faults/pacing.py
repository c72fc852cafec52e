"""Jobs that last as long as their faults need on any machine, and not longer."""

import time
from collections.abc import Mapping
from typing import Any

from shoal.sdk import Client

_SECONDS = 2.0  # of training that are timed
_PATIENCE = 60.0


def seconds_per_step(client: Client, spec: Mapping[str, Any]) -> float:
    """Of this job here and now, measured on one that is cancelled then."""
    endless = {**spec, "training": {**spec["training"], "steps": 10**9}}
    job_id = client.submit(endless).job_id
    try:
        first, began = _step_after(client, job_id, 20), time.monotonic()
        while time.monotonic() < began + _SECONDS:
            last = _step_after(client, job_id, client.get(job_id).step)
        return (time.monotonic() - began) / (last - first)
    finally:
        client.cancel(job_id)


def _step_after(client: Client, job_id: str, step: int) -> int:
    """The first one seen beyond `step`."""
    deadline = time.monotonic() + _PATIENCE
    while (seen := client.get(job_id).step) <= step:
        assert time.monotonic() < deadline, f"the job stands still at step {seen}"
        time.sleep(0.01)
    return seen
