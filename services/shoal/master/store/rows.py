"""Between nouns and rows: what is only read and written whole is JSON."""

import json
import sys
from array import array
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from shoal.core.job import Job, Phase, Requirements, Results, ShardAddress, ShardFile
from shoal.master.store.base import Manifest, Placement, Summary


def job_to_row(job: Job, *, spec_hash: str) -> dict[str, Any]:
    return {
        "job_id": job.job_id,
        "name": job.name,
        "spec_json": job.spec_json,
        "spec_hash": spec_hash,
        "requirements": json.dumps(asdict(job.requirements)),
        "phase": job.phase.value,
        "reason": job.reason,
        "message": job.message,
        "attempt": job.attempt,
        "submitted_at": job.submitted_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "idempotency_key": job.idempotency_key or None,
        "servers": json.dumps(job.servers),
        "results": None if job.results is None else results_to_json(job.results),
        "files": files_to_json(job.files),
        "paused": job.paused,
        "failures": job.failures,
    }


def job_from_row(row: "sa.Row[Any]") -> Job:
    return Job(
        job_id=row.job_id,
        name=row.name,
        spec_json=row.spec_json,
        requirements=Requirements(**json.loads(row.requirements)),
        phase=Phase(row.phase),
        reason=row.reason,
        message=row.message,
        attempt=row.attempt,
        submitted_at=row.submitted_at,
        idempotency_key=row.idempotency_key or "",
        servers=tuple(json.loads(row.servers)),
        started_at=row.started_at,
        finished_at=row.finished_at,
        results=None if row.results is None else results_from_json(row.results),
        files=files_from_json(row.files),
        paused=row.paused,
        failures=row.failures,
    )


def results_to_json(results: Results) -> str:
    return json.dumps(asdict(results))


def results_from_json(text: str) -> Results:
    document = json.loads(text)
    return Results(**{**document, "errors": tuple(document["errors"])})


def files_to_json(files: tuple[ShardFile, ...]) -> str:
    return json.dumps([asdict(file) for file in files])


def files_from_json(text: str) -> tuple[ShardFile, ...]:
    return tuple(ShardFile(**entry) for entry in json.loads(text))


def manifest_to_row(manifest: Manifest) -> dict[str, Any]:
    return {
        "job_id": manifest.job_id,
        "step": manifest.step,
        "attempt": manifest.attempt,
        "files": files_to_json(manifest.files),
        "at": manifest.at,
        "damaged": manifest.damaged,
    }


def manifest_from_row(row: "sa.Row[Any]") -> Manifest:
    return Manifest(
        job_id=row.job_id,
        step=row.step,
        attempt=row.attempt,
        files=files_from_json(row.files),
        at=row.at,
        damaged=row.damaged,
    )


def placement_to_json(placement: Placement) -> str:
    return json.dumps(
        {
            "ranks": {worker_id: [ranks.start, ranks.stop] for worker_id, ranks in placement.ranks.items()},
            "shards": [asdict(shard) for shard in placement.shards],
        }
    )


def placement_from_json(text: str) -> Placement:
    document = json.loads(text)
    return Placement(
        ranks={worker_id: range(start, stop) for worker_id, (start, stop) in document["ranks"].items()},
        shards=tuple(ShardAddress(**entry) for entry in document["shards"]),
    )


def summary_to_json(summary: Summary) -> str:
    return json.dumps(asdict(summary))


def summary_from_json(text: str) -> Summary:
    return Summary(**json.loads(text))


def losses_to_bytes(losses: "array[float]") -> bytes:
    """Little-endian float64."""
    return _little_endian(losses).tobytes()


def losses_from_bytes(data: bytes) -> "array[float]":
    losses = array("d")
    losses.frombytes(data)
    return _little_endian(losses)


def _little_endian(losses: "array[float]") -> "array[float]":
    if sys.byteorder == "big":
        losses = losses[:]
        losses.byteswap()
    return losses
