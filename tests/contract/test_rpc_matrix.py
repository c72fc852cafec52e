"""Every call of every service under every fault of the network, against real servers over real gRPC.

The list of calls is generated from the descriptors: a new one without a row fails here. A cell is a check, or says why
the fault cannot happen. Beside them stands the raw stream of the exchange, over both of its transports.
"""

import asyncio
import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from shoal.core.errors import (
    DeadlineExceeded,
    Deposed,
    FencedOff,
    InvalidInput,
    NotFound,
    Refused,
    ShoalError,
    Stale,
    Unavailable,
)
from shoal.core.job import Capabilities
from shoal.metrics.registry import new_registry
from shoal.metrics.worker import WorkerMetrics
from shoal.wire.convert import facts_to_proto
from shoal.wire.options import UNARY_LIMIT_BYTES, open_aio_channel, open_channel
from shoal.wire.status import raised_from_call
from shoal.wire.v1 import (
    jobs_pb2,
    master_pb2,
    master_pb2_grpc,
    parameter_server_pb2,
    shard_pb2,
    worker_pb2,
    worker_pb2_grpc,
)
from shoal.worker.agent import Agent
from shoal.worker.servicer import WorkerServicer
from shoal.worker.trainers import WarmTrainers
from tests.integration.master.conftest import begin, eventually, running, settings_of
from tests.integration.master.fake_shards import FakeShard
from tests.shards import FACTS, running_shards, spec_of
from tests.unit.worker.answering_master import AnsweringMaster

FAULTS = (
    "request lost",
    "reply lost",
    "twice",
    "late",
    "stale attempt",
    "stale incarnation",
    "unknown ids",
)
MODULES = (master_pb2, worker_pb2, parameter_server_pb2, shard_pb2, jobs_pb2)
SECONDS = 20.0
LONG_SECONDS = 100.0
LOST_SECONDS = 0.3  # for which a client waits for an answer that cannot come


class World:
    """A real server, something that runs on it, and what of it a call may change."""

    job_id = "job"

    def __init__(self, address: str, stack: contextlib.ExitStack) -> None:
        self.channel = stack.enter_context(open_channel(address, limit_bytes=UNARY_LIMIT_BYTES))
        self.extra: dict[str, Any] = {}

    def state(self) -> object:
        raise NotImplementedError

    def call(self, method: Any, request: Any) -> Any:
        """The answer, or the messages of a stream: the first few of one that does not end. Raises as a client does."""
        path = f"/{method.containing_service.full_name}/{method.name}"
        to_bytes, from_bytes = type(request).SerializeToString, _class_of(method.output_type).FromString
        with raised_from_call():
            if not method.server_streaming:
                return self.channel.unary_unary(path, to_bytes, from_bytes)(request, timeout=SECONDS)
            stream = self.channel.unary_stream(path, to_bytes, from_bytes)(request, timeout=SECONDS)
            messages = list(itertools.islice(stream, 1 if method.name == "Watch" else 100))
            stream.cancel()
            return messages

    def lose(self, port: int, method: Any, request: Any) -> None:
        """The same call into a network that swallows it."""
        path = f"/{method.containing_service.full_name}/{method.name}"
        with open_channel(f"127.0.0.1:{port}") as channel, raised_from_call():
            if method.server_streaming:
                list(channel.unary_stream(path, type(request).SerializeToString)(request, timeout=LOST_SECONDS))
            else:
                channel.unary_unary(path, type(request).SerializeToString)(request, timeout=LOST_SECONDS)


def _class_of(descriptor: Any) -> Any:
    (found,) = [getattr(module, descriptor.name) for module in MODULES if module.DESCRIPTOR is descriptor.file]
    return found


@dataclass(frozen=True, kw_only=True)
class Impossible:
    why: str


@dataclass(frozen=True, kw_only=True)
class Check:
    """Prepares the world, then makes a call, which must fail so or be answered so, and changes nothing."""

    request: Callable[[World], Any]
    before: Callable[[World], object] = lambda _: None
    error: type[ShoalError] | None = None
    answer: Callable[[Any], bool] = lambda _: True
    changes: bool = False  # it takes effect all the same: see the row


Cell = Impossible | Check


@dataclass(frozen=True, kw_only=True)
class Row:
    world: Callable[[Path, contextlib.ExitStack], World]
    request: Callable[[World], Any]
    changes: bool  # does the call change something?
    cells: dict[str, Cell]
    again: Callable[[Any], bool] = lambda _: True  # is this an answer to the same request for the second time?
    at_least_once: str = ""  # why a repetition may show
    before: Callable[[World], object] = lambda _: None  # so that the call has something to do


NO_ATTEMPT = Impossible(why="the request names no attempt")
NO_INCARNATION = Impossible(why="the caller is a user or the master, who have no incarnation; the master has its epoch")
READS = Impossible(why="it reads, so a late one reads what is there then; that is what `request lost`, `twice` check")


