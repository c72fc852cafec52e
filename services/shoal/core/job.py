"""Jobs and the cluster's members as the scheduler and the store see them."""

from dataclasses import dataclass, field
from enum import StrEnum, auto


class Phase(StrEnum):
    PENDING = "PENDING"  # stored; waits for workers or parameter servers
    STARTING = "STARTING"  # shares and grants are out; no step yet
    RUNNING = "RUNNING"
    RECOVERING = "RECOVERING"  # an attempt ended early; the next one is being prepared
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def ended(self) -> bool:
        return self in (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Requirements:
    """What a job asks of the cluster. `model_type` and `gpu` must be among a worker's capabilities."""

    model_type: str
    gpu: bool
    world_size: int
    min_workers: int
    max_workers: int
    shards: int
    priority: int = 0  # higher goes first
    external: bool = False  # clients train it by unary calls: shares, but no workers
    max_attempts: int = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """What a job ended with. `accuracy` is 0..1 on the held-out split; `loss` is the mean there."""

    success: bool
    accuracy: float = 0.0
    loss: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    errors: tuple[str, ...] = ()
    weights_sha256: str = ""  # hex, of the model.safetensors file
    steps: int = 0
    samples: int = 0


class Failure(StrEnum):
    """What to do about results without success."""

    RETRIED = auto()  # the attempt ends; another one may succeed
    FATAL = auto()  # another attempt would fail the same way
    KILLED = auto()  # signals kept killing the trainers of this worker: others may go on with the attempt


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    at: float  # Unix seconds
    phase: Phase
    reason: str  # a constant in CamelCase
    message: str = ""
    attempt: int = 0  # in which it happened; 0: before the first


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFile:
    """One shard's file of a finished model, or of a snapshot."""

    shard_index: int
    server_id: str
    file_name: str
    size: int  # bytes
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One training run, as stored."""

    job_id: str
    name: str
    spec_json: str  # validated, every default filled in
    requirements: Requirements
    phase: Phase
    reason: str
    message: str
    attempt: int  # the fencing token: +1 each time the job is (re)started; 0 before the first
    submitted_at: float  # Unix seconds
    idempotency_key: str
    servers: tuple[str, ...] = ()  # parameter servers by shard index, once chosen
    started_at: float | None = None  # first committed step
    finished_at: float | None = None
    results: Results | None = None
    files: tuple[ShardFile, ...] = ()
    paused: bool = False  # gets no workers until it is resumed; its weights stay on the shards
    failures: int = 0  # attempts that failed by themselves; those that ended with a lost machine do not count


@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities:
    has_gpu: bool
    supported_models: frozenset[str]
    max_concurrent_jobs: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """A process' figures, in percent of its machine or of its container's limit."""

    cpu_percent: float
    memory_percent: float
    current_jobs: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardAddress:
    server_id: str
    host: str
    port: int
    index: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Grant:
    """What one worker is to do for one job: the ranks [first_rank, last_rank) of an attempt."""

    job_id: str
    attempt: int
    revision: int
    spec_json: str
    first_rank: int
    last_rank: int
    shards: tuple[ShardAddress, ...]

    @property
    def ranks(self) -> range:
        return range(self.first_rank, self.last_rank)


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How one job goes on one worker."""

    job_id: str
    attempt: int
    step: int
    seconds_per_unit: float  # 0: not known yet
    restarts: int = 0  # of the trainer within the attempt, after it was killed
    last_crash: str = ""  # how it ended before the last restart, in one line
