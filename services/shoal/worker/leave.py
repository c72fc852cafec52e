"""`python -m shoal.worker.leave`: asks the worker of this host to hand its ranks back, and waits until it has.

A pod's preStop hook. It reads the worker's own settings, so that it finds the worker where that listens.
"""

import sys

from shoal.core.errors import ShoalError
from shoal.process.settings import fail
from shoal.wire.options import open_channel
from shoal.wire.status import raised_from_call
from shoal.wire.v1 import worker_pb2, worker_pb2_grpc
from shoal.worker.settings import WorkerSettings

_MARGIN_SECONDS = 2.0  # the call's deadline beyond the wait
_EVERYWHERE = ("0.0.0.0", "::")


def main() -> None:
    """Exits 0 once no job is left, 1 with one line if some are, 2 if the settings or the worker cannot be had."""
    try:
        settings = WorkerSettings.load(sys.argv[1:])
        host = "127.0.0.1" if settings.host in _EVERYWHERE else settings.host
        with open_channel(f"{host}:{settings.port}") as channel, raised_from_call():
            answer = worker_pb2_grpc.WorkerServiceStub(channel).Leave(
                worker_pb2.LeaveRequest(wait_seconds=settings.leave_seconds),
                timeout=settings.leave_seconds + _MARGIN_SECONDS,
            )
    except ShoalError as error:
        fail(error)
    sys.stdout.write(answer.message + "\n")
    sys.exit(0 if answer.success else 1)


if __name__ == "__main__":
    main()
