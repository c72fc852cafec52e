"""Any job store, with the time of each operation measured, and an ear for the end of its master's lead."""

import contextlib
import time
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence

from shoal.core.errors import Deposed, Unavailable
from shoal.core.job import Event, Job, Phase
from shoal.master.store.base import (
    Evaluation,
    JobStore,
    LogLine,
    Manifest,
    Placement,
    Submission,
    Summary,
    Transition,
)
from shoal.metrics.master import MasterMetrics


class TimedJobStore(JobStore):
    def __init__(self, store: JobStore, *, metrics: MasterMetrics, deposed: Callable[[Deposed], None]) -> None:
        self._store = store
        self._metrics = metrics
        self._deposed = deposed

    @contextlib.contextmanager
    def _timed(self, operation: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        except Deposed as error:
            self._deposed(error)
            raise
        except Unavailable:
            self._metrics.store_errors.inc()
            raise
        finally:
            self._metrics.store_seconds.labels(operation=operation).observe(time.perf_counter() - begun)

    async def submit(self, job: Job, *, spec_hash: str) -> Submission:
        with self._timed("submit"):
            return await self._store.submit(job, spec_hash=spec_hash)

    async def get(self, job_id: str) -> Job:
        with self._timed("get"):
            return await self._store.get(job_id)

    async def jobs(self, *, phases: Collection[Phase] = (), limit: int = 0) -> tuple[Job, ...]:
        with self._timed("jobs"):
            return await self._store.jobs(phases=phases, limit=limit)

    async def apply(self, transition: Transition) -> Job:
        with self._timed("apply"):
            return await self._store.apply(transition)

    async def place(self, job_id: str, *, attempt: int, placement: Placement, event: Event | None) -> None:
        with self._timed("place"):
            await self._store.place(job_id, attempt=attempt, placement=placement, event=event)

    async def placements(self) -> dict[str, Placement]:
        with self._timed("placements"):
            return await self._store.placements()

    async def add_event(self, job_id: str, event: Event) -> None:
        with self._timed("add_event"):
            await self._store.add_event(job_id, event)

    async def events(self, job_id: str) -> tuple[Event, ...]:
        with self._timed("events"):
            return await self._store.events(job_id)

    async def save_evaluations(self, job_id: str, *, attempt: int, evaluations: Sequence[Evaluation]) -> None:
        with self._timed("save_evaluations"):
            await self._store.save_evaluations(job_id, attempt=attempt, evaluations=evaluations)

    async def evaluations(self, job_id: str) -> tuple[Evaluation, ...]:
        with self._timed("evaluations"):
            return await self._store.evaluations(job_id)

    async def append_logs(self, job_id: str, lines: Sequence[LogLine]) -> None:
        with self._timed("append_logs"):
            await self._store.append_logs(job_id, lines)

    async def logs(self, job_id: str, *, after: int, limit: int) -> tuple[LogLine, ...]:
        with self._timed("logs"):
            return await self._store.logs(job_id, after=after, limit=limit)

    async def summaries(self, job_ids: Collection[str]) -> dict[str, Summary]:
        with self._timed("summaries"):
            return await self._store.summaries(job_ids)

    async def losses(self, job_id: str) -> "array[float]":
        with self._timed("losses"):
            return await self._store.losses(job_id)

    async def add_manifest(self, manifest: Manifest, *, kept: int) -> None:
        with self._timed("add_manifest"):
            await self._store.add_manifest(manifest, kept=kept)

    async def manifests(self, job_id: str) -> tuple[Manifest, ...]:
        with self._timed("manifests"):
            return await self._store.manifests(job_id)

    async def condemn_manifest(self, manifest: Manifest, *, attempt: int, event: Event) -> None:
        with self._timed("condemn_manifest"):
            await self._store.condemn_manifest(manifest, attempt=attempt, event=event)

    async def forget_manifests(self, *, ended_before: float) -> tuple[Job, ...]:
        with self._timed("forget_manifests"):
            return await self._store.forget_manifests(ended_before=ended_before)

    async def prune(self, *, ended_kept: int) -> tuple[Job, ...]:
        with self._timed("prune"):
            return await self._store.prune(ended_kept=ended_kept)
