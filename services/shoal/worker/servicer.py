"""gRPC in front of the agent: what the master (or anybody) asks of a worker."""

import asyncio
import math
from collections.abc import Coroutine
from typing import Any, TypeAlias, TypeVar

import grpc

from shoal.core.errors import Exhausted, InvalidInput, NotFound, Stale
from shoal.core.job import Grant
from shoal.wire.convert import capabilities_to_proto, grant_from_proto, load_to_proto, progress_to_proto
from shoal.wire.status import answered_async
from shoal.wire.v1 import worker_pb2, worker_pb2_grpc
from shoal.worker.agent import Agent

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
T = TypeVar("T")


class WorkerServicer(worker_pb2_grpc.WorkerServiceServicer):
    def __init__(self, *, agent: Agent) -> None:
        self._agent = agent
        self._at_work: set[asyncio.Task[Any]] = set()

    async def StartTraining(
        self, request: worker_pb2.StartTrainingRequest, context: _Context
    ) -> worker_pb2.StartTrainingResponse:
        async with answered_async(context):
            self._agent.epochs.check(request.master_epoch)
            if not request.HasField("grant"):
                raise InvalidInput(
                    "a worker trains by a grant (ranks, shards, attempt): submit the job to the master", field="grant"
                )
            return await self._whole(self._start(grant_from_proto(request.grant)))
        raise AssertionError("abort raises")

    async def StopTraining(
        self, request: worker_pb2.StopTrainingRequest, context: _Context
    ) -> worker_pb2.StopTrainingResponse:
        async with answered_async(context):
            self._agent.epochs.check(request.master_epoch)
            return await self._whole(self._stop(request.job_id, request.attempt))
        raise AssertionError("abort raises")

    async def Leave(self, request: worker_pb2.LeaveRequest, context: _Context) -> worker_pb2.LeaveResponse:
        async with answered_async(context):
            if not 0 <= request.wait_seconds < math.inf:
                raise InvalidInput(f"wait_seconds {request.wait_seconds} is not a time to wait", field="wait_seconds")
            job_ids = await self._agent.leave(wait_seconds=request.wait_seconds)
            return worker_pb2.LeaveResponse(
                success=not job_ids,
                message=f"still here: {', '.join(job_ids)}" if job_ids else "no job is left here",
                job_ids=job_ids,
            )
        raise AssertionError("abort raises")

    async def GetStatus(self, request: worker_pb2.GetStatusRequest, context: _Context) -> worker_pb2.GetStatusResponse:
        async with answered_async(context):
            agent = self._agent
            agent.epochs.check(request.master_epoch)
            known = request.worker_id in ("", agent.worker_id)
            return worker_pb2.GetStatusResponse(
                success=known,
                message="" if known else f"this is worker '{agent.worker_id}', not '{request.worker_id}'",
                status=load_to_proto(agent.load()),
                capabilities=capabilities_to_proto(agent.capabilities),
                jobs=[progress_to_proto(progress) for progress in agent.progress()],
                incarnation=agent.incarnation,
            )
        raise AssertionError("abort raises")

    async def _start(self, grant: Grant) -> worker_pb2.StartTrainingResponse:
        try:
            message = await self._agent.start(grant)
        except (Stale, Exhausted) as error:
            return worker_pb2.StartTrainingResponse(success=False, message=str(error))
        return worker_pb2.StartTrainingResponse(success=True, message=message)

    async def _stop(self, job_id: str, attempt: int) -> worker_pb2.StopTrainingResponse:
        try:
            await self._agent.stop(job_id, attempt)
        except (NotFound, Stale) as error:
            return worker_pb2.StopTrainingResponse(success=False, message=str(error))
        return worker_pb2.StopTrainingResponse(success=True, message="stopped")

    async def _whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Goes on when the caller has no more patience: a trainer that is half started or stopped would be nobody's."""
        task = asyncio.create_task(work)
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)
        return await asyncio.shield(task)