# -- the master --------------------------------------------------------------------------------------------------------


class MasterWorld(World):
    """A job in its second attempt on worker-1, whose name another incarnation, 'before', had."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.master = stack.enter_context(running(settings_of(folder)))
        super().__init__(f"127.0.0.1:{self.master.port}", stack)
        self.shard = FakeShard("ps-0")
        stack.callback(self.shard.kill)
        self.master.register(incarnation="before")
        self.master.heartbeat(incarnation="before", presence=master_pb2.PRESENCE_LEFT)
        self.job_id = begin(self.master, self.shard)
        self.master.complete(self.job_id, success=False, errors=["the first attempt fails"])
        self.master.phase_is(self.job_id, "STARTING", attempt=2)
        eventually(lambda: [grant.attempt for grant in self.master.poll().grants] == [2])

    def state(self) -> object:
        jobs = self.master.jobs.List(jobs_pb2.ListRequest(), timeout=SECONDS).jobs
        workers = self.master.jobs.ListWorkers(jobs_pb2.ListWorkersRequest(), timeout=SECONDS).workers
        lines = list(self.master.jobs.Logs(jobs_pb2.LogsRequest(job_id=self.job_id), timeout=SECONDS))
        return (
            sorted((job.job_id, job.phase, job.attempt, job.HasField("results"), job.paused) for job in jobs),
            sorted((worker.worker_id, worker.state) for worker in workers),
            len(lines),
            {job_id: share.attempt for job_id, share in self.shard.shares.items()},
        )

    def succeed(self) -> None:
        self.shard.commit(self.job_id, steps=3)
        self.master.complete(self.job_id, attempt=2, weights_sha256="ab")
        self.master.phase_is(self.job_id, "SUCCEEDED")


ME = {"worker_id": "worker-1", "incarnation": "of-worker-1"}
DEAD = {"worker_id": "worker-1", "incarnation": "before"}
NOBODY = {"worker_id": "nobody", "incarnation": "none"}


def registration(incarnation: str, worker_id: str = "worker-2") -> Any:
    capabilities = master_pb2.WorkerCapabilities(supported_models=["mlp"], max_concurrent_jobs=1)
    return master_pb2.RegisterWorkerRequest(worker_id=worker_id, incarnation=incarnation, capabilities=capabilities)


def completion(world: World, *, attempt: int = 2, job_id: str = "", **who: str) -> Any:
    results = master_pb2.JobResults(success=True, accuracy=0.5, weights_sha256="ab")
    return master_pb2.CompleteJobRequest(job_id=job_id or world.job_id, attempt=attempt, results=results, **(who or ME))


def lines(world: World, *, job_id: str = "", **who: str) -> Any:
    line = master_pb2.LogLine(unix_seconds=1.0, text="a line")
    return master_pb2.ReportLogsRequest(job_id=job_id or world.job_id, attempt=2, lines=[line], **(who or ME))


def refused_answer(answer: Any) -> bool:
    return not answer.success and bool(answer.message)


def of_job(kind: Any, **fields: Any) -> Callable[[World], Any]:
    return lambda world: kind(job_id=world.job_id, **fields)


def unknown_job(kind: Any, **fields: Any) -> Check:
    return Check(request=lambda _: kind(job_id="no-such-job", **fields), error=NotFound)


def reading(kind: Any, unknown: Cell, *, names_job: bool = True, before: Any = lambda _: None) -> Row:
    """A call of JobService that changes nothing."""
    return Row(
        world=MasterWorld,
        request=of_job(kind) if names_job else lambda _: kind(),
        changes=False,
        before=before,
        cells={
            "late": READS,
            "stale attempt": NO_ATTEMPT,
            "stale incarnation": NO_INCARNATION,
            "unknown ids": unknown,
        },
    )


NO_IDS = Impossible(why="the request names nothing")
ANOTHER_SPEC = "{model: {type: mlp}, name: another}"

MASTER_ROWS = {
    "MasterService.RegisterWorker": Row(
        world=MasterWorld,
        request=lambda _: registration("newcomer"),
        changes=True,
        again=lambda answer: answer.success and answer.assigned_worker_id == "worker-2",
        cells={
            "late": Check(  # of a process that has left and whose name its successor has: nobody would answer for it
                request=lambda _: registration("before", "worker-1"),
                error=FencedOff,
            ),
            "stale attempt": Impossible(why="the attempts that it says it holds are only told, and not acted on"),
            "stale incarnation": Check(
                before=lambda world: (
                    world.master.heartbeat(presence=master_pb2.PRESENCE_LEFT),
                    eventually(lambda: "'worker-1', 'lost'" in str(world.state())),
                ),
                request=lambda _: registration("of-worker-1", "worker-1"),
                error=FencedOff,
            ),
            "unknown ids": Check(request=lambda _: registration("x", "no such\nname"), error=InvalidInput),
        },
    ),
    "MasterService.SendHeartbeat": Row(
        world=MasterWorld,
        request=lambda _: master_pb2.SendHeartbeatRequest(presence=master_pb2.PRESENCE_LEAVING, **ME),
        changes=True,
        again=lambda answer: answer.success,
        cells={
            "late": Check(  # one that was under way when its sender said that it leaves
                before=lambda world: world.master.heartbeat(presence=master_pb2.PRESENCE_LEAVING),
                request=lambda _: master_pb2.SendHeartbeatRequest(**ME),
                answer=lambda answer: answer.success,
            ),
            "stale attempt": Check(
                request=lambda world: master_pb2.SendHeartbeatRequest(
                    progress=[master_pb2.JobProgress(job_id=world.job_id, attempt=1, step=99, restarts=9)], **ME
                ),
                answer=lambda answer: answer.success,
            ),
            "stale incarnation": Check(
                request=lambda _: master_pb2.SendHeartbeatRequest(presence=master_pb2.PRESENCE_LEFT, **DEAD),
                answer=refused_answer,
            ),
            "unknown ids": Check(request=lambda _: master_pb2.SendHeartbeatRequest(**NOBODY), answer=refused_answer),
        },
    ),
    "MasterService.RequestJob": Row(
        world=MasterWorld,
        request=lambda _: master_pb2.RequestJobRequest(**ME),
        changes=False,
        again=lambda answer: answer.assigned and answer.grants[0].attempt == 2,
        cells={
            "late": Check(  # with a revision that has been superseded: the newest list comes at once
                request=lambda _: master_pb2.RequestJobRequest(known_revision=1, wait_seconds=10, **ME),
                answer=lambda answer: answer.assigned and answer.revision > 1,
            ),
            "stale attempt": NO_ATTEMPT,
            "stale incarnation": Check(
                request=lambda _: master_pb2.RequestJobRequest(**DEAD),
                answer=lambda answer: not answer.assigned and not answer.grants and bool(answer.message),
            ),
            "unknown ids": Check(
                request=lambda _: master_pb2.RequestJobRequest(**NOBODY),
                answer=lambda answer: not answer.assigned and bool(answer.message),
            ),
        },
    ),
    "MasterService.CompleteJob": Row(
        world=MasterWorld,
        request=completion,
        changes=True,
        again=lambda answer: answer.success and "already" in answer.message,
        cells={
            "late": Check(
                before=lambda world: world.succeed(),
                request=completion,
                answer=lambda answer: answer.success and "nothing changed" in answer.message,
            ),
            "stale attempt": Check(
                request=lambda world: completion(world, attempt=1),
                answer=lambda answer: not answer.success and answer.message.startswith("stale"),
            ),
            "stale incarnation": Check(request=lambda world: completion(world, **DEAD), answer=refused_answer),
            "unknown ids": Check(request=lambda world: completion(world, job_id="no-such-job"), answer=refused_answer),
        },
    ),
    "MasterService.ReportLogs": Row(
        world=MasterWorld,
        request=lines,
        changes=True,
        again=lambda answer: answer.success,
        at_least_once="a line is for people: better twice than not at all",
        cells={
            "late": Check(  # the last words of a job that has ended are kept
                before=lambda world: world.succeed(), request=lines, answer=lambda answer: answer.success, changes=True
            ),
            "stale attempt": Impossible(
                why="what an old attempt's trainer said is worth knowing, and changes no state"
            ),
            "stale incarnation": Check(request=lambda world: lines(world, **DEAD), answer=refused_answer),
            "unknown ids": Check(request=lambda world: lines(world, job_id="no-such-job"), answer=refused_answer),
        },
    ),
    "JobService.Submit": Row(
        world=MasterWorld,
        request=lambda _: jobs_pb2.SubmitRequest(spec_json="model: {type: mlp}", idempotency_key="key"),
        changes=True,
        again=lambda answer: not answer.created,
        cells={
            "late": Check(  # after its own repetition
                before=lambda world: world.master.submit("model: {type: mlp}", key="key"),
                request=lambda _: jobs_pb2.SubmitRequest(spec_json="model: {type: mlp}", idempotency_key="key"),
                answer=lambda answer: not answer.created,
            ),
            "stale attempt": NO_ATTEMPT,
            "stale incarnation": NO_INCARNATION,
            "unknown ids": Check(
                request=lambda _: jobs_pb2.SubmitRequest(spec_json="model: {type: nonsense}"), error=InvalidInput
            ),
        },
    ),
    "JobService.Cancel": Row(
        world=MasterWorld,
        request=of_job(jobs_pb2.CancelRequest),
        changes=True,
        again=lambda answer: "already ended" in answer.message,
        cells={
            "late": Check(
                before=lambda world: world.succeed(),
                request=of_job(jobs_pb2.CancelRequest),
                answer=lambda answer: answer.phase == "SUCCEEDED",
            ),
            "stale attempt": Impossible(why="a user's wish is about the job, whichever its attempt"),
            "stale incarnation": NO_INCARNATION,
            "unknown ids": unknown_job(jobs_pb2.CancelRequest),
        },
    ),
    "JobService.Pause": Row(
        world=MasterWorld,
        request=of_job(jobs_pb2.PauseRequest),
        changes=True,
        again=lambda answer: answer.phase == "STARTING",
        cells={
            "late": Check(before=lambda world: world.succeed(), request=of_job(jobs_pb2.PauseRequest), error=Refused),
            "stale attempt": Impossible(why="a user's wish is about the job, whichever its attempt"),
            "stale incarnation": NO_INCARNATION,
            "unknown ids": unknown_job(jobs_pb2.PauseRequest),
        },
    ),
    "JobService.Resume": Row(
        world=MasterWorld,
        before=lambda world: world.master.jobs.Pause(jobs_pb2.PauseRequest(job_id=world.job_id), timeout=SECONDS),
        request=of_job(jobs_pb2.ResumeRequest),
        changes=True,
        again=lambda answer: answer.phase == "STARTING",
        cells={
            "late": Check(
                before=lambda world: world.master.cancel(world.job_id),
                request=of_job(jobs_pb2.ResumeRequest),
                error=Refused,
            ),
            "stale attempt": Impossible(why="a user's wish is about the job, whichever its attempt"),
            "stale incarnation": NO_INCARNATION,
            "unknown ids": unknown_job(jobs_pb2.ResumeRequest),
        },
    ),
    "JobService.Validate": Row(
        world=MasterWorld,
        request=lambda _: jobs_pb2.ValidateRequest(spec_json=ANOTHER_SPEC),
        changes=False,
        cells={
            "late": READS,
            "stale attempt": NO_ATTEMPT,
            "stale incarnation": NO_INCARNATION,
            "unknown ids": Check(
                request=lambda _: jobs_pb2.ValidateRequest(spec_json="model: {type: nonsense}"), error=InvalidInput
            ),
        },
    ),
    "JobService.Get": reading(jobs_pb2.GetRequest, unknown_job(jobs_pb2.GetRequest)),
    "JobService.List": reading(
        jobs_pb2.ListRequest,
        Check(request=lambda _: jobs_pb2.ListRequest(phases=["NONSENSE"]), error=InvalidInput),
        names_job=False,
    ),
    "JobService.ListSnapshots": reading(jobs_pb2.ListSnapshotsRequest, unknown_job(jobs_pb2.ListSnapshotsRequest)),
    "JobService.Watch": reading(jobs_pb2.WatchRequest, unknown_job(jobs_pb2.WatchRequest)),
    "JobService.Logs": reading(jobs_pb2.LogsRequest, unknown_job(jobs_pb2.LogsRequest)),
    "JobService.ListWorkers": reading(jobs_pb2.ListWorkersRequest, NO_IDS, names_job=False),
    "JobService.ListParameterServers": reading(jobs_pb2.ListParameterServersRequest, NO_IDS, names_job=False),
    "JobService.Download": reading(
        jobs_pb2.DownloadRequest, unknown_job(jobs_pb2.DownloadRequest), before=lambda world: world.succeed()
    ),
}


# -- a parameter server ------------------------------------------------------------------------------------------------


class ShardWorld(World):
    """A trained job and an external one, both in their second attempt; the incarnation 'dead' is fenced off."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.shards = stack.enter_context(running_shards(spec_of("grpc"), folder, count=1, attempt=2))
        (self.server,) = self.shards.servers
        super().__init__(f"127.0.0.1:{self.server.port}", stack)
        self.folder = folder
        self.spec_json = self.shards.spec.model_dump_json()
        external = {"model": {"type": "mlp", "hidden": [8], "input_shape": [4], "classes": 2}, "trainers": "external"}
        self.outside = spec_of(**external).model_dump_json()
        self.server.shares.create(job_id="outside", attempt=2, spec_json=self.outside, index=0, shards=1)
        self.server.shares.get("job").register(FACTS)
        for job_id in ("job", "outside"):
            share = self.server.shares.get(job_id)
            share.fence_off(attempt=2, incarnations=["dead"], worker_ids=[])
        (self.layer, *_) = self.server.shares.get("outside").layout.shares[0].slices

    def state(self) -> object:
        shares = [self.server.shares.get(job_id) for job_id in sorted(self.server.shares.job_ids())]
        files = sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())
        return (
            [(share.job_id, share.attempt, share.version, sorted(share._fenced)) for share in shares],
            dict(self.server.shares.get("outside").layer_versions) if len(shares) == 2 else {},
            files,
        )


