"""The processes of a benchmark: real parameter servers, and participants that print one JSON report each."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.process.allocator import keep_freed_memory
from shoal.process.logs import configure_logs
from shoal.ps.app import ParameterServer
from shoal.ps.settings import PsSettings

_NO_MASTER = "127.0.0.1:1"


def start(module: str, *arguments: object) -> "subprocess.Popen[str]":
    """`python -m tests.benchmarks.MODULE ARGUMENTS`."""
    return subprocess.Popen(
        [sys.executable, "-m", f"tests.benchmarks.{module}", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def reports_of(processes: "list[subprocess.Popen[str]]") -> list[dict[str, Any]]:
    """What each of them printed at its end."""
    return [json.loads(process.communicate(timeout=300)[0]) for process in processes]


@dataclass(frozen=True, kw_only=True)
class ShardProcess:
    port: int
    metrics_port: int
    pid: int


@contextlib.contextmanager
def shard_processes(spec_json: str, count: int) -> Iterator[list[ShardProcess]]:
    """`count` parameter servers that hold the shares of job "bench"."""
    processes = [start("processes", index, count, spec_json) for index in range(count)]
    try:
        yield [
            ShardProcess(**json.loads(process.stdout.readline())) for process in processes if process.stdout is not None
        ]
    finally:
        for process in processes:
            process.communicate(timeout=60)


def _serve(index: int, count: int, spec_json: str) -> None:
    """One parameter server; ends when its standard input closes."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--port", "0", "--metrics-port", "0", "--master", _NO_MASTER, "--data-dir", str(Path(folder))]
        server = ParameterServer(PsSettings.load(options))
        server.shares.create(job_id="bench", attempt=1, spec_json=spec_json, index=index, shards=count)
        print(json.dumps({"port": server.port, "metrics_port": server.metrics_port, "pid": os.getpid()}), flush=True)
        sys.stdin.read()
        server.close()


if __name__ == "__main__":
    keep_freed_memory()  # as the role's own main does
    configure_logs(log_format="console", level="error")
    _serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
