"""A JobService that plays a script: a real gRPC server on a free port, without anything behind it.

A fake, because the SDK's duty is what it does when the master is away, slow, or cut off in the middle of a stream, and
a real master does none of that on command. The real one is met in tests/integration/cli.
"""

import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NoReturn, Self

import grpc

from shoal.core.errors import Exhausted, NotFound
from shoal.jobspec.reading import parse_spec
from shoal.wire.options import server_options
from shoal.wire.status import answered
from shoal.wire.v1 import jobs_pb2, jobs_pb2_grpc, master_pb2


def job(job_id: str, phase: str, step: int = 0, **fields: Any) -> jobs_pb2.Job:
    return jobs_pb2.Job(job_id=job_id, name="digits", phase=phase, step=step, total_steps=10, loss=0.5, **fields)


@dataclass
class Script:
    """What the fake does."""

    watch: list[jobs_pb2.Job] = field(default_factory=list)  # the job's states in order
    logs: list[str] = field(default_factory=list)
    download: list[jobs_pb2.DownloadResponse] = field(default_factory=list)
    offset_error: int = 0  # a download goes on so many bytes behind where it should
    cut_streams_after: int | None = None  # messages of one stream before its connection breaks
    unavailable_calls: int = 0  # the next so many calls take effect, but their answer is lost
    turned_away: list[float] = field(default_factory=list)  # the next submits: when to come again; 0: it does not say
    hold_watch: bool = False  # a watch says nothing once its states are told


