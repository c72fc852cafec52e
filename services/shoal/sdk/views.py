"""What the master tells clients, as frozen nouns. Each message has one reader, `from_proto`.

Times are Unix seconds; what is not known yet is None.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from shoal.core.job import Capabilities, Event, Load, Phase, Results
from shoal.wire import convert
from shoal.wire.v1 import jobs_pb2


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerShare:
    """The ranks [first_rank, last_rank) that a worker hosts of a job."""

    worker_id: str
    first_rank: int
    last_rank: int
    seconds_per_unit: float | None

    @classmethod
    def from_proto(cls, message: jobs_pb2.WorkerShare) -> Self:
        return cls(
            worker_id=message.worker_id,
            first_rank=message.first_rank,
            last_rank=message.last_rank,
            seconds_per_unit=message.seconds_per_unit or None,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The held-out split seen by the weights of one version."""

    version: int
    accuracy: float  # 0..1
    loss: float  # mean

    @classmethod
    def from_proto(cls, message: jobs_pb2.Evaluation) -> Self:
        return cls(version=message.version, accuracy=message.accuracy, loss=message.loss)


@dataclass(frozen=True, kw_only=True)
class JobView:
    """One job as the master knew it at one moment."""

    job_id: str
    name: str
    phase: Phase
    reason: str
    message: str
    attempt: int
    priority: int
    spec_json: str
    step: int  # committed
    total_steps: int | None
    loss: float | None  # training loss of the last committed step
    samples_per_second: float
    samples: int
    shards: int
    workers: tuple[WorkerShare, ...]
    evaluations: tuple[Evaluation, ...]
    events: tuple[Event, ...]
    losses: tuple[float, ...]  # of every committed step; only from get(with_losses=True)
    results: Results | None  # once the job has ended
    submitted_at: float
    started_at: float | None  # first step committed
    finished_at: float | None
    paused: bool = False
    failures: int = 0  # attempts that failed by themselves, not by a lost machine

    @property
    def spec(self) -> dict[str, Any]:
        """The validated spec, every default filled in."""
        document: dict[str, Any] = json.loads(self.spec_json) if self.spec_json else {}
        return document

    @property
    def ended(self) -> bool:
        return self.phase.ended

    @property
    def succeeded(self) -> bool:
        return self.phase is Phase.SUCCEEDED

    @property
    def training_seconds(self) -> float | None:
        """From the first committed step to the end."""
        if self.started_at is None or self.finished_at is None:
            return None
        return self.finished_at - self.started_at

    @classmethod
    def from_proto(cls, message: jobs_pb2.Job) -> Self:
        return cls(
            job_id=message.job_id,
            name=message.name,
            phase=Phase(message.phase),
            reason=message.reason,
            message=message.message,
            attempt=message.attempt,
            priority=message.priority,
            spec_json=message.spec_json,
            step=message.step,
            total_steps=message.total_steps or None,
            loss=message.loss if message.step else None,
            samples_per_second=message.samples_per_second,
            samples=message.samples,
            shards=message.shards,
            workers=tuple(map(WorkerShare.from_proto, message.workers)),
            evaluations=tuple(map(Evaluation.from_proto, message.evaluations)),
            paused=message.paused,
            failures=message.failures,
            events=tuple(
                Event(
                    at=event.unix_seconds,
                    phase=Phase(event.phase),
                    reason=event.reason,
                    message=event.message,
                    attempt=event.attempt,
                )
                for event in message.events
            ),
            losses=tuple(message.losses),
            results=convert.results_from_proto(message.results) if message.HasField("results") else None,
            submitted_at=message.submitted_unix_seconds,
            started_at=message.started_unix_seconds or None,
            finished_at=message.finished_unix_seconds or None,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotFileView:
    """One shard's file, on the parameter server that wrote it."""

    shard_index: int
    server_id: str
    name: str
    size: int  # bytes
    sha256: str  # hex

    @classmethod
    def from_proto(cls, message: jobs_pb2.ShardFile) -> Self:
        return cls(
            shard_index=message.shard_index,
            server_id=message.server_id,
            name=message.file_name,
            size=message.size,
            sha256=message.sha256,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotView:
    """A state that a job can go on from; `current`: it would, now. `damaged` says which file is not what it was."""

    step: int
    attempt: int  # that wrote it
    at: float
    files: tuple[SnapshotFileView, ...]
    current: bool
    damaged: str

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @classmethod
    def from_proto(cls, message: jobs_pb2.Snapshot) -> Self:
        return cls(
            step=message.step,
            attempt=message.attempt,
            at=message.unix_seconds,
            files=tuple(map(SnapshotFileView.from_proto, message.files)),
            current=message.current,
            damaged=message.damaged,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LogLine:
    """A line that a job's trainer wrote. `sequence` grows; resume behind it."""

    sequence: int
    at: float
    worker_id: str
    text: str

    @classmethod
    def from_proto(cls, message: jobs_pb2.LogsResponse) -> Self:
        return cls(
            sequence=message.sequence,
            at=message.line.unix_seconds,
            worker_id=message.line.worker_id,
            text=message.line.text,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerView:
    """A worker. `state` is alive, suspect or lost."""

    worker_id: str
    host: str
    port: int
    state: str
    capabilities: Capabilities
    load: Load
    job_ids: tuple[str, ...]
    seconds_since_heartbeat: float

    @classmethod
    def from_proto(cls, message: jobs_pb2.Worker) -> Self:
        return cls(
            worker_id=message.worker_id,
            host=message.host,
            port=message.port,
            state=message.state,
            capabilities=convert.capabilities_from_proto(message.capabilities),
            load=convert.load_from_proto(message.status),
            job_ids=tuple(message.job_ids),
            seconds_since_heartbeat=message.seconds_since_heartbeat,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterServerView:
    """A parameter server. `state` is alive, suspect or lost."""

    server_id: str
    host: str
    port: int
    state: str
    job_ids: tuple[str, ...]
    seconds_since_heartbeat: float

    @classmethod
    def from_proto(cls, message: jobs_pb2.ParameterServer) -> Self:
        return cls(
            server_id=message.server_id,
            host=message.host,
            port=message.port,
            state=message.state,
            job_ids=tuple(message.job_ids),
            seconds_since_heartbeat=message.seconds_since_heartbeat,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedModel:
    """What a download has saved."""

    folder: Path
    weights_sha256: str  # hex, of model.safetensors
    size: int  # bytes, of model.safetensors
    config: dict[str, Any]
