"""gRPC in front of the shares: converts, answers, nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import grpc

from shoal.core.errors import InvalidInput
from shoal.metrics.parameter_server import ParameterServerMetrics
from shoal.ps.initial import InitialWeights, Source
from shoal.ps.shares import Shares
from shoal.ps.snapshot import Restore, Snapshots, model_name, snapshot_name
from shoal.wire.convert import facts_from_proto
from shoal.wire.epochs import MasterEpochs
from shoal.wire.status import answered
from shoal.wire.v1 import parameter_server_pb2, parameter_server_pb2_grpc, shard_pb2, shard_pb2_grpc

_MAX_WAIT_SECONDS = 30.0  # of a long poll: longer than a progress report's rhythm, shorter than any proxy's patience


class _OfMaster(Protocol):
    """A request of the master's."""

    @property
    def master_epoch(self) -> int: ...


class ParameterServerServicer(parameter_server_pb2_grpc.ParameterServerServiceServicer):
    """What trainers and external clients ask."""

    def __init__(self, *, shares: Shares, host_id: str, shared_memory_address: str) -> None:
        self._shares = shares
        self._host_id = host_id
        self._shared_memory_address = shared_memory_address

    def RegisterWorker(
        self, request: parameter_server_pb2.RegisterWorkerRequest, context: grpc.ServicerContext
    ) -> parameter_server_pb2.RegisterWorkerResponse:
        with answered(context):
            _require(request.worker_id, "worker_id")
            share = self._shares.get(request.job_id)
            share.check_attempt(request.attempt)
            share.check_incarnation(request.incarnation)
            share.register(facts_from_proto(request.dataset) if request.HasField("dataset") else None)
            held = share.layout.shares[share.index]
            return parameter_server_pb2.RegisterWorkerResponse(
                success=True,
                message=f"shard {share.index} of {share.shards}",
                host_id=self._host_id,
                shared_memory_address=self._shared_memory_address,
                layers=[
                    parameter_server_pb2.LayerPart(
                        layer_name=piece.layer.name,
                        shape=piece.layer.shape,
                        first=piece.first,
                        last=piece.last,
                        version=share.layer_version(piece.layer.name),
                    )
                    for piece in held.slices
                ],
                shard_index=share.index,
                shards=share.shards,
                version=share.version,
            )

    def PushGradients(
        self, request: parameter_server_pb2.PushGradientsRequest, context: grpc.ServicerContext
    ) -> parameter_server_pb2.PushGradientsResponse:
        with answered(context):
            _require(request.worker_id, "worker_id")
            share = self._shares.get(request.job_id)
            share.check_attempt(request.attempt)
            share.check_incarnation(request.incarnation)
            outcome = share.push_slice(
                layer_name=request.layer_name,
                data=request.gradient_data,
                dtype=request.dtype,
                version=request.version,
            )
            return parameter_server_pb2.PushGradientsResponse(
                success=outcome.applied, message=outcome.reason, new_version=outcome.version
            )

    def PullParameters(
        self, request: parameter_server_pb2.PullParametersRequest, context: grpc.ServicerContext
    ) -> parameter_server_pb2.PullParametersResponse:
        with answered(context):
            _require(request.worker_id, "worker_id")
            share = self._shares.get(request.job_id)
            share.check_incarnation(request.incarnation)
            version = share.layer_version(request.layer_name)
            if request.have_version and request.version == version:
                share.count_current_pull()
                return parameter_server_pb2.PullParametersResponse(
                    success=True, message="the version held is current", version=version
                )
            data, version = share.pull_slice(request.layer_name)
            return parameter_server_pb2.PullParametersResponse(
                success=True, message="", parameter_data=data, version=version
            )

    def GetParameterVersion(
        self, request: parameter_server_pb2.GetParameterVersionRequest, context: grpc.ServicerContext
    ) -> parameter_server_pb2.GetParameterVersionResponse:
        with answered(context):
            _require(request.worker_id, "worker_id")
            share = self._shares.get(request.job_id)
            share.check_incarnation(request.incarnation)
            version = share.layer_version(request.layer_name)
            return parameter_server_pb2.GetParameterVersionResponse(success=True, message="", version=version)


