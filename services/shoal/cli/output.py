"""How answers look: a table for people, JSON or YAML with the same content for programs."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import yaml

from shoal.cli.options import Format
from shoal.core.job import Results
from shoal.sdk import JobView, ParameterServerView, SnapshotView, WorkerView

Document = Mapping[str, Any]


def show(document: Document | Sequence[Document], output: Format, columns: Mapping[str, str]) -> None:
    """To stdout. `columns` maps the table's headings to keys of the documents."""
    match output:
        case Format.JSON:
            print(json.dumps(document, indent=2))
        case Format.YAML:
            print(yaml.safe_dump(document, sort_keys=False), end="")
        case Format.TABLE:
            rows = [document] if isinstance(document, Mapping) else document
            _print_table(list(columns), [[_text(row.get(key)) for key in columns.values()] for row in rows])


def show_one(document: Document, output: Format) -> None:
    """One thing with all its fields, one per line."""
    if output is not Format.TABLE:
        show(document, output, {})
        return
    width = max(map(len, document), default=0)
    for key, value in document.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            print(f"{key}:")
            headings = list(value[0])
            _print_table(
                [f"  {heading}" for heading in headings], [["  " + _text(v) for v in e.values()] for e in value]
            )
        elif isinstance(value, Mapping):
            print(f"{key}:")
            print("".join(f"  {line}\n" for line in yaml.safe_dump(value, sort_keys=False).splitlines()), end="")
        else:
            print(f"{key:<{width}}  {_text(value)}")


def say(text: str) -> None:
    """A line beside the answer: to stderr."""
    print(text, file=sys.stderr, flush=True)


def job_document(job: JobView) -> dict[str, Any]:
    return {
        "job_id": job.job_id,
        "name": job.name,
        "phase": job.phase.value,
        "reason": job.reason,
        "message": job.message,
        "step": job.step,
        "total_steps": job.total_steps,
        "loss": job.loss,
        "samples": job.samples,
        "samples_per_second": round(job.samples_per_second, 1),
        "attempt": job.attempt,
        "failures": job.failures,
        "priority": job.priority,
        "shards": job.shards,
        "workers": [asdict(share) for share in job.workers],
        "evaluations": [asdict(evaluation) for evaluation in job.evaluations],
        "results": results_document(job.results),
        "submitted": _moment(job.submitted_at),
        "started": _moment(job.started_at),
        "finished": _moment(job.finished_at),
    }


def described_document(job: JobView) -> dict[str, Any]:
    """With everything that is too long for a list."""
    events = [
        {
            "at": _moment(event.at),
            "attempt": event.attempt,
            "phase": event.phase.value,
            "reason": event.reason,
            "message": event.message,
        }
        for event in job.events
    ]
    return {**job_document(job), "events": events, "spec": job.spec}


def results_document(results: Results | None) -> dict[str, Any] | None:
    if results is None:
        return None
    return {
        "success": results.success,
        "accuracy": results.accuracy,
        "loss": results.loss,
        "steps": results.steps,
        "samples": results.samples,
        "weights_sha256": results.weights_sha256,
        "metrics": dict(results.metrics),
        "errors": list(results.errors),
    }


def job_row(job: JobView) -> dict[str, Any]:
    """The columns of a list of jobs, in words."""
    accuracy = job.results.accuracy if job.results else job.evaluations[-1].accuracy if job.evaluations else None
    return {
        **job_document(job),
        "progress": f"{job.step}/{job.total_steps or '?'}",
        "loss_text": "" if job.loss is None else f"{job.loss:.4f}",
        "accuracy_text": "" if accuracy is None else f"{accuracy:.4f}",
        "worker_count": len(job.workers),
        "age": _age(job.submitted_at),
    }


JOB_COLUMNS = {
    "JOB": "job_id",
    "NAME": "name",
    "PHASE": "phase",
    "STEP": "progress",
    "LOSS": "loss_text",
    "ACCURACY": "accuracy_text",
    "WORKERS": "worker_count",
    "SHARDS": "shards",
    "AGE": "age",
}


def worker_document(worker: WorkerView) -> dict[str, Any]:
    return {
        "worker_id": worker.worker_id,
        "state": worker.state,
        "host": worker.host,
        "port": worker.port,
        "gpu": worker.capabilities.has_gpu,
        "models": sorted(worker.capabilities.supported_models),
        "cpu_percent": round(worker.load.cpu_percent, 1),
        "memory_percent": round(worker.load.memory_percent, 1),
        "jobs": list(worker.job_ids),
        "max_concurrent_jobs": worker.capabilities.max_concurrent_jobs,
        "seconds_since_heartbeat": round(worker.seconds_since_heartbeat, 1),
    }


WORKER_COLUMNS = {
    "WORKER": "worker_id",
    "STATE": "state",
    "HOST": "host",
    "GPU": "gpu",
    "CPU%": "cpu_percent",
    "MEM%": "memory_percent",
    "JOBS": "jobs",
    "SLOTS": "max_concurrent_jobs",
    "HEARD": "seconds_since_heartbeat",
}


def server_document(server: ParameterServerView) -> dict[str, Any]:
    return {
        "server_id": server.server_id,
        "state": server.state,
        "host": server.host,
        "port": server.port,
        "jobs": list(server.job_ids),
        "seconds_since_heartbeat": round(server.seconds_since_heartbeat, 1),
    }


SERVER_COLUMNS = {
    "SERVER": "server_id",
    "STATE": "state",
    "HOST": "host",
    "PORT": "port",
    "JOBS": "jobs",
    "HEARD": "seconds_since_heartbeat",
}


def snapshot_document(snapshot: SnapshotView) -> dict[str, Any]:
    return {
        "step": snapshot.step,
        "at": _moment(snapshot.at),
        "attempt": snapshot.attempt,
        "current": snapshot.current,
        "size": snapshot.size,
        "damaged": snapshot.damaged,
        "files": [asdict(file) for file in snapshot.files],
    }


def snapshot_row(snapshot: SnapshotView) -> dict[str, Any]:
    return {**snapshot_document(snapshot), "file_count": len(snapshot.files), "damaged": bool(snapshot.damaged)}


SNAPSHOT_COLUMNS = {
    "STEP": "step",
    "AT": "at",
    "ATTEMPT": "attempt",
    "CURRENT": "current",
    "FILES": "file_count",
    "BYTES": "size",
    "DAMAGED": "damaged",
}


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for cells in (headings, *rows):
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip())


def _text(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case list():
            return ",".join(map(str, value)) or "-"
        case float():
            return f"{value:.6g}"
        case _:
            return str(value)


def _moment(at: float | None) -> str | None:
    return None if at is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def _age(since: float) -> str:
    seconds = max(time.time() - since, 0)
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"
