"""What the agent and a trainer say to each other: JSON lines over two pipes, each a dataclass with one reader."""

import json
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from shoal.core.errors import Corrupt
from shoal.core.job import Grant, Results, ShardAddress

REPORT_FD_VARIABLE = "SHOAL_TRAINER_REPORT_FD"  # environment: the descriptor on which a trainer reports
DATA_ROOTS_VARIABLE = "SHOAL_TRAINER_DATA_ROOTS"  # environment: folders it may read, os.pathsep between them


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """Agent to trainer: the grant as it is now. The first one starts the job, later ones move ranks."""

    kind: ClassVar[str] = "assignment"
    grant: Grant
    worker_id: str
    incarnation: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """Agent to trainer, at every heartbeat: the agent lives. A trainer that hears none for long holds still."""

    kind: ClassVar[str] = "beat"
    lease_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """Trainer to agent: the libraries are loaded, a grant may come."""

    kind: ClassVar[str] = "ready"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pushed:
    transport: str
    blocks: int
    size: int  # bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Advanced:
    """Trainer to agent: it holds version `step`. The last three are what has come since the last report."""

    kind: ClassVar[str] = "advanced"
    step: int
    seconds_per_unit: float  # moving mean; 0: no unit computed yet
    unit_seconds: tuple[float, ...]  # compute time of each unit
    wait_seconds: tuple[float, ...]  # of each step, from the last push to the next version
    pushed: tuple[Pushed, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    kind: ClassVar[str] = "finished"
    results: Results


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """Trainer to agent: it cannot go on. `fatal`: another attempt would fail the same way."""

    kind: ClassVar[str] = "failed"
    error: str
    fatal: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Fenced:
    """Trainer to agent: its attempt is over, or this worker's incarnation counts as dead; nobody needs to be told."""

    kind: ClassVar[str] = "fenced"
    reason: str
    incarnation: bool = False


Message = Assignment | Beat | Ready | Advanced | Finished | Failed | Fenced


def to_line(message: Message) -> bytes:
    return json.dumps({"kind": message.kind, **asdict(message)}).encode() + b"\n"


def from_line(line: bytes) -> Message:
    """Raises Corrupt."""
    try:
        document: dict[str, Any] = json.loads(line)
        if not isinstance(document, dict):
            raise Corrupt("control message is not an object")
        kind = document.pop("kind")
        match kind:
            case Assignment.kind:
                grant = document["grant"]
                grant["shards"] = tuple(ShardAddress(**shard) for shard in grant["shards"])
                return Assignment(**{**document, "grant": Grant(**grant)})
            case Beat.kind:
                return Beat(**document)
            case Ready.kind:
                return Ready(**document)
            case Advanced.kind:
                pushed = tuple(Pushed(**entry) for entry in document["pushed"])
                times = {name: tuple(document[name]) for name in ("unit_seconds", "wait_seconds")}
                return Advanced(**{**document, **times, "pushed": pushed})
            case Finished.kind:
                results = document["results"]
                return Finished(results=Results(**{**results, "errors": tuple(results["errors"])}))
            case Failed.kind:
                return Failed(**document)
            case Fenced.kind:
                return Fenced(**document)
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"control message is not understood: {error}") from error
    raise Corrupt(f"control message of unknown kind {kind!r}")
