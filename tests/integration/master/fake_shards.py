"""A parameter server as the master sees it: the real ShardService over real gRPC, with steps that a test commits.

It is a fake because the master's tests need steps, failures and restarts at exact moments, many times a second and
without torch; the real server's own behaviour is tested with the real server in tests/contract and tests/integration.
"""

import hashlib
import threading
import uuid
from concurrent import futures
from dataclasses import dataclass, field

import grpc

from shoal.core.errors import Corrupt, DeadlineExceeded, Exhausted, Missed, NotFound, Stale
from shoal.wire.epochs import MasterEpochs
from shoal.wire.options import server_options
from shoal.wire.status import answered
from shoal.wire.v1 import master_pb2, shard_pb2, shard_pb2_grpc, worker_pb2, worker_pb2_grpc

WAIT_SECONDS = 30.0


@dataclass
class FakeShare:
    attempt: int
    spec_json: str
    index: int
    shards: int
    version: int = 0
    total_steps: int = 100
    samples_per_step: int = 8
    evaluations: list[shard_pb2.Evaluation] = field(default_factory=list)
    failure: str = ""
    made_in_attempt: int = 0
    initial: shard_pb2.InitialWeights | None = None


class FakeShard(shard_pb2_grpc.ShardServiceServicer):
    """One parameter server process. `kill` closes its port; a new FakeShard with its port (and `disk`, where the files
    are to be there still) is its successor.
    """

    def __init__(self, server_id: str, *, port: int = 0, disk: dict[tuple[str, str], bytes] | None = None) -> None:
        self.server_id = server_id
        self.incarnation = uuid.uuid4().hex
        self.shares: dict[str, FakeShare] = {}
        self.files: dict[tuple[str, str], bytes] = {} if disk is None else disk
        self.calls: list[str] = []
        self.epochs = MasterEpochs()
        self.fenced: set[str] = set()  # incarnations, and names where no incarnation is known
        self.snapshots_refused = 0  # so many times the disk is full
        self.snapshots_without_worker = 0  # so many times nobody has registered here, so it knows of no model
        self._changed = threading.Condition()
        self._closed = False
        self._pool = futures.ThreadPoolExecutor(8, thread_name_prefix=server_id)
        self._server = grpc.server(self._pool, options=server_options())
        shard_pb2_grpc.add_ShardServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()

    def registration(self) -> master_pb2.RegisterWorkerRequest:
        return master_pb2.RegisterWorkerRequest(
            worker_id=self.server_id,
            host="127.0.0.1",
            port=self.port,
            incarnation=self.incarnation,
            role=master_pb2.ROLE_PARAMETER_SERVER,
        )

    def kill(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._server.stop(None).wait()
        self._pool.shutdown(wait=True)

    # What a test makes happen.

    def commit(self, job_id: str, *, steps: int) -> None:
        with self._changed:
            self.shares[job_id].version += steps
            self._changed.notify_all()

    def evaluate(self, job_id: str, *, correct: int, samples: int) -> None:
        with self._changed:
            share = self.shares[job_id]
            share.evaluations.append(
                shard_pb2.Evaluation(version=share.version, correct=correct, samples=samples, loss=0.5)
            )
            self._changed.notify_all()

    def fail(self, job_id: str, reason: str) -> None:
        with self._changed:
            self.shares[job_id].failure = reason
            self._changed.notify_all()

    # ShardService.

    def CreateShare(self, request, context):
        with answered(context), self._changed:
            self.epochs.check(request.master_epoch)
            self.calls.append(f"CreateShare {request.job_id} {request.attempt}")
            share = self.shares.get(request.job_id)
            if share is not None and request.attempt < share.attempt:
                raise Stale("an old attempt")
            wanted = (request.attempt, request.restore.version)
            if share is None or (request.start_over and (share.made_in_attempt, share.version) != wanted):
                if request.HasField("restore"):
                    self._check(request.job_id, request.restore)
                share = self.shares[request.job_id] = FakeShare(
                    attempt=request.attempt,
                    spec_json=request.spec_json,
                    index=request.shard_index,
                    shards=request.shards,
                    version=request.restore.version,
                    made_in_attempt=request.attempt,
                    initial=request.initial if request.HasField("initial") else None,
                )
            if request.attempt > share.attempt:
                share.attempt, share.failure = request.attempt, ""
            self._changed.notify_all()
            return shard_pb2.CreateShareResponse(
                version=share.version, made_in_attempt=share.made_in_attempt, started=share.version > 0
            )

    def _check(self, job_id: str, file: shard_pb2.SnapshotFile) -> None:
        data = self.files.get((job_id, file.file_name), b"")
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise Corrupt(f"snapshot {file.file_name} of job {job_id}: it is not what was written")

    def GetProgress(self, request, context):
        with answered(context), self._changed:
            self.epochs.check(request.master_epoch)
            share = self._share(request.job_id)
            self._changed.wait_for(
                lambda: (
                    self._closed
                    or share.version > request.from_version
                    or len(share.evaluations) != request.known_evaluations
                    or share.failure
                    or self.shares.get(request.job_id) is not share
                ),
                timeout=min(request.wait_seconds, WAIT_SECONDS),
            )
            share = self._share(request.job_id)
            return shard_pb2.GetProgressResponse(
                attempt=share.attempt,
                version=share.version,
                total_steps=share.total_steps,
                samples=share.version * share.samples_per_step,
                losses=[
                    shard_pb2.StepLoss(step=step, loss=1 / (step + 1))
                    for step in range(request.from_version, share.version)
                ],
                evaluations=share.evaluations,
                started=share.version > 0,
                failure=share.failure,
            )

    def Snapshot(self, request, context):
        with answered(context), self._changed:
            self.epochs.check(request.master_epoch)
            self.calls.append(f"Snapshot {request.job_id} {request.attempt}")
            share = self._share(request.job_id)
            if request.attempt != share.attempt:
                raise Stale("another attempt")
            if request.at_version:
                self._await_version(share, request, context)
            if self.snapshots_without_worker:
                self.snapshots_without_worker -= 1
                return shard_pb2.SnapshotResponse(version=request.at_version)
            if self.snapshots_refused:
                self.snapshots_refused -= 1
                raise Exhausted("no space left on device")
            version = request.at_version or share.version
            data = f"{self.server_id} {request.job_id} {version} ".encode() * 100_000  # more than 1 MiB
            name = f"{request.job_id}-{share.index}.safetensors"
            if request.at_version:
                name = f"{request.job_id}-{share.index}-step-{version}-attempt-{share.attempt}.safetensors"
            self.files[request.job_id, name] = data
            return shard_pb2.SnapshotResponse(
                file_name=name,
                size=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                version=version,
                active_shards=share.shards,
            )

    def _await_version(self, share: FakeShare, request, context) -> None:
        if share.version >= request.at_version:
            raise Missed(f"version {request.at_version} has passed")
        context.add_callback(self._wake)
        self._changed.wait_for(
            lambda: (
                self._closed
                or not context.is_active()
                or share.version >= request.at_version
                or share.attempt != request.attempt
                or self.shares.get(request.job_id) is not share
            ),
            timeout=WAIT_SECONDS,
        )
        if share.attempt != request.attempt or self._share(request.job_id) is not share:
            raise Stale("another attempt")
        if share.version < request.at_version:
            raise DeadlineExceeded("nobody trains it")

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def ListSnapshots(self, request, context):
        with answered(context), self._changed:
            found: dict[str, list[str]] = {}
            for job_id, name in self.files:
                if request.job_id in ("", job_id):
                    found.setdefault(job_id, []).append(name)
            return shard_pb2.ListSnapshotsResponse(
                jobs=[shard_pb2.JobFiles(job_id=job_id, file_names=names) for job_id, names in found.items()]
            )

    def DeleteSnapshots(self, request, context):
        with answered(context), self._changed:
            for name in request.file_names:
                self.calls.append(f"DeleteSnapshots {request.job_id} {name}")
                self.files.pop((request.job_id, name), None)
            return shard_pb2.DeleteSnapshotsResponse()

    def ReadSnapshot(self, request, context):
        with answered(context):
            data = self.files.get((request.job_id, request.file_name))
            if data is None:
                raise NotFound(f"no file {request.file_name}")
            for start in range(request.offset, len(data), 1_500_000):
                yield shard_pb2.ReadSnapshotResponse(data=data[start : start + 1_500_000])

    def Fence(self, request, context):
        with answered(context), self._changed:
            self.epochs.check(request.master_epoch)
            self.calls.append(f"Fence {request.job_id} {request.attempt}")
            self._share(request.job_id)
            self.fenced.update(request.incarnations, request.worker_ids)
            return shard_pb2.FenceResponse()

    def DropShare(self, request, context):
        with answered(context), self._changed:
            self.epochs.check(request.master_epoch)
            self.calls.append(f"DropShare {request.job_id} delete_files={request.delete_files}")
            existed = self.shares.pop(request.job_id, None) is not None
            if request.delete_files:
                for key in [key for key in self.files if key[0] == request.job_id]:
                    del self.files[key]
            self._changed.notify_all()
            return shard_pb2.DropShareResponse(existed=existed)

    def _share(self, job_id: str) -> FakeShare:
        if (share := self.shares.get(job_id)) is None:
            raise NotFound(f"job '{job_id}' has no share here")
        return share


class FakeWorker(worker_pb2_grpc.WorkerServiceServicer):
    """Takes down what the master pushes."""

    def __init__(self) -> None:
        self.started: list[worker_pb2.StartTrainingRequest] = []
        self.stopped: list[worker_pb2.StopTrainingRequest] = []
        self._pool = futures.ThreadPoolExecutor(2, thread_name_prefix="fake-worker")
        self._server = grpc.server(self._pool, options=server_options())
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def close(self) -> None:
        self._server.stop(None).wait()
        self._pool.shutdown(wait=True)

    def StartTraining(self, request, context):
        self.started.append(request)
        return worker_pb2.StartTrainingResponse(success=True)

    def StopTraining(self, request, context):
        self.stopped.append(request)
        return worker_pb2.StopTrainingResponse(success=True)

    def GetStatus(self, request, context):
        return worker_pb2.GetStatusResponse(success=True)