def trainer(**changes: Any) -> Callable[[World], Any]:
    fields = {
        "worker_id": "w",
        "job_id": "job",
        "incarnation": "living",
        "attempt": 2,
        "dataset": facts_to_proto(FACTS),
    }
    return lambda _: parameter_server_pb2.RegisterWorkerRequest(**fields | changes)


def pushing(**changes: Any) -> Callable[[World], Any]:
    def request(world: World) -> Any:
        fields = {
            "worker_id": "w",
            "job_id": "outside",
            "incarnation": "living",
            "attempt": 2,
            "layer_name": world.layer.layer.name,
            "gradient_data": bytes(4 * world.layer.elements),
            "version": 0,
        }
        return parameter_server_pb2.PushGradientsRequest(**fields | changes)

    return request


def of_layer(kind: Any, **changes: Any) -> Callable[[World], Any]:
    fields = {"worker_id": "w", "job_id": "outside", "incarnation": "living"}
    return lambda world: kind(**{"layer_name": world.layer.layer.name} | fields | changes)


def sharing(**changes: Any) -> Callable[[World], Any]:
    def request(world: World) -> Any:
        fields = {"job_id": "another", "attempt": 1, "spec_json": world.spec_json, "shard_index": 0, "shards": 1}
        return shard_pb2.CreateShareRequest(**fields | changes)

    return request


