"""MasterService: what workers and parameter servers ask."""

import asyncio
import math
from collections.abc import Callable
from typing import Any

import grpc

from shoal.core.errors import InvalidInput, NotFound
from shoal.master.coordination.incidents import Incidents
from shoal.master.coordination.registration import Registrar
from shoal.master.jobs import Jobs
from shoal.master.lifecycle.completion import Completion, Completions
from shoal.master.membership.members import NOT_RECOGNIZED, Member, Members, Role
from shoal.master.membership.polls import Polls
from shoal.master.messages import application_of, grant_message
from shoal.master.settings import MasterSettings
from shoal.master.shield import to_the_end
from shoal.master.store.base import LogLine
from shoal.metrics.master import MasterMetrics
from shoal.process.logs import get_logger
from shoal.wire.convert import failure_from_proto, load_from_proto, progress_from_proto, results_from_proto
from shoal.wire.status import answered_async
from shoal.wire.v1 import master_pb2, master_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
_MARGIN_SECONDS = 0.2  # a held call is answered this much before its deadline


class MasterServicer(master_pb2_grpc.MasterServiceServicer):
    def __init__(
        self,
        *,
        members: Members,
        registrar: Registrar,
        completions: Completions,
        jobs: Jobs,
        polls: Polls,
        incidents: Incidents,
        metrics: MasterMetrics,
        settings: MasterSettings,
        epoch: int,
        kick: Callable[[], None],
    ) -> None:
        self._members = members
        self._registrar = registrar
        self._completions = completions
        self._jobs = jobs
        self._polls = polls
        self._incidents = incidents
        self._metrics = metrics
        self._settings = settings
        self._epoch = epoch
        self._kick = kick
        self._log = get_logger()

    async def RegisterWorker(
        self, request: master_pb2.RegisterWorkerRequest, context: Context
    ) -> master_pb2.RegisterWorkerResponse:
        async with answered_async(context):
            registration = await self._registrar.register(
                application_of(request), held=tuple(held.job_id for held in request.held)
            )
            return master_pb2.RegisterWorkerResponse(
                success=True,
                message=registration.message,
                assigned_worker_id=registration.member.member_id,
                lease_seconds=self._settings.lease_seconds,
                heartbeat_seconds=self._settings.heartbeat_seconds,
                master_epoch=self._epoch,
            )

    async def SendHeartbeat(
        self, request: master_pb2.SendHeartbeatRequest, context: Context
    ) -> master_pb2.SendHeartbeatResponse:
        async with answered_async(context):
            member = self._members.heard(
                request.worker_id,
                request.incarnation,
                load=load_from_proto(request.status) if request.HasField("status") else None,
                progress=tuple(progress_from_proto(entry) for entry in request.progress),
            )
            if member is not None and request.presence != master_pb2.PRESENCE_UNSPECIFIED:
                member = self._departs(request)
            if member is None:
                self._metrics.heartbeats.labels(outcome="unknown").inc()
                return master_pb2.SendHeartbeatResponse(success=False, message=NOT_RECOGNIZED, master_epoch=self._epoch)
            self._metrics.heartbeats.labels(outcome="recognized").inc()
            await self._incidents.progress(member)
            if member.role is Role.WORKER and member.load is not None:
                self._metrics.worker_cpu.labels(worker=member.member_id).set(member.load.cpu_percent / 100)
                self._metrics.worker_memory.labels(worker=member.member_id).set(member.load.memory_percent / 100)
                self._metrics.worker_jobs.labels(worker=member.member_id).set(member.load.current_jobs)
            return master_pb2.SendHeartbeatResponse(success=True, message="", master_epoch=self._epoch)

    def _departs(self, request: master_pb2.SendHeartbeatRequest) -> Member | None:
        depart = self._members.left if request.presence == master_pb2.PRESENCE_LEFT else self._members.leaves
        self._log.info("member_departs", member_id=request.worker_id, left=depart == self._members.left)
        self._kick()
        return depart(request.worker_id, request.incarnation)

    async def RequestJob(
        self, request: master_pb2.RequestJobRequest, context: Context
    ) -> master_pb2.RequestJobResponse:
        async with answered_async(context):
            if not request.wait_seconds >= 0 or math.isinf(request.wait_seconds):
                raise InvalidInput(f"wait_seconds {request.wait_seconds} is not a time to wait", field="wait_seconds")
            seconds = min(request.wait_seconds, self._settings.longest_poll_seconds)
            remaining = context.time_remaining()
            if remaining is not None:
                seconds = min(seconds, max(0.0, remaining - _MARGIN_SECONDS))
            if self._members.heard(request.worker_id, request.incarnation) is None:
                return master_pb2.RequestJobResponse(assigned=False, message=NOT_RECOGNIZED, master_epoch=self._epoch)
            try:
                if not request.incarnation and not request.known_revision:
                    return await self._one_job(request.worker_id, seconds)
                return await self._all_grants(request, seconds)
            except asyncio.CancelledError:  # the caller's connection broke, or it gave up
                self._polls.broke(request.worker_id, request.incarnation)
                self._kick()
                raise

    async def _all_grants(self, request: master_pb2.RequestJobRequest, seconds: float) -> master_pb2.RequestJobResponse:
        assignments = await self._polls.wait(
            request.worker_id, request.incarnation, known_revision=request.known_revision, seconds=seconds
        )
        grants = [grant_message(grant) for grant in assignments.grants]
        return master_pb2.RequestJobResponse(
            assigned=bool(grants),
            job_id=grants[0].job_id if grants else "",
            parameters=grants[0].parameters if grants else None,
            message="" if grants else "no job to do now",
            revision=assignments.revision,
            grants=grants,
            master_epoch=self._epoch,
        )

    async def _one_job(self, worker_id: str, seconds: float) -> master_pb2.RequestJobResponse:
        handed = await self._polls.take_one(worker_id, seconds=seconds)
        if handed.grant is None:
            return master_pb2.RequestJobResponse(
                assigned=False,
                message="no job to do now",
                revision=handed.assignments.revision,
                master_epoch=self._epoch,
            )
        message = grant_message(handed.grant)
        return master_pb2.RequestJobResponse(
            assigned=True,
            job_id=message.job_id,
            parameters=message.parameters,
            message="",
            revision=handed.assignments.revision,
            grants=[grant_message(grant) for grant in handed.assignments.grants],
            master_epoch=self._epoch,
        )

    async def CompleteJob(
        self, request: master_pb2.CompleteJobRequest, context: Context
    ) -> master_pb2.CompleteJobResponse:
        async with answered_async(context):
            if not request.HasField("results"):
                raise InvalidInput("results are missing", field="results")
            report = Completion(
                job_id=request.job_id,
                worker_id=request.worker_id,
                incarnation=request.incarnation,
                attempt=request.attempt,
                results=results_from_proto(request.results),
                failure=failure_from_proto(request.failure),
            )
            answer = await to_the_end(self._completions.complete(report))
            self._log.info(
                "completion_reported",
                job_id=request.job_id,
                worker_id=request.worker_id,
                attempt=request.attempt,
                success=request.results.success,
                accepted=answer.accepted,
                detail=answer.message,
            )
            return master_pb2.CompleteJobResponse(success=answer.accepted, message=answer.message)

    async def ReportLogs(
        self, request: master_pb2.ReportLogsRequest, context: Context
    ) -> master_pb2.ReportLogsResponse:
        async with answered_async(context):
            if self._members.recognized(request.worker_id, request.incarnation) is None:
                return master_pb2.ReportLogsResponse(success=False, message=NOT_RECOGNIZED)
            lines = [
                LogLine(at=line.unix_seconds, worker_id=line.worker_id or request.worker_id, text=line.text)
                for line in request.lines
            ]
            try:
                await self._jobs.report_logs(request.job_id, lines)
            except NotFound as error:
                return master_pb2.ReportLogsResponse(success=False, message=str(error))
            return master_pb2.ReportLogsResponse(success=True, message="")
