"""The end of training, as trainers and external clients report it, and the final snapshot that follows."""

import asyncio
from dataclasses import dataclass, replace

from shoal.core.errors import DeadlineExceeded, InvalidInput, NotFound, ShoalError, Stale, Unavailable
from shoal.core.job import Failure, Phase, Results, ShardFile
from shoal.master import reasons
from shoal.master.clients.shards import ShardClient, each, whole
from shoal.master.lifecycle import transitions
from shoal.master.lifecycle.endings import Endings
from shoal.master.lifecycle.following import Follower
from shoal.master.lifecycle.live import LiveJobs, Run
from shoal.master.lifecycle.sweeping import Sweeper
from shoal.master.membership.members import Members
from shoal.master.scheduling.grants import GrantBook
from shoal.master.settings import MasterSettings
from shoal.master.store.base import JobStore
from shoal.master.tasks import Tasks
from shoal.process.clock import Clock
from shoal.process.logs import get_logger

_RETRY_SECONDS = 0.2  # before the second try of a snapshot; doubles


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """What a trainer says at its end."""

    job_id: str
    worker_id: str
    incarnation: str
    attempt: int  # 0: a client without attempts
    results: Results
    failure: Failure = Failure.RETRIED


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """To a report. Not accepted: the reporter is wrong or stale, and must stop."""

    accepted: bool
    message: str