def plain(kind: Any, **fields: Any) -> Callable[[World], Any]:
    return lambda _: kind(**fields)


def with_snapshot(world: World) -> None:
    request = shard_pb2.SnapshotRequest(job_id="job", attempt=2)
    world.extra["file"] = world.call(method_of("ShardService.Snapshot"), request).file_name


BY_EPOCH = Impossible(why="the master has no incarnation but its epoch: a lower one is refused, as a test below proves")
PULL, VERSION = parameter_server_pb2.PullParametersRequest, parameter_server_pb2.GetParameterVersionRequest

SHARD_ROWS = {
    "ParameterServerService.RegisterWorker": Row(
        world=ShardWorld,
        request=trainer(),
        changes=False,
        again=lambda answer: answer.success,
        cells={
            "late": Check(
                before=lambda world: world.server.shares.drop("job", "the job has ended"),
                request=trainer(),
                error=NotFound,
            ),
            "stale attempt": Check(request=trainer(attempt=1), error=Stale),
            "stale incarnation": Check(request=trainer(incarnation="dead"), error=FencedOff),
            "unknown ids": Check(request=trainer(job_id="no-such-job"), error=NotFound),
        },
    ),
    "ParameterServerService.PushGradients": Row(
        world=ShardWorld,
        request=pushing(),
        changes=True,
        again=lambda answer: not answer.success and answer.new_version == 1,
        cells={
            "late": Check(
                before=lambda world: world.call(method_of("ParameterServerService.PushGradients"), pushing()(world)),
                request=pushing(),
                answer=lambda answer: not answer.success and answer.new_version == 1,
            ),
            "stale attempt": Check(request=pushing(attempt=1), error=Stale),
            "stale incarnation": Check(request=pushing(incarnation="dead"), error=FencedOff),
            "unknown ids": Check(request=pushing(layer_name="no.such.layer"), error=NotFound),
        },
    ),
    "ParameterServerService.PullParameters": Row(
        world=ShardWorld,
        request=of_layer(PULL),
        changes=False,
        again=lambda answer: bool(answer.parameter_data),
        cells={
            "late": READS,
            "stale attempt": NO_ATTEMPT,
            "stale incarnation": Check(request=of_layer(PULL, incarnation="dead"), error=FencedOff),
            "unknown ids": Check(request=of_layer(PULL, job_id="no-such-job"), error=NotFound),
        },
    ),
    "ParameterServerService.GetParameterVersion": Row(
        world=ShardWorld,
        request=of_layer(VERSION),
        changes=False,
        cells={
            "late": READS,
            "stale attempt": NO_ATTEMPT,
            "stale incarnation": Check(request=of_layer(VERSION, incarnation="dead"), error=FencedOff),
            "unknown ids": Check(request=of_layer(VERSION, layer_name="no.such.layer"), error=NotFound),
        },
    ),
    "ShardService.CreateShare": Row(
        world=ShardWorld,
        request=sharing(),
        changes=True,
        again=lambda answer: answer.version == 0,
        cells={
            "late": Check(request=sharing(job_id="job", attempt=1), error=Stale),
            "stale attempt": Check(request=sharing(job_id="job", attempt=1), error=Stale),
            "stale incarnation": BY_EPOCH,
            "unknown ids": Check(request=sharing(spec_json="{}", job_id="x"), error=InvalidInput),
        },
    ),
    "ShardService.GetProgress": Row(
        world=ShardWorld,
        request=plain(shard_pb2.GetProgressRequest, job_id="job"),
        changes=False,
        again=lambda answer: answer.attempt == 2,
        cells={
            "late": READS,
            "stale attempt": NO_ATTEMPT,
            "stale incarnation": BY_EPOCH,
            "unknown ids": unknown_job(shard_pb2.GetProgressRequest),
        },
    ),
    "ShardService.Snapshot": Row(
        world=ShardWorld,
        request=plain(shard_pb2.SnapshotRequest, job_id="job", attempt=2),
        changes=True,
        again=lambda answer: bool(answer.sha256),
        cells={
            "late": Check(
                before=lambda world: world.server.shares.get("job").fence(3),
                request=plain(shard_pb2.SnapshotRequest, job_id="job", attempt=2),
                error=Stale,
            ),
            "stale attempt": Check(request=plain(shard_pb2.SnapshotRequest, job_id="job", attempt=1), error=Stale),
            "stale incarnation": BY_EPOCH,
            "unknown ids": unknown_job(shard_pb2.SnapshotRequest, attempt=2),
        },
    ),
    "ShardService.ReadSnapshot": Row(
        world=ShardWorld,
        before=with_snapshot,
        request=lambda world: shard_pb2.ReadSnapshotRequest(job_id="job", file_name=world.extra["file"]),
        changes=False,
        again=bool,
        cells={
            "late": READS,
            "stale attempt": NO_ATTEMPT,
            "stale incarnation": BY_EPOCH,
            "unknown ids": Check(
                request=plain(shard_pb2.ReadSnapshotRequest, job_id="job", file_name="none"), error=NotFound
            ),
        },
    ),
    "ShardService.ListSnapshots": Row(
        world=ShardWorld,
        before=with_snapshot,
        request=plain(shard_pb2.ListSnapshotsRequest, job_id="job"),
        changes=False,
        again=lambda answer: [entry.job_id for entry in answer.jobs] == ["job"],
        cells={
            "late": READS,
            "stale attempt": NO_ATTEMPT,
            "stale incarnation": BY_EPOCH,
            "unknown ids": Check(
                request=plain(shard_pb2.ListSnapshotsRequest, job_id="no-such-job"),
                answer=lambda answer: not answer.jobs,
            ),
        },
    ),
    "ShardService.DeleteSnapshots": Row(
        world=ShardWorld,
        before=with_snapshot,
        request=lambda world: shard_pb2.DeleteSnapshotsRequest(job_id="job", file_names=[world.extra["file"]]),
        changes=True,
        cells={
            "late": Check(
                before=lambda world: world.call(
                    method_of("ShardService.DeleteSnapshots"),
                    shard_pb2.DeleteSnapshotsRequest(job_id="job", file_names=[world.extra["file"]]),
                ),
                request=lambda world: shard_pb2.DeleteSnapshotsRequest(job_id="job", file_names=[world.extra["file"]]),
            ),
            "stale attempt": Impossible(
                why="a file's name says all; that the current manifest needs it, the master knows"
            ),
            "stale incarnation": BY_EPOCH,
            "unknown ids": Check(
                request=plain(shard_pb2.DeleteSnapshotsRequest, job_id="no-such-job", file_names=["none"])
            ),
        },
    ),
    "ShardService.Fence": Row(
        world=ShardWorld,
        request=plain(shard_pb2.FenceRequest, job_id="job", attempt=2, incarnations=["lost"]),
        changes=True,
        again=lambda answer: answer.sessions == 0,
        cells={
            "late": Check(
                before=lambda world: world.server.shares.get("job").fence(3),
                request=plain(shard_pb2.FenceRequest, job_id="job", attempt=2, incarnations=["lost"]),
                error=Stale,
            ),
            "stale attempt": Check(
                request=plain(shard_pb2.FenceRequest, job_id="job", attempt=1, incarnations=["lost"]), error=Stale
            ),
            "stale incarnation": BY_EPOCH,
            "unknown ids": unknown_job(shard_pb2.FenceRequest, incarnations=["lost"]),
        },
    ),
    "ShardService.DropShare": Row(
        world=ShardWorld,
        request=plain(shard_pb2.DropShareRequest, job_id="job"),
        changes=True,
        again=lambda answer: not answer.existed,
        cells={
            "late": Check(
                before=lambda world: world.server.shares.drop("job", "ended"),
                request=plain(shard_pb2.DropShareRequest, job_id="job"),
                answer=lambda answer: not answer.existed,
            ),
            "stale attempt": Impossible(why="a job's end is for all of its attempts"),
            "stale incarnation": BY_EPOCH,
            "unknown ids": Check(
                request=plain(shard_pb2.DropShareRequest, job_id="no-such-job"),
                answer=lambda answer: not answer.existed,
            ),
        },
    ),
}


