"""How an attempt or a job ends before it is done: failure, a lost share, a user's wish.

Races (a completion against a cancel, a failure against a lost server) are settled by the store's fence: whoever comes
second gets `Stale`, and does nothing.
"""

import asyncio
from array import array
from dataclasses import dataclass

from shoal.core.errors import Refused, Stale, Unavailable
from shoal.core.job import Job, Phase, Results
from shoal.master.lifecycle import transitions
from shoal.master.lifecycle.live import LiveJobs, Run
from shoal.master.lifecycle.sweeping import Sweeper
from shoal.master.store.base import JobStore, Summary
from shoal.metrics.master import MasterMetrics
from shoal.process.clock import Clock
from shoal.process.logs import get_logger

_RETRY_SECONDS = 0.2  # between tries of a store that cannot be used
_MESSAGE_CHARACTERS = 2_000  # of a failure kept as an event; a traceback's end fits


@dataclass(frozen=True, kw_only=True, slots=True)
class Cancellation:
    phase: Phase  # afterwards
    message: str


class Endings:
    def __init__(
        self, *, live: LiveJobs, store: JobStore, sweeper: Sweeper, metrics: MasterMetrics, clock: Clock
    ) -> None:
        self._live = live
        self._store = store
        self._sweeper = sweeper
        self._metrics = metrics
        self._clock = clock
        self._log = get_logger()

    async def fail(self, run: Run, *, errors: tuple[str, ...], reason: str, fatal: bool) -> Job | None:
        """Ends an attempt that failed. None: it had ended before."""
        job = self._live.job(run.job_id)
        if job is None or not self._live.is_current(run):
            return None
        message = "\n".join(errors)[-_MESSAGE_CHARACTERS:]
        now = self._clock.unix()
        last = fatal or job.failures + 1 >= job.requirements.max_attempts
        if last:
            transition = transitions.fail(
                run.job_id,
                attempt=run.attempt,
                results=Results(success=False, errors=errors, steps=run.progress.version, samples=run.progress.samples),
                at=now,
                reason=reason,
                message=message,
                summary=run.progress.summary,
                losses=run.progress.losses,
            )
        else:
            transition = transitions.recover(
                run.job_id, attempt=run.attempt, at=now, reason=reason, message=message, failed=True
            )
            self._live.delay_next_attempt(job)
        while True:
            try:
                job = await self._live.apply(transition)
                break
            except Stale as error:
                self._log.info("failure_of_ended_attempt", job_id=run.job_id, attempt=run.attempt, error=str(error))
                return None
            except Unavailable as error:
                self._log.warning("store_unavailable", job_id=run.job_id, error=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
        self._metrics.attempts_ended_early.labels(reason=reason).inc()
        self._log.warning("attempt_failed", job_id=run.job_id, attempt=run.attempt, reason=reason, detail=message)
        shards = self._live.shards_of(job)
        self._live.end_run(run)
        if last:
            self._live.drop(run.job_id, shards)
            self._sweeper.after(job)
        return job

    async def recover(self, run: Run, *, reason: str, message: str) -> None:
        """Ends an attempt whose weights are gone. That is nobody's fault but the machines': always another attempt."""
        try:
            await self._live.apply(
                transitions.recover(
                    run.job_id, attempt=run.attempt, at=self._clock.unix(), reason=reason, message=message
                )
            )
        except Stale as error:
            self._log.info("attempt_superseded", job_id=run.job_id, attempt=run.attempt, error=str(error))
            return
        self._metrics.attempts_ended_early.labels(reason=reason).inc()
        self._log.warning("attempt_ends", job_id=run.job_id, attempt=run.attempt, reason=reason, detail=message)
        self._live.end_run(run)

    async def pause(self, job_id: str) -> Job:
        """Its workers go to others at once; its weights stay where they are. Idempotent.

        Raises NotFound, or Refused for a job that has ended, or whose training has.
        """
        while True:
            job = self._live.job(job_id) or await self._store.get(job_id)
            if job.phase.ended:
                raise Refused(f"job {job_id} has ended as {job.phase}: there is nothing to pause")
            if job.requirements.external:
                raise Refused(f"job {job_id} is trained by its own clients: they pause when they do not push")
            if job.paused:
                return job
            if job.results is not None:
                raise Refused(f"job {job_id} has been trained: only its final snapshot is being written")
            try:
                return await self._live.apply(
                    transitions.pause(job, at=self._clock.unix(), message="paused on request")
                )
            except Stale:
                continue  # it changed meanwhile: once more with what it is now

    async def resume(self, job_id: str) -> Job:
        """Lets a paused job go on; nothing happens to one that is not. Raises NotFound, or Refused for an ended one."""
        while True:
            job = self._live.job(job_id) or await self._store.get(job_id)
            if job.phase.ended:
                raise Refused(f"job {job_id} has ended as {job.phase}: it cannot go on")
            if not job.paused:
                return job
            try:
                return await self._live.apply(
                    transitions.resume(job, at=self._clock.unix(), message="resumed on request")
                )
            except Stale:
                continue

    async def cancel(self, job_id: str) -> Cancellation:
        """Ends a live job. Raises NotFound; says so if the job had ended."""
        job = self._live.job(job_id) or await self._store.get(job_id)
        if job.phase.ended:
            return Cancellation(phase=job.phase, message=f"job {job_id} had already ended as {job.phase}")
        run = self._live.run(job_id)
        try:
            job = await self._live.apply(
                transitions.cancel(
                    job_id,
                    at=self._clock.unix(),
                    message="cancelled on request",
                    summary=run.progress.summary if run else Summary(),
                    losses=run.progress.losses if run else array("d"),
                )
            )
        except Stale:
            job = await self._store.get(job_id)
            return Cancellation(phase=job.phase, message=f"job {job_id} had already ended as {job.phase}")
        shards = self._live.shards_of(job)
        if (run := self._live.run(job_id)) is not None:  # it may have begun meanwhile
            self._live.end_run(run)
        self._live.drop(job_id, shards)
        self._sweeper.after(job)
        return Cancellation(phase=Phase.CANCELLED, message=f"job {job_id} is cancelled")
