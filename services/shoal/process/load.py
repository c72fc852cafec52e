"""How busy the machine (or the container) is, and what its memory limit has done."""

from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cgroup:
    """Where the kernel shows a container's memory controller."""

    limit: Path
    usage: Path
    events: Path  # has a line `oom_kill N`


_V2 = Path("/sys/fs/cgroup")
_V1 = Path("/sys/fs/cgroup/memory")
_CGROUPS = (
    _Cgroup(limit=_V2 / "memory.max", usage=_V2 / "memory.current", events=_V2 / "memory.events"),
    _Cgroup(
        limit=_V1 / "memory.limit_in_bytes", usage=_V1 / "memory.usage_in_bytes", events=_V1 / "memory.oom_control"
    ),
)


class LoadMeter:
    """CPU since the last call, memory now. Both in percent, 0..100."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # the first call only sets the mark

    def cpu_percent(self) -> float:
        return min(100.0, max(0.0, psutil.cpu_percent()))

    def memory_percent(self) -> float:
        """Of the container's limit where there is one below the machine's memory."""
        cgroup, limit = _cgroup(), memory_limit_bytes()
        if cgroup is None or limit is None:
            return float(psutil.virtual_memory().percent)
        return min(100.0, 100.0 * int(cgroup.usage.read_text()) / limit)


def memory_limit_bytes() -> int | None:
    """Of the container; None where there is none below the machine's memory."""
    cgroup = _cgroup()
    if cgroup is None:
        return None
    limit = cgroup.limit.read_text().strip()
    machine: int = psutil.virtual_memory().total
    return int(limit) if limit.isdigit() and 0 < int(limit) < machine else None


def oom_kills() -> int:
    """How many processes the kernel has ended in this container (or machine part) because its memory ran out."""
    cgroup = _cgroup()
    if cgroup is None or not cgroup.events.exists():
        return 0
    counts = dict(line.split() for line in cgroup.events.read_text().splitlines())
    return int(counts.get("oom_kill", 0))


def _cgroup() -> _Cgroup | None:
    return next((cgroup for cgroup in _CGROUPS if cgroup.limit.exists() and cgroup.usage.exists()), None)
