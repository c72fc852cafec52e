"""Between the master's own nouns and messages; those of `core` are in `wire/convert.py`."""

from collections.abc import Sequence
from functools import lru_cache

from shoal.core.job import Capabilities, Grant
from shoal.jobspec.reading import load_spec
from shoal.master.membership.members import Application, Member, Role
from shoal.master.store.base import LogLine, Manifest
from shoal.master.views import JobView
from shoal.wire.convert import (
    capabilities_from_proto,
    capabilities_to_proto,
    grant_to_proto,
    load_to_proto,
    results_to_proto,
)
from shoal.wire.v1 import jobs_pb2, master_pb2

_PLAIN = Capabilities(has_gpu=False, supported_models=frozenset(), max_concurrent_jobs=1)


def grant_message(grant: Grant) -> master_pb2.Grant:
    dataset, model_type, hyperparameters = _given_fields(grant.spec_json)
    return grant_to_proto(grant, dict(hyperparameters), dataset, model_type)


@lru_cache(maxsize=256)
def _given_fields(spec_json: str) -> tuple[str, str, tuple[tuple[str, str], ...]]:
    spec = load_spec(spec_json)
    return spec.data.source, spec.model.type, tuple(spec.hyperparameters().items())


def application_of(request: master_pb2.RegisterWorkerRequest) -> Application:
    role = Role.PARAMETER_SERVER if request.role == master_pb2.ROLE_PARAMETER_SERVER else Role.WORKER
    return Application(
        member_id=request.worker_id,
        role=role,
        incarnation=request.incarnation,
        host=request.host,
        port=request.port,
        metrics_port=request.metrics_port,
        capabilities=capabilities_from_proto(request.capabilities) if request.HasField("capabilities") else _PLAIN,
    )


def snapshot_messages(manifests: Sequence[Manifest]) -> list[jobs_pb2.Snapshot]:
    """Newest first, as they are given; the first whole one is the current one."""
    current = next((manifest for manifest in manifests if not manifest.damaged), None)
    return [
        jobs_pb2.Snapshot(
            step=manifest.step,
            attempt=manifest.attempt,
            unix_seconds=manifest.at,
            files=[
                jobs_pb2.ShardFile(
                    shard_index=file.shard_index,
                    file_name=file.file_name,
                    size=file.size,
                    sha256=file.sha256,
                    server_id=file.server_id,
                )
                for file in manifest.files
            ],
            current=manifest is current,
            damaged=manifest.damaged,
        )
        for manifest in manifests
    ]


def job_message(view: JobView) -> jobs_pb2.Job:
    job = view.job
    return jobs_pb2.Job(
        job_id=job.job_id,
        name=job.name,
        phase=job.phase.value,
        reason=view.reason,
        message=view.message,
        attempt=job.attempt,
        priority=job.requirements.priority,
        spec_json=job.spec_json,
        step=view.summary.step,
        total_steps=view.summary.total_steps,
        loss=view.summary.loss,
        samples_per_second=view.samples_per_second,
        samples=view.summary.samples,
        workers=[
            jobs_pb2.WorkerShare(
                worker_id=worker_id,
                first_rank=ranks.start,
                last_rank=ranks.stop,
                seconds_per_unit=view.seconds_per_unit.get(worker_id, 0.0),
            )
            for worker_id, ranks in sorted(view.ranks.items(), key=lambda item: item[1].start)
        ],
        evaluations=[
            jobs_pb2.Evaluation(version=entry.version, accuracy=entry.accuracy, loss=entry.loss)
            for entry in view.evaluations
        ],
        results=results_to_proto(job.results) if job.results is not None and job.phase.ended else None,
        submitted_unix_seconds=job.submitted_at,
        started_unix_seconds=job.started_at or 0.0,
        finished_unix_seconds=job.finished_at or 0.0,
        paused=job.paused,
        failures=job.failures,
        events=[
            jobs_pb2.Event(
                unix_seconds=event.at,
                phase=event.phase.value,
                reason=event.reason,
                message=event.message,
                attempt=event.attempt,
            )
            for event in view.events
        ],
        losses=view.losses or (),
        shards=job.requirements.shards,
    )


def worker_message(member: Member, *, job_ids: tuple[str, ...], seconds_since_heard: float) -> jobs_pb2.Worker:
    return jobs_pb2.Worker(
        worker_id=member.member_id,
        host=member.host,
        port=member.port,
        state=member.state.value,
        capabilities=capabilities_to_proto(member.capabilities),
        status=load_to_proto(member.load) if member.load is not None else None,
        job_ids=job_ids,
        seconds_since_heartbeat=seconds_since_heard,
    )


def server_message(member: Member, *, job_ids: tuple[str, ...], seconds_since_heard: float) -> jobs_pb2.ParameterServer:
    return jobs_pb2.ParameterServer(
        server_id=member.member_id,
        host=member.host,
        port=member.port,
        state=member.state.value,
        job_ids=job_ids,
        seconds_since_heartbeat=seconds_since_heard,
    )


def log_message(line: LogLine) -> jobs_pb2.LogsResponse:
    return jobs_pb2.LogsResponse(
        sequence=line.sequence,
        line=master_pb2.LogLine(unix_seconds=line.at, worker_id=line.worker_id, text=line.text),
    )