class FakeMaster(jobs_pb2_grpc.JobServiceServicer):
    def __init__(self, script: Script) -> None:
        self.script = script
        self.calls: dict[str, int] = defaultdict(int)
        self.submitted: dict[str, str] = {}  # idempotency key -> job id
        self.positions: list[tuple[str, int]] = []  # where downloads were asked to begin
        self._told = 0
        self._ending = threading.Event()
        self.port = 0
        self._server: grpc.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._server = grpc.server(ThreadPoolExecutor(8), options=server_options())
        jobs_pb2_grpc.add_JobServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        assert self._server is not None
        self._server.stop(grace=None).wait()

    def Submit(self, request: jobs_pb2.SubmitRequest, context: grpc.ServicerContext) -> jobs_pb2.SubmitResponse:
        with answered(context):
            if self.script.turned_away:
                self.calls["Submit"] += 1
                raise Exhausted("all are taken", retry_after_seconds=self.script.turned_away.pop(0))
            parse_spec(request.spec_json)
        created = request.idempotency_key not in self.submitted
        job_id = self.submitted.setdefault(request.idempotency_key, f"job-{len(self.submitted) + 1}")
        self._lose_answer("Submit", context)
        return jobs_pb2.SubmitResponse(job_id=job_id, created=created)

    def Get(self, request: jobs_pb2.GetRequest, context: grpc.ServicerContext) -> jobs_pb2.Job:
        self._lose_answer("Get", context)
        with answered(context):
            for state in self.script.watch:
                if state.job_id == request.job_id:
                    return state
            raise NotFound(f"no job '{request.job_id}'")

    def List(self, request: jobs_pb2.ListRequest, context: grpc.ServicerContext) -> jobs_pb2.ListResponse:
        jobs = [state for state in self.script.watch if not request.phases or state.phase in request.phases]
        return jobs_pb2.ListResponse(jobs=jobs)

    def Watch(self, request: jobs_pb2.WatchRequest, context: grpc.ServicerContext) -> Iterator[jobs_pb2.Job]:
        self.calls["Watch"] += 1
        sent = 0
        while self._told < len(self.script.watch):
            if sent == self.script.cut_streams_after:
                _cut(context)
            yield self.script.watch[self._told]
            self._told += 1
            sent += 1
        if self.script.hold_watch:
            self._ending.wait(30)

    def Logs(self, request: jobs_pb2.LogsRequest, context: grpc.ServicerContext) -> Iterator[jobs_pb2.LogsResponse]:
        self.calls["Logs"] += 1
        for sent, number in enumerate(range(request.after + 1, len(self.script.logs) + 1)):
            if sent == self.script.cut_streams_after:
                _cut(context)
            line = master_pb2.LogLine(worker_id="worker-1", text=self.script.logs[number - 1])
            yield jobs_pb2.LogsResponse(sequence=number, line=line)

    def Cancel(self, request: jobs_pb2.CancelRequest, context: grpc.ServicerContext) -> jobs_pb2.CancelResponse:
        return jobs_pb2.CancelResponse(phase="CANCELLED")

    def Resume(self, request: jobs_pb2.ResumeRequest, context: grpc.ServicerContext) -> jobs_pb2.ResumeResponse:
        self.calls[f"Resume {request.job_id} {request.from_step if request.HasField('from_step') else None}"] += 1
        return jobs_pb2.ResumeResponse(phase="PENDING")

    def ListSnapshots(
        self, request: jobs_pb2.ListSnapshotsRequest, context: grpc.ServicerContext
    ) -> jobs_pb2.ListSnapshotsResponse:
        file = jobs_pb2.ShardFile(shard_index=0, server_id="ps-0", file_name="file", size=1_000, sha256="ab")
        newest = jobs_pb2.Snapshot(step=30, attempt=2, unix_seconds=1.0, files=[file], damaged="file: truncated")
        before = jobs_pb2.Snapshot(step=20, attempt=1, unix_seconds=0.0, files=[file, file], current=True)
        return jobs_pb2.ListSnapshotsResponse(snapshots=[newest, before])

    def ListWorkers(
        self, request: jobs_pb2.ListWorkersRequest, context: grpc.ServicerContext
    ) -> jobs_pb2.ListWorkersResponse:
        worker = jobs_pb2.Worker(
            worker_id="worker-1",
            host="127.0.0.1",
            port=7,
            state="alive",
            capabilities=master_pb2.WorkerCapabilities(supported_models=["mlp"], max_concurrent_jobs=2),
            status=master_pb2.WorkerStatus(cpu_load=12.5, memory_usage=40, current_jobs=1),
            job_ids=["job-1"],
        )
        return jobs_pb2.ListWorkersResponse(workers=[worker])

    def ListParameterServers(
        self, request: jobs_pb2.ListParameterServersRequest, context: grpc.ServicerContext
    ) -> jobs_pb2.ListParameterServersResponse:
        server = jobs_pb2.ParameterServer(server_id="ps-1", host="127.0.0.1", port=8, state="alive")
        return jobs_pb2.ListParameterServersResponse(servers=[server])

    def Download(
        self, request: jobs_pb2.DownloadRequest, context: grpc.ServicerContext
    ) -> Iterator[jobs_pb2.DownloadResponse]:
        self.calls["Download"] += 1
        self.positions.append((request.file_name, request.offset))
        for sent, message in enumerate(self._rest_of_download(request.file_name, request.offset)):
            if sent == self.script.cut_streams_after:
                _cut(context)
            yield message

    def _rest_of_download(self, file_name: str, offset: int) -> Iterator[jobs_pb2.DownloadResponse]:
        reached = not file_name
        skip = 0
        for message in self.script.download:
            if message.HasField("file") and message.file.file_name == file_name:
                reached, skip = True, offset
                yield jobs_pb2.DownloadResponse(file=message.file, offset=offset + self.script.offset_error)
            elif message.config_json or message.HasField("file"):
                if reached or message.config_json:
                    yield message
            elif reached:
                data = message.data[skip:]
                skip -= len(message.data) - len(data)
                if data:
                    yield jobs_pb2.DownloadResponse(data=data)

    def _lose_answer(self, call: str, context: grpc.ServicerContext) -> None:
        self.calls[call] += 1
        if self.script.unavailable_calls > 0:
            self.script.unavailable_calls -= 1
            _cut(context)


def _cut(context: grpc.ServicerContext) -> NoReturn:
    """As a connection that breaks: the status without the mark that the master itself has spoken."""
    context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
    raise AssertionError("abort raises")
