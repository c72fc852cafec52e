"""JobService: what users ask."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from shoal.core.errors import InvalidInput
from shoal.master.bound import Bound
from shoal.master.jobs import Jobs, ModelFile, ModelHead
from shoal.master.membership.members import Members, Role
from shoal.master.messages import job_message, log_message, server_message, snapshot_messages, worker_message
from shoal.master.scheduling.grants import GrantBook
from shoal.master.shield import to_the_end
from shoal.wire.status import answered_async
from shoal.wire.v1 import jobs_pb2, jobs_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
_KEY_CHARACTERS = 256


class JobServicer(jobs_pb2_grpc.JobServiceServicer):
    def __init__(self, *, jobs: Jobs, members: Members, grants: GrantBook, streams: Bound) -> None:
        self._streams = streams
        self._jobs = jobs
        self._members = members
        self._grants = grants

    async def Submit(self, request: jobs_pb2.SubmitRequest, context: Context) -> jobs_pb2.SubmitResponse:
        async with answered_async(context):
            if len(request.idempotency_key) > _KEY_CHARACTERS:
                raise InvalidInput(
                    f"idempotency_key is longer than {_KEY_CHARACTERS} characters", field="idempotency_key"
                )
            submission = await to_the_end(self._jobs.submit(request.spec_json, idempotency_key=request.idempotency_key))
            return jobs_pb2.SubmitResponse(job_id=submission.job.job_id, created=submission.created)

    async def Validate(self, request: jobs_pb2.ValidateRequest, context: Context) -> jobs_pb2.ValidateResponse:
        async with answered_async(context):
            spec = self._jobs.resolve(request.spec_json)
            return jobs_pb2.ValidateResponse(resolved_spec_json=spec.model_dump_json())

    async def Get(self, request: jobs_pb2.GetRequest, context: Context) -> jobs_pb2.Job:
        async with answered_async(context):
            return job_message(await self._jobs.get(request.job_id, with_losses=request.with_losses))

    async def List(self, request: jobs_pb2.ListRequest, context: Context) -> jobs_pb2.ListResponse:
        async with answered_async(context):
            views = await self._jobs.list(phases=request.phases, limit=request.limit)
            return jobs_pb2.ListResponse(jobs=[job_message(view) for view in views])

    async def Watch(self, request: jobs_pb2.WatchRequest, context: Context) -> AsyncIterator[jobs_pb2.Job]:
        async with answered_async(context), self._streams.one(), aclosing(self._jobs.watch(request.job_id)) as views:
            async for view in views:
                yield job_message(view)

    async def Cancel(self, request: jobs_pb2.CancelRequest, context: Context) -> jobs_pb2.CancelResponse:
        async with answered_async(context):
            cancellation = await to_the_end(self._jobs.cancel(request.job_id))
            return jobs_pb2.CancelResponse(phase=cancellation.phase.value, message=cancellation.message)

    async def Pause(self, request: jobs_pb2.PauseRequest, context: Context) -> jobs_pb2.PauseResponse:
        async with answered_async(context):
            job = await to_the_end(self._jobs.pause(request.job_id))
            return jobs_pb2.PauseResponse(phase=job.phase.value)

    async def Resume(self, request: jobs_pb2.ResumeRequest, context: Context) -> jobs_pb2.ResumeResponse:
        async with answered_async(context):
            from_step = request.from_step if request.HasField("from_step") else None
            job = await to_the_end(self._jobs.resume(request.job_id, from_step=from_step))
            return jobs_pb2.ResumeResponse(phase=job.phase.value)

    async def ListSnapshots(
        self, request: jobs_pb2.ListSnapshotsRequest, context: Context
    ) -> jobs_pb2.ListSnapshotsResponse:
        async with answered_async(context):
            manifests = await self._jobs.snapshots(request.job_id)
            return jobs_pb2.ListSnapshotsResponse(snapshots=snapshot_messages(manifests))

    async def Logs(self, request: jobs_pb2.LogsRequest, context: Context) -> AsyncIterator[jobs_pb2.LogsResponse]:
        lines = self._jobs.logs(request.job_id, after=request.after, follow=request.follow)
        async with answered_async(context), self._streams.one(), aclosing(lines):
            async for line in lines:
                yield log_message(line)

    async def ListWorkers(
        self, _request: jobs_pb2.ListWorkersRequest, context: Context
    ) -> jobs_pb2.ListWorkersResponse:
        async with answered_async(context):
            return jobs_pb2.ListWorkersResponse(
                workers=[
                    worker_message(
                        member,
                        job_ids=self._grants.jobs_of(member.member_id),
                        seconds_since_heard=self._members.seconds_since_heard(member),
                    )
                    for member in self._members.of(Role.WORKER)
                    if member.known
                ]
            )

    async def ListParameterServers(
        self, _request: jobs_pb2.ListParameterServersRequest, context: Context
    ) -> jobs_pb2.ListParameterServersResponse:
        async with answered_async(context):
            return jobs_pb2.ListParameterServersResponse(
                servers=[
                    server_message(
                        member,
                        job_ids=self._jobs.job_ids_of_server(member.member_id),
                        seconds_since_heard=self._members.seconds_since_heard(member),
                    )
                    for member in self._members.of(Role.PARAMETER_SERVER)
                    if member.known
                ]
            )

    async def Download(
        self, request: jobs_pb2.DownloadRequest, context: Context
    ) -> AsyncIterator[jobs_pb2.DownloadResponse]:
        parts = self._jobs.download(request.job_id, file_name=request.file_name, offset=request.offset)
        async with answered_async(context), self._streams.one(), aclosing(parts):
            async for part in parts:
                match part:
                    case ModelHead():
                        yield jobs_pb2.DownloadResponse(
                            config_json=part.config_json, weights_sha256=part.weights_sha256
                        )
                    case ModelFile():
                        yield jobs_pb2.DownloadResponse(
                            file=jobs_pb2.ShardFile(
                                shard_index=part.file.shard_index,
                                file_name=part.file.file_name,
                                size=part.file.size,
                                sha256=part.file.sha256,
                            ),
                            offset=part.offset,
                        )
                    case bytes():
                        yield jobs_pb2.DownloadResponse(data=part)