class ShardServicer(shard_pb2_grpc.ShardServiceServicer):
    """What the master asks."""

    def __init__(
        self,
        *,
        shares: Shares,
        snapshots: Snapshots,
        epochs: MasterEpochs,
        metrics: ParameterServerMetrics,
    ) -> None:
        self._shares = shares
        self._snapshots = snapshots
        self._epochs = epochs
        self._metrics = metrics

    @contextmanager
    def _asked(self, request: _OfMaster, context: grpc.ServicerContext) -> Iterator[None]:
        """Around each call's body: nothing is done for a master that has been deposed."""
        with answered(context):
            if not self._epochs.admits(request.master_epoch):
                self._metrics.stale.labels("master").inc()
            self._epochs.check(request.master_epoch)
            yield

    def CreateShare(
        self, request: shard_pb2.CreateShareRequest, context: grpc.ServicerContext
    ) -> shard_pb2.CreateShareResponse:
        with self._asked(request, context):
            share = self._shares.create(
                job_id=request.job_id,
                attempt=request.attempt,
                spec_json=request.spec_json,
                index=request.shard_index,
                shards=request.shards,
                restore=_restore(request.restore) if request.HasField("restore") else None,
                start_over=request.start_over,
                call=(request.master_epoch, request.call),
                initial=self._initial(request.initial) if request.HasField("initial") else None,
            )
            return shard_pb2.CreateShareResponse(
                version=share.version, made_in_attempt=share.made_in_attempt, started=share.started
            )

    def _initial(self, message: shard_pb2.InitialWeights) -> InitialWeights:
        sources = [Source(file=_restore(entry.file), host=entry.host, port=entry.port) for entry in message.files]
        return InitialWeights(job_id=message.job_id, sources=sources, snapshots=self._snapshots)

    def GetProgress(
        self, request: shard_pb2.GetProgressRequest, context: grpc.ServicerContext
    ) -> shard_pb2.GetProgressResponse:
        with self._asked(request, context):
            progress = self._shares.get(request.job_id).progress(
                from_version=request.from_version,
                known_evaluations=request.known_evaluations,
                wait_seconds=min(request.wait_seconds, _MAX_WAIT_SECONDS),
            )
            return shard_pb2.GetProgressResponse(
                attempt=progress.attempt,
                version=progress.version,
                total_steps=progress.total_steps,
                samples=progress.samples,
                losses=[
                    shard_pb2.StepLoss(step=progress.first_step + index, loss=loss)
                    for index, loss in enumerate(progress.losses)
                ],
                evaluations=[
                    shard_pb2.Evaluation(
                        version=result.version, correct=result.correct, samples=result.samples, loss=result.loss
                    )
                    for result in progress.evaluations
                ],
                started=progress.started,
                failure=progress.failure,
            )

    def Snapshot(self, request: shard_pb2.SnapshotRequest, context: grpc.ServicerContext) -> shard_pb2.SnapshotResponse:
        with self._asked(request, context):
            share = self._shares.get(request.job_id)
            share.check_attempt(request.attempt)
            if share.holds_nothing:
                return shard_pb2.SnapshotResponse(version=request.at_version, active_shards=share.active_shards)
            context.add_callback(share.wake)

            def gone() -> bool:
                return not context.is_active()

            with share.snapshot_turn(gone):
                if request.at_version:
                    capture = share.capture_at(request.at_version, attempt=request.attempt, gone=gone)
                    name = snapshot_name(share.index, capture.version, share.attempt)
                else:
                    capture = share.capture()
                    name = model_name(share.index, capture.version)
                file = self._snapshots.write(request.job_id, name, capture)
            share.check_attempt(request.attempt)  # another one may have begun meanwhile
            return shard_pb2.SnapshotResponse(
                file_name=file.name,
                size=file.size,
                sha256=file.sha256,
                version=file.version,
                active_shards=share.active_shards,
            )

    def ReadSnapshot(
        self, request: shard_pb2.ReadSnapshotRequest, context: grpc.ServicerContext
    ) -> Iterator[shard_pb2.ReadSnapshotResponse]:
        with self._asked(request, context):
            for chunk in self._snapshots.read(request.job_id, request.file_name, request.offset):
                yield shard_pb2.ReadSnapshotResponse(data=chunk)

    def Fence(self, request: shard_pb2.FenceRequest, context: grpc.ServicerContext) -> shard_pb2.FenceResponse:
        with self._asked(request, context):
            cut = self._shares.get(request.job_id).fence_off(
                attempt=request.attempt, incarnations=request.incarnations, worker_ids=request.worker_ids
            )
            return shard_pb2.FenceResponse(sessions=cut)

    def DropShare(
        self, request: shard_pb2.DropShareRequest, context: grpc.ServicerContext
    ) -> shard_pb2.DropShareResponse:
        with self._asked(request, context):
            existed = self._shares.drop(request.job_id, "the job has ended")
            if request.delete_files:
                self._snapshots.delete_job(request.job_id)
            return shard_pb2.DropShareResponse(existed=existed)

    def ListSnapshots(
        self, request: shard_pb2.ListSnapshotsRequest, context: grpc.ServicerContext
    ) -> shard_pb2.ListSnapshotsResponse:
        with self._asked(request, context):
            job_ids = (request.job_id,) if request.job_id else self._snapshots.jobs()
            files = ((job_id, self._snapshots.names(job_id)) for job_id in job_ids)
            return shard_pb2.ListSnapshotsResponse(
                jobs=[shard_pb2.JobFiles(job_id=job_id, file_names=names) for job_id, names in files if names]
            )

    def DeleteSnapshots(
        self, request: shard_pb2.DeleteSnapshotsRequest, context: grpc.ServicerContext
    ) -> shard_pb2.DeleteSnapshotsResponse:
        with self._asked(request, context):
            self._snapshots.delete(request.job_id, request.file_names)
            return shard_pb2.DeleteSnapshotsResponse()


def _restore(message: shard_pb2.SnapshotFile) -> Restore:
    return Restore(name=message.file_name, size=message.size, sha256=message.sha256, version=message.version)


def _require(value: str, field: str) -> None:
    if not value:
        raise InvalidInput(f"{field} must not be empty", field=field)
