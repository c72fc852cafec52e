"""The master's calls to workers: grants pushed to those that can be dialled.

A push only saves time. The worker's own poll hands out the same grant, so a push that fails is not tried again.
"""

from shoal.core.errors import ShoalError
from shoal.core.job import Grant
from shoal.master.clients.shards import Channels
from shoal.master.lead import Lead
from shoal.master.messages import grant_message
from shoal.master.tasks import Tasks
from shoal.process.logs import get_logger
from shoal.wire.options import CONTROL_LIMIT_BYTES
from shoal.wire.v1 import worker_pb2, worker_pb2_grpc


class WorkerClient:
    """Sends in the background, one task per message, each with a deadline."""

    def __init__(self, *, lead: Lead, tasks: Tasks, push_seconds: float) -> None:
        self._lead = lead
        self._tasks = tasks
        self._push_seconds = push_seconds
        self._channels = Channels(limit_bytes=CONTROL_LIMIT_BYTES)
        self._log = get_logger()
        self._sent = 0

    def start_training(self, host: str, port: int, grant: Grant) -> None:
        self._sent += 1
        self._tasks.start(f"push:start:{self._sent}", self._start(host, port, grant))

    def stop_training(self, host: str, port: int, *, job_id: str, attempt: int) -> None:
        self._sent += 1
        self._tasks.start(f"push:stop:{self._sent}", self._stop(host, port, job_id, attempt))

    async def close(self) -> None:
        await self._channels.close()

    async def _start(self, host: str, port: int, grant: Grant) -> None:
        message = grant_message(grant)
        request = worker_pb2.StartTrainingRequest(
            job=worker_pb2.TrainingJob(job_id=grant.job_id, parameters=message.parameters),
            grant=message,
            master_epoch=self._lead.epoch,
        )
        stub = worker_pb2_grpc.WorkerServiceStub(self._channels.to(host, port))
        try:
            with self._lead.asking():
                await stub.StartTraining(request, timeout=self._push_seconds)
        except ShoalError as error:
            self._log.debug("push_failed", call="StartTraining", host=host, port=port, error=str(error))

    async def _stop(self, host: str, port: int, job_id: str, attempt: int) -> None:
        request = worker_pb2.StopTrainingRequest(job_id=job_id, attempt=attempt, master_epoch=self._lead.epoch)
        stub = worker_pb2_grpc.WorkerServiceStub(self._channels.to(host, port))
        try:
            with self._lead.asking():
                await stub.StopTraining(request, timeout=self._push_seconds)
        except ShoalError as error:
            self._log.debug("push_failed", call="StopTraining", host=host, port=port, error=str(error))
