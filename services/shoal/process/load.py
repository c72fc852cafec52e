"""How busy the machine (or the container) is, and what its memory limit has done."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import structlog


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
    """CPU since the last call, memory now. Both in percent, 0..100.

    A process that is out of file descriptors cannot read them: then they are what they last were, so that its
    heartbeats go on.
    """

    def __init__(self) -> None:
        psutil.cpu_percent()  # the first call only sets the mark
        self._last: dict[Callable[[], float], float] = {}
        self._told: dict[Callable[[], float], str] = {}
        self._log = structlog.get_logger()

    def cpu_percent(self) -> float:
        return self._read(_cpu_percent)

    def memory_percent(self) -> float:
        """Of the container's limit where there is one below the machine's memory."""
        return self._read(_memory_percent)

    def _read(self, measure: Callable[[], float]) -> float:
        try:
            self._last[measure] = min(100.0, max(0.0, measure()))
        except OSError as error:
            if str(error) != self._told.get(measure):
                self._log.warning("load_not_measured", error=str(error))
                self._told[measure] = str(error)
        return self._last.get(measure, 0.0)


def _cpu_percent() -> float:
    return float(psutil.cpu_percent())


def _memory_percent() -> float:
    cgroup, limit = _cgroup(), memory_limit_bytes()
    if cgroup is None or limit is None:
        return float(psutil.virtual_memory().percent)
    return 100.0 * int(cgroup.usage.read_text()) / limit


def memory_limit_bytes() -> int | None:
    """Of the container; None where there is none below the machine's memory."""
    cgroup = _cgroup()
    if cgroup is None:
        return None
    limit = cgroup.limit.read_text().strip()
    machine: int = psutil.virtual_memory().total
    return int(limit) if limit.isdigit() and 0 < int(limit) < machine else None


def free_memory_bytes() -> int:
    """What can still be taken here: of the container's limit, or of the machine's memory where that is less."""
    machine: int = psutil.virtual_memory().available
    cgroup, limit = _cgroup(), memory_limit_bytes()
    if cgroup is None or limit is None:
        return machine
    return max(0, min(machine, limit - int(cgroup.usage.read_text()) + _reclaimable(cgroup)))


def _reclaimable(cgroup: _Cgroup) -> int:
    """Of the usage: files that were read or written, which the kernel gives back when memory is asked for."""
    stat = cgroup.usage.with_name("memory.stat")
    if not stat.exists():
        return 0
    counts = dict(line.split() for line in stat.read_text().splitlines())
    return int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))


def oom_kills() -> int | None:
    """How many processes the kernel has ended in this container (or machine part) because its memory ran out.

    None where that cannot be told.
    """
    cgroup = _cgroup()
    if cgroup is None or not cgroup.events.exists():
        return None
    try:
        counts = dict(line.split() for line in cgroup.events.read_text().splitlines())
    except OSError:
        return None
    return int(counts.get("oom_kill", 0))


def _cgroup() -> _Cgroup | None:
    return next((cgroup for cgroup in _CGROUPS if cgroup.limit.exists() and cgroup.usage.exists()), None)
