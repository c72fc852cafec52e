"""The Python SDK: what a program asks of a master, with frozen dataclasses for answers.

    from shoal.sdk import Client

    with Client("127.0.0.1:7070") as client:
        submitted = client.submit("job.yaml")
        job = client.wait(submitted.job_id)
        client.download(job.job_id, "model")

No messages of the wire in what it returns, no torch, no knowledge of the roles' code: only their network interface.
`download` alone needs numpy and safetensors, the extra shoal[download]. The command line is written with it; contexts,
the names under which people remember masters, are in `shoal.sdk.contexts`.
"""

from shoal.sdk.client import Client, Submitted
from shoal.sdk.views import (
    Evaluation,
    JobView,
    LogLine,
    ParameterServerView,
    SavedModel,
    SnapshotFileView,
    SnapshotView,
    WorkerShare,
    WorkerView,
)

__all__ = [
    "Client",
    "Evaluation",
    "JobView",
    "LogLine",
    "ParameterServerView",
    "SavedModel",
    "SnapshotFileView",
    "SnapshotView",
    "Submitted",
    "WorkerShare",
    "WorkerView",
]