class Completions:
    def __init__(
        self,
        *,
        live: LiveJobs,
        endings: Endings,
        follower: Follower,
        store: JobStore,
        members: Members,
        grants: GrantBook,
        shards: ShardClient,
        sweeper: Sweeper,
        tasks: Tasks,
        clock: Clock,
        settings: MasterSettings,
    ) -> None:
        self._live = live
        self._endings = endings
        self._follower = follower
        self._store = store
        self._members = members
        self._grants = grants
        self._shards = shards
        self._sweeper = sweeper
        self._tasks = tasks
        self._clock = clock
        self._settings = settings
        self._log = get_logger()

    async def complete(self, report: Completion) -> Answer:
        """The end of a job, as a trainer or an external client reports it. Idempotent."""
        try:
            job = self._live.job(report.job_id) or await self._store.get(report.job_id)
        except NotFound as error:
            return Answer(accepted=False, message=str(error))
        if report.attempt not in (0, job.attempt):
            message = f"stale: attempt {report.attempt} of job {job.job_id} is not the current one, {job.attempt}"
            return Answer(accepted=False, message=message)
        if job.phase.ended:
            return Answer(accepted=True, message=f"job {job.job_id} had already ended as {job.phase}: nothing changed")
        run = self._live.run(job.job_id)
        if run is None or not run.ready or job.phase not in transitions.UNDER_WAY:
            return Answer(accepted=False, message=f"job {job.job_id} is {job.phase}: no attempt is running yet")
        if not job.requirements.external and (refusal := self._refusal_of(report)) is not None:
            return Answer(accepted=False, message=refusal)
        if job.results is not None:
            message = f"the results of job {job.job_id} had already been stored: nothing changed"
            return Answer(accepted=True, message=message)
        if not report.results.success:
            return await self._complete_badly(run, report)
        if not 0 <= report.results.accuracy <= 1:
            raise InvalidInput(f"accuracy {report.results.accuracy} is not within 0..1", field="results.accuracy")
        try:
            await self._live.apply(
                transitions.close_training(
                    job.job_id,
                    attempt=run.attempt,
                    results=report.results,
                    at=self._clock.unix(),
                    message=f"{report.worker_id or 'a client'} reports the end of training",
                )
            )
        except Stale as error:
            return Answer(accepted=False, message=f"stale: {error}")
        self.close(run)
        return Answer(accepted=True, message="the results are stored; the shards write the final snapshot")

    def _refusal_of(self, report: Completion) -> str | None:
        """Why this worker may not end the job: nothing from the dead."""
        if self._members.recognized(report.worker_id, report.incarnation) is None:
            return f"worker '{report.worker_id}' not recognized: register again"
        if report.attempt and not self._grants.holds(report.worker_id, report.job_id):
            return f"stale: worker {report.worker_id} holds no assignment of job {report.job_id}"
        return None

    async def _complete_badly(self, run: Run, report: Completion) -> Answer:
        errors = tuple(f"{report.worker_id}: {error}" for error in report.results.errors) or (
            f"{report.worker_id}: the trainer failed without saying why",
        )
        others = run.ranks.keys() - self._live.unfit(run) - {report.worker_id}
        if report.failure is Failure.KILLED and others:
            run.unfit[report.worker_id] = report.incarnation
            self._log.warning("worker_unfit", job_id=run.job_id, worker_id=report.worker_id, detail=errors[-1])
            self._live.kick()
            return Answer(accepted=True, message=f"other workers go on with attempt {run.attempt} of job {run.job_id}")
        fatal = report.failure is Failure.FATAL
        lost = () if fatal else await self._lost_shares(run)
        if lost:
            message = f"the share on {', '.join(lost)} is gone, says the end of a trainer: {errors[-1]}"
            await self._endings.recover(run, reason=reasons.PARAMETER_SERVER_LOST, message=message)
            return Answer(accepted=True, message=f"attempt {run.attempt} of job {run.job_id} has ended with its shard")
        job = await self._endings.fail(run, errors=errors, reason=reasons.TRAINER_FAILED, fatal=fatal)
        if job is None:
            return Answer(accepted=False, message=f"stale: attempt {run.attempt} of job {run.job_id} has ended")
        if job.phase is Phase.FAILED:
            return Answer(accepted=True, message=f"job {job.job_id} has failed: {job.message}")
        message = f"attempt {run.attempt} of job {job.job_id} has ended; the next one follows"
        return Answer(accepted=True, message=message)

    async def _lost_shares(self, run: Run) -> tuple[str, ...]:
        """Servers without the run's share. A trainer notices a dead shard long before its lease ends."""
        lost: list[str] = []
        for shard in run.shards:
            try:
                await self._shards.progress(shard, job_id=run.job_id, from_version=run.progress.version)
            except NotFound:
                lost.append(shard.server_id)
            except (Unavailable, DeadlineExceeded):
                self._members.connection_broke(shard.server_id, run.incarnations.get(shard.server_id, ""))
                lost.append(shard.server_id)
            except ShoalError as error:  # it is there, and says something else: no sign of a loss
                self._log.info("share_not_asked", job_id=run.job_id, server_id=shard.server_id, error=str(error))
        return tuple(lost)

    def close(self, run: Run) -> None:
        run.closing = True
        for kind in ("progress", "snapshots"):
            self._tasks.cancel(f"{kind}:{run.job_id}:{run.attempt}")
        self._tasks.start(f"finish:{run.job_id}:{run.attempt}", self._finish(run))
        self._live.touch(run)

    async def _finish(self, run: Run) -> None:
        """Snapshots every shard, and ends the job in one stored step."""
        tries = 0
        while self._live.is_current(run):
            try:
                answer = await self._shards.progress(
                    run.shards[0], job_id=run.job_id, from_version=run.progress.version
                )
                await self._follower.take(run, answer)
                parts = await each(
                    run.shards, lambda shard: self._shards.snapshot(shard, job_id=run.job_id, attempt=run.attempt)
                )
                await self._succeed(run, whole(parts))
                return
            except Stale as error:
                self._log.info("finish_superseded", job_id=run.job_id, attempt=run.attempt, error=str(error))
                return
            except (Unavailable, DeadlineExceeded) as error:
                # A server that is lost ends the attempt; the scheduler sees to that.
                self._log.info("snapshot_not_written_yet", job_id=run.job_id, attempt=run.attempt, error=str(error))
            except ShoalError as error:
                tries += 1
                self._log.error("snapshot_failed", job_id=run.job_id, attempt=run.attempt, error=str(error))
                if tries >= self._settings.snapshot_tries:
                    message = f"the final snapshot failed {tries} times: {error}"
                    await self._endings.fail(run, errors=(message,), reason=reasons.SNAPSHOT_FAILED, fatal=True)
                    return
            await asyncio.sleep(_RETRY_SECONDS * 2 ** min(tries, 5))

    async def _succeed(self, run: Run, files: tuple[ShardFile, ...]) -> None:
        results = self._live.job_of(run).results
        assert results is not None
        progress = run.progress
        results = replace(results, steps=results.steps or progress.version, samples=results.samples or progress.samples)
        job = await self._live.apply(
            transitions.succeed(
                run.job_id,
                attempt=run.attempt,
                results=results,
                files=files,
                at=self._clock.unix(),
                summary=replace(progress.summary, step=results.steps, samples=results.samples),
                losses=progress.losses,
                message=f"accuracy {results.accuracy:.4f}, loss {results.loss:.4f} after {results.steps} steps",
            )
        )
        self._live.end_run(run)
        self._live.drop(run.job_id, run.shards)
        self._sweeper.after(job)
