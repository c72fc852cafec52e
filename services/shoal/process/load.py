"""How busy the machine (or the container) is."""

from pathlib import Path

import psutil

_CGROUP_FILES = (  # (limit, usage): cgroup v2, then v1
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
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
        machine = psutil.virtual_memory()
        for limit_file, usage_file in _CGROUP_FILES:
            if limit_file.exists() and usage_file.exists():
                limit = limit_file.read_text().strip()
                if limit.isdigit() and 0 < int(limit) < machine.total:
                    return min(100.0, 100.0 * int(usage_file.read_text()) / int(limit))
        return float(machine.percent)
