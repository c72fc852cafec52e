"""Follows a running attempt: its steps, losses and evaluations, as shard 0 tells them."""

import asyncio

from shoal.core.errors import NotFound, ShoalError, Stale, Unavailable
from shoal.core.job import Phase
from shoal.master import reasons
from shoal.master.clients.shards import ShardClient, ShardProgress
from shoal.master.lifecycle import transitions
from shoal.master.lifecycle.endings import Endings
from shoal.master.lifecycle.live import LiveJobs, Run
from shoal.master.membership.members import Members
from shoal.master.settings import MasterSettings
from shoal.master.store.base import JobStore
from shoal.master.tasks import Tasks
from shoal.metrics.master import MasterMetrics
from shoal.process.clock import Clock
from shoal.process.logs import get_logger

_RETRY_SECONDS = 0.2  # between tries of a call to a server that does not answer


class Follower:
    def __init__(
        self,
        *,
        live: LiveJobs,
        endings: Endings,
        store: JobStore,
        members: Members,
        shards: ShardClient,
        tasks: Tasks,
        metrics: MasterMetrics,
        clock: Clock,
        settings: MasterSettings,
    ) -> None:
        self._live = live
        self._endings = endings
        self._store = store
        self._members = members
        self._shards = shards
        self._tasks = tasks
        self._metrics = metrics
        self._clock = clock
        self._settings = settings
        self._log = get_logger()

    def start(self, run: Run) -> None:
        self._tasks.start(f"progress:{run.job_id}:{run.attempt}", self._follow(run))

    async def _follow(self, run: Run) -> None:
        """Long-polls shard 0 until the attempt ends."""
        while self._live.is_current(run) and not run.closing:
            try:
                answer = await self._shards.progress(
                    run.shards[0],
                    job_id=run.job_id,
                    from_version=run.progress.version,
                    known_evaluations=len(run.progress.evaluations),
                    wait_seconds=self._settings.progress_wait_seconds,
                )
            except NotFound:
                run.gone.add(run.shards[0].server_id)
                self._live.kick()
                return
            except Unavailable:
                server_id = run.shards[0].server_id
                self._members.connection_broke(server_id, run.incarnations.get(server_id, ""))
                self._live.kick()
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            except ShoalError as error:
                self._log.warning("progress_not_known", job_id=run.job_id, attempt=run.attempt, error=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            if answer.attempt == run.attempt and self._live.is_current(run):
                await self.take(run, answer)
                if answer.failure:
                    await self._endings.fail(run, errors=(answer.failure,), reason=reasons.SHARD_FAILED, fatal=False)
                    return
            await asyncio.sleep(self._settings.progress_interval_seconds)

    async def take(self, run: Run, answer: ShardProgress) -> None:
        """Takes in a shard's answer. What the store cannot take now is tried again with the next answer."""
        change = run.progress.add(answer, now=self._clock.monotonic())
        run.unsaved_evaluations |= change.evaluations
        self._metrics.steps.inc(change.steps)
        self._metrics.samples.inc(change.samples)
        try:
            if run.progress.version > run.first_version and self._live.job_of(run).phase is Phase.STARTING:
                await self._live.apply(
                    transitions.first_step(
                        run.job_id,
                        attempt=run.attempt,
                        at=self._clock.unix(),
                        message=f"attempt {run.attempt} has committed a step",
                    )
                )
            if run.unsaved_evaluations:
                await self._store.save_evaluations(
                    run.job_id, attempt=run.attempt, evaluations=run.progress.evaluations
                )
                run.unsaved_evaluations = False
        except Unavailable as error:
            self._log.warning("store_unavailable", job_id=run.job_id, error=str(error))
        except Stale as error:
            self._log.info("progress_of_ended_attempt", job_id=run.job_id, attempt=run.attempt, error=str(error))
        if not self._live.is_current(run):
            return
        if change.any:
            self._metrics.job_step.labels(job_id=run.job_id).set(run.progress.version)
            self._metrics.job_loss.labels(job_id=run.job_id).set(run.progress.last_loss)
            if run.progress.evaluations:
                accuracy = run.progress.evaluations[-1].accuracy
                self._metrics.job_accuracy.labels(job_id=run.job_id).set(accuracy)
            self._live.touch(run)
        rate = run.progress.samples_per_second(now=self._clock.monotonic())
        self._metrics.job_samples_per_second.labels(job_id=run.job_id).set(rate)