# -- a worker ----------------------------------------------------------------------------------------------------------


class WorkerWorld(World):
    """An agent with one job in its second attempt. Its trainer finds no shard, and waits for one."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._master = stack.enter_context(AnsweringMaster())
        self._loop = asyncio.new_event_loop()
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()), name="worker")
        self._thread.start()
        stack.callback(self._close)
        assert self._ready.wait(LONG_SECONDS)
        super().__init__(f"127.0.0.1:{self.port}", stack)
        self.spec_json = spec_of().model_dump_json()
        self._master.grant(granting(attempt=2)(self).grant)
        eventually(lambda: self.agent._jobs, seconds=LONG_SECONDS)

    async def _serve(self) -> None:
        channel = open_aio_channel(self._master.address)
        self.agent = Agent(
            master=master_pb2_grpc.MasterServiceStub(channel),
            worker_id="worker",
            incarnation="living",
            host="127.0.0.1",
            port=1,
            metrics_port=1,
            capabilities=Capabilities(has_gpu=False, supported_models=frozenset({"mlp"}), max_concurrent_jobs=2),
            warm=WarmTrainers(count=0, data_roots=()),
            poll_seconds=20.0,
            trainer_restarts=0,
            hang_seconds=600.0,
            metrics=WorkerMetrics(new_registry()),
        )
        server = grpc.aio.server()
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(WorkerServicer(agent=self.agent), server)
        self.port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        running_agent = asyncio.create_task(self.agent.run())
        self._ready.set()
        await self._stop.wait()
        running_agent.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running_agent
        await self.agent.close()
        await channel.close()
        await server.stop(0)

    def _close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    def state(self) -> object:
        jobs = {job_id: job.grant for job_id, job in self.agent._jobs.items()}
        return ({job_id: (grant.attempt, grant.ranks) for job_id, grant in jobs.items()}, self.agent._leaving)


def granting(*, attempt: int, job_id: str = "job", revision: int = 1000, ranks: int = 4) -> Callable[[World], Any]:
    def request(world: World) -> Any:
        parameters = master_pb2.JobParameters(spec_json=world.spec_json)
        address = master_pb2.ShardAddress(shard_id="ps", host="127.0.0.1", port=1, index=0)
        grant = master_pb2.Grant(
            job_id=job_id,
            attempt=attempt,
            revision=revision,
            parameters=parameters,
            last_rank=ranks,
            shards=[address],
        )
        return worker_pb2.StartTrainingRequest(grant=grant)

    return request


WORKER_ROWS = {
    "WorkerService.StartTraining": Row(
        world=WorkerWorld,
        request=granting(attempt=2, ranks=2),
        changes=True,
        again=lambda answer: answer.success and answer.message == "nothing to do",
        cells={
            "late": Check(request=granting(attempt=2, revision=1, ranks=1), answer=refused_answer),
            "stale attempt": Check(
                request=granting(attempt=1), answer=lambda answer: answer.message == "nothing to do"
            ),
            "stale incarnation": BY_EPOCH,
            "unknown ids": Check(request=plain(worker_pb2.StartTrainingRequest), error=InvalidInput),
        },
    ),
    "WorkerService.StopTraining": Row(
        world=WorkerWorld,
        request=plain(worker_pb2.StopTrainingRequest, job_id="job", attempt=2),
        changes=True,
        again=refused_answer,
        cells={
            "late": Check(  # after the attempt has begun that follows
                request=plain(worker_pb2.StopTrainingRequest, job_id="job", attempt=1), answer=refused_answer
            ),
            "stale attempt": Check(
                request=plain(worker_pb2.StopTrainingRequest, job_id="job", attempt=1), answer=refused_answer
            ),
            "stale incarnation": BY_EPOCH,
            "unknown ids": Check(
                request=plain(worker_pb2.StopTrainingRequest, job_id="no-such-job"), answer=refused_answer
            ),
        },
    ),
    "WorkerService.GetStatus": Row(
        world=WorkerWorld,
        request=plain(worker_pb2.GetStatusRequest),
        changes=False,
        again=lambda answer: answer.incarnation == "living",
        cells={
            "late": READS,
            "stale attempt": NO_ATTEMPT,
            "stale incarnation": Impossible(why="it tells its incarnation; whoever asks for another sees that"),
            "unknown ids": Check(request=plain(worker_pb2.GetStatusRequest, worker_id="nobody"), answer=refused_answer),
        },
    ),
    "WorkerService.Leave": Row(
        world=WorkerWorld,
        request=plain(worker_pb2.LeaveRequest),
        changes=True,
        again=lambda answer: not answer.success and answer.job_ids == ["job"],
        cells={
            "late": Impossible(why="who leaves does not come back: at any time it means the same"),
            "stale attempt": NO_ATTEMPT,
            "stale incarnation": Impossible(why="it is asked on the spot, of the process that listens there"),
            "unknown ids": NO_IDS,
        },
    ),
}

ROWS = MASTER_ROWS | SHARD_ROWS | WORKER_ROWS
METHODS = {
    f"{service.name}.{method.name}": method
    for module in MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


def method_of(name: str) -> Any:
    return METHODS[name]


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as opened:
        yield opened


def test_every_call_has_a_row_and_every_row_says_something_to_every_fault() -> None:
    assert ROWS.keys() == METHODS.keys(), "a call without a row, or a row without a call"
    for name, row in ROWS.items():
        assert set(row.cells) == set(FAULTS[3:]), name


@pytest.mark.parametrize("name", METHODS)
def test_a_request_that_is_lost_changes_nothing_and_can_be_made_again(
    name: str, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    """As one of which the client cannot tell whether it arrived."""
    row, method = ROWS[name], METHODS[name]
    world = row.world(tmp_path, stack)
    row.before(world)
    before = world.state()
    with socket.create_server(("127.0.0.1", 0)) as swallowing:  # it takes what comes and passes nothing on
        with pytest.raises((DeadlineExceeded, Unavailable)):
            world.lose(swallowing.getsockname()[1], method, row.request(world))
    assert world.state() == before
    world.call(method, row.request(world))
    if row.changes:
        eventually(lambda: world.state() != before)


@pytest.mark.parametrize("fault", ["reply lost", "twice"])
@pytest.mark.parametrize("name", METHODS)
def test_a_request_that_comes_twice_counts_once(
    name: str, fault: str, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    """Made again because the reply was lost, or doubled on its way: both copies arrive before an answer is read."""
    row, method = ROWS[name], METHODS[name]
    world = row.world(tmp_path, stack)
    row.before(world)
    before, request = world.state(), row.request(world)
    world.call(method, request)  # nobody reads this answer
    once = settled(world)
    assert (once != before) == row.changes
    answer = world.call(method, request)
    if fault == "reply lost":
        assert row.again(answer), answer
    if not row.at_least_once:
        assert settled(world) == once


def settled(world: World) -> object:
    """The state after what a call has set going has come to its end."""
    last, since = world.state(), time.monotonic()
    deadline = since + SECONDS
    while time.monotonic() < min(since + 0.3, deadline):
        time.sleep(0.02)
        if (now := world.state()) != last:
            last, since = now, time.monotonic()
    return last


@pytest.mark.parametrize("fault", FAULTS[3:])
@pytest.mark.parametrize("name", METHODS)
def test_a_call_of_the_past_or_for_nobody_gets_its_one_answer_and_changes_nothing(
    name: str, fault: str, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    row, method = ROWS[name], METHODS[name]
    cell = row.cells[fault]
    if isinstance(cell, Impossible):
        assert cell.why
        return
    world = row.world(tmp_path, stack)
    row.before(world)
    cell.before(world)
    before = settled(world)
    if cell.error is None:
        answer = world.call(method, cell.request(world))
        assert cell.answer(answer), answer
    else:
        with pytest.raises(cell.error) as caught:
            world.call(method, cell.request(world))
        assert type(caught.value) is cell.error
    assert (settled(world) != before) == cell.changes


OF_MASTERS = [name for name in METHODS if name.split(".")[0] in ("ShardService", "WorkerService")]


@pytest.mark.parametrize("name", [name for name in OF_MASTERS if name != "WorkerService.Leave"])
def test_a_master_that_has_been_deposed_is_refused_by_every_call(
    name: str, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    row, method = ROWS[name], METHODS[name]
    world = row.world(tmp_path, stack)
    row.before(world)
    status = world.call(
        METHODS["ShardService.GetProgress" if "Shard" in name else "WorkerService.GetStatus"],
        shard_pb2.GetProgressRequest(job_id="job", master_epoch=7)
        if "Shard" in name
        else worker_pb2.GetStatusRequest(master_epoch=7),
    )
    assert status
    before, request = world.state(), row.request(world)
    request.master_epoch = 6
    with pytest.raises(Deposed, match="led in epoch 6: another leads now, in epoch 7"):
        world.call(method, request)
    assert world.state() == before
    request.master_epoch = 8
    world.call(method, request)


# -- the raw stream ----------------------------------------------------------------------------------------------------

# The exchange is no call of a descriptor. Its faults, over both transports, are proven in tests/contract/test_exchange:
EXCHANGE = {
    "request lost": "test_a_stream_that_breaks_before_a_push_is_complete_changes_nothing",
    "reply lost": "test_a_push_whose_answer_is_lost_counts_once_when_it_is_made_again",
    "twice": "test_blocks_in_any_order_give_the_bits_of_torch_optim",
    "late": "test_a_push_for_a_step_that_is_over_is_a_duplicate",
    "stale attempt": "test_a_trainer_of_an_old_attempt_is_told_so_and_changes_nothing",
    "stale incarnation": "test_nothing_of_an_incarnation_counts_any_more_once_it_is_fenced_off_and_the_living_go_on",
    "unknown ids": "test_a_hello_for_a_job_that_is_not_here_is_refused",
}


def test_every_fault_of_the_exchange_has_its_test() -> None:
    suite = (Path(__file__).parent / "test_exchange.py").read_text()
    assert set(EXCHANGE) == set(FAULTS)
    for fault, test in EXCHANGE.items():
        assert f"def {test}(" in suite, fault
