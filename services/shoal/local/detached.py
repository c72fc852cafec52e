"""The cluster that stays: `shoal up` starts it, `shoal status` looks at it, `shoal down` ends it.

One per user and machine. A state file remembers its processes by id *and* start time, so that a process that got a
reused id is never taken for one of them.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import psutil

from shoal.core.errors import AlreadyExists, Corrupt, Internal
from shoal.local import processes
from shoal.local.cluster import GRACE_SECONDS, Cluster

START_TIME_TOLERANCE_SECONDS = 0.05  # psutil computes it from clock ticks


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """A role's process as the state file knows it."""

    name: str
    role: str
    pid: int
    started_at: float  # Unix seconds, as psutil says

    def find(self) -> psutil.Process | None:
        """The process, if it still runs and is the same one."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started_at) < START_TIME_TOLERANCE_SECONDS
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Detached:
    cluster_id: str
    address: str
    folder: Path
    members: tuple[Recorded, ...]

    @property
    def running(self) -> tuple[Recorded, ...]:
        return tuple(member for member in self.members if member.find() is not None)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        return cls(
            cluster_id=document["cluster_id"],
            address=document["address"],
            folder=Path(document["folder"]),
            members=tuple(Recorded(**member) for member in document["members"]),
        )


def state_folder() -> Path:
    """$XDG_STATE_HOME/shoal, by default ~/.local/state/shoal."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "shoal"


def find() -> Detached | None:
    """The cluster that `up` started, whether all of it still runs or not. Raises Corrupt for an unreadable file."""
    path = _state_file()
    try:
        return Detached.from_document(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"state file {path} cannot be read; end the processes it may name, then delete it") from error


def up(*, workers: int, shards: int, host: str, port: int, worker_options: Sequence[str] = ()) -> Detached:
    """Starts a cluster that outlives this process. Raises AlreadyExists if there is one, InvalidInput for the port."""
    there = find()
    if there is not None and there.running:
        raise AlreadyExists(f"a cluster runs already, its master at {there.address}; end it by 'shoal down'")
    folder = state_folder() / "cluster"
    cluster = Cluster(
        workers=workers,
        shards=shards,
        host=host,
        port=port,
        folder=folder,
        detached=True,
        worker_options=worker_options,
    )
    cluster.start()
    try:
        state = Detached(
            cluster_id=cluster.cluster_id,
            address=cluster.address,
            folder=folder,
            members=tuple(
                Recorded(
                    name=member.name,
                    role=member.role,
                    pid=member.pid,
                    started_at=psutil.Process(member.pid).create_time(),
                )
                for member in cluster.members
            ),
        )
        _write(state)
    except BaseException:
        cluster.stop()
        raise
    return state


def down(state: Detached) -> int:
    """Ends every process of it, workers first; returns how many there were. Raises Internal if one stays."""
    count = len(processes.marked(state.cluster_id))
    groups = [
        [process for member in state.members if member.role == role and (process := member.find()) is not None]
        for role in ("worker", "ps", "master")
    ]
    left = processes.stop_all(state.cluster_id, groups, grace_seconds=GRACE_SECONDS)
    if left:
        raise Internal(f"{left} processes of the cluster could not be ended")
    _state_file().unlink(missing_ok=True)
    return count


def _state_file() -> Path:
    return state_folder() / "cluster.json"


def _write(state: Detached) -> None:
    path = _state_file()
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps({**asdict(state), "folder": str(state.folder)}, indent=2))
    temporary.rename(path)
