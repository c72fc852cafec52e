"""The life of each attempt: begin, follow, move, finish, fail, cancel. Each change is stored first, then acted on.

Races (a completion against a cancel, a failure against a lost server) are settled by the store's fence: whoever comes
second gets `Stale`, and does nothing.
"""

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from shoal.core.errors import (
    DeadlineExceeded,
    Forbidden,
    InvalidInput,
    NotFound,
    ShoalError,
    Stale,
    Unavailable,
)
from shoal.core.job import Event, Grant, Job, Phase, Results, ShardAddress, ShardFile
from shoal.master import reasons, transitions
from shoal.master.changes import Changes
from shoal.master.grants import GrantBook, GrantChanges
from shoal.master.members import Member, Members, Role
from shoal.master.progress import ProgressLog, ShardProgress
from shoal.master.settings import MasterSettings
from shoal.master.shards import ShardClient
from shoal.master.store.base import LIVE, JobStore, Placement, Summary, Transition
from shoal.master.tasks import Tasks
from shoal.master.workers import WorkerClient
from shoal.metrics.master import MasterMetrics
from shoal.process.clock import Clock
from shoal.process.logs import get_logger

_RETRY_SECONDS = 0.2  # between tries of a call to a server that does not answer
_T = TypeVar("_T")
_MESSAGE_CHARACTERS = 2_000  # of a failure kept as an event; a traceback's end fits


@dataclass(kw_only=True, slots=True)
class Run:
    """A begun attempt, in memory."""

    job_id: str
    attempt: int
    servers: tuple[str, ...]
    progress: ProgressLog
    ranks: dict[str, range] = field(default_factory=dict)
    moved_at: float = 0.0  # monotonic seconds
    shards: tuple[ShardAddress, ...] = ()
    ready: bool = False  # the shares exist, so grants may go out
    closing: bool = False  # results are in
    first_version: int = 0  # of the shares when the attempt began: what it commits lies above
    incarnations: dict[str, str] = field(default_factory=dict)  # of the servers that made the shares
    gone: set[str] = field(default_factory=set)  # servers that said that they have no such share
    probed: set[str] = field(default_factory=set)
    unsaved_evaluations: bool = False
    publishing: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """What a trainer says at its end."""

    job_id: str
    worker_id: str
    incarnation: str
    attempt: int  # 0: a client without attempts
    results: Results


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """To a report. Not accepted: the reporter is wrong or stale, and must stop."""

    accepted: bool
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Cancellation:
    phase: Phase  # afterwards
    message: str


class Attempts:
    """The only owner of live jobs and their runs."""

    def __init__(
        self,
        *,
        store: JobStore,
        members: Members,
        grants: GrantBook,
        shards: ShardClient,
        workers: WorkerClient,
        changes: Changes,
        tasks: Tasks,
        metrics: MasterMetrics,
        clock: Clock,
        settings: MasterSettings,
        kick: Callable[[], None],
    ) -> None:
        self._store = store
        self._members = members
        self._grants = grants
        self._shards = shards
        self._workers = workers
        self._changes = changes
        self._tasks = tasks
        self._metrics = metrics
        self._clock = clock
        self._settings = settings
        self._kick = kick
        self._log = get_logger()
        self._jobs: dict[str, Job] = {}
        self._runs: dict[str, Run] = {}
        self._not_before: dict[str, float] = {}
        self._drops = 0

    # What is known.

    @property
    def live(self) -> tuple[Job, ...]:
        return tuple(self._jobs.values())

    def job(self, job_id: str) -> Job | None:
        """A live one."""
        return self._jobs.get(job_id)

    def run(self, job_id: str) -> Run | None:
        return self._runs.get(job_id)

    def not_before(self, job_id: str) -> float:
        return self._not_before.get(job_id, 0.0)

    def lost_shares(self, run: Run) -> tuple[str, ...]:
        """Servers whose share of this attempt is gone: the process died, or says so."""
        return tuple(server_id for server_id in run.servers if server_id in run.gone or self._is_lost(run, server_id))

    def _is_lost(self, run: Run, server_id: str) -> bool:
        member = self._members.get(server_id)
        if member is None or not member.present:
            return True
        made_by = run.incarnations.get(server_id)
        return made_by is not None and member.known and member.incarnation != made_by

    # From the store.

    async def load(self) -> None:
        """Takes up every live job. What ran goes on with the same attempt, once its members have been heard."""
        placements = await self._store.placements()
        for job in await self._store.jobs(phases=LIVE):
            self._jobs[job.job_id] = job
            if job.phase in transitions.UNDER_WAY:
                self._adopt(job, placements.get(job.job_id))

    def _adopt(self, job: Job, placement: Placement | None) -> None:
        run = self._new_run(job)
        for server_id in job.servers:
            self._members.expect(server_id, Role.PARAMETER_SERVER)
        if placement is None:  # it had not come to the point of having shares
            self._tasks.start(f"begin:{run.job_id}:{run.attempt}", self._create_shares(run))
            return
        run.ranks = dict(placement.ranks)
        run.shards = placement.shards
        run.progress.from_zero = False
        run.ready = True
        for worker_id in run.ranks:
            self._members.expect(worker_id, Role.WORKER)
        self._hand_out(run)
        if job.results is not None:
            self._close(run)
        else:
            self._tasks.start(f"progress:{run.job_id}:{run.attempt}", self._follow(run))
        self._log.info("job_adopted", job_id=job.job_id, attempt=job.attempt, workers=sorted(run.ranks))

    def added(self, job: Job) -> None:
        """A job has just been stored."""
        self._jobs[job.job_id] = job
        self._kick()

    def probe_adopted(self) -> None:
        """Asks servers that came back after the master's restart whether they still have the shares."""
        for run in self._runs.values():
            for shard in run.shards:
                member = self._members.get(shard.server_id)
                unproven = shard.server_id not in run.incarnations and shard.server_id not in run.probed
                if run.ready and unproven and member is not None and member.known and member.present:
                    run.probed.add(shard.server_id)
                    self._tasks.start(
                        f"probe:{run.job_id}:{run.attempt}:{shard.index}", self._probe(run, shard, member)
                    )

    async def _probe(self, run: Run, shard: ShardAddress, member: Member) -> None:
        where = replace(shard, host=member.host, port=member.port)
        try:
            answer = await self._shards.progress(where, job_id=run.job_id)
        except NotFound:
            run.gone.add(shard.server_id)
            self._kick()
            return
        except ShoalError as error:
            self._log.info("probe_failed", job_id=run.job_id, server_id=shard.server_id, error=str(error))
            run.probed.discard(shard.server_id)
            return
        if answer.attempt != run.attempt:
            run.gone.add(shard.server_id)
            self._kick()
        else:
            run.incarnations[shard.server_id] = member.incarnation

    # Begin.

    async def begin(
        self, job_id: str, *, servers: tuple[str, ...], ranks: Mapping[str, range], reason: str, message: str
    ) -> None:
        """Stores that the next attempt begins, and starts to make its shares."""
        job = self._jobs[job_id]
        job = await self._apply(
            transitions.begin(job, servers=servers, at=self._clock.unix(), reason=reason, message=message)
        )
        run = self._new_run(job)
        run.ranks = dict(ranks)
        run.moved_at = self._clock.monotonic()
        self._tasks.start(f"begin:{run.job_id}:{run.attempt}", self._create_shares(run))
        self._log.info("attempt_begins", job_id=job_id, attempt=job.attempt, servers=servers, workers=sorted(ranks))

    def _new_run(self, job: Job) -> Run:
        run = Run(
            job_id=job.job_id,
            attempt=job.attempt,
            servers=job.servers,
            closing=job.results is not None,
            progress=ProgressLog(
                rate_window_seconds=self._settings.rate_window_seconds,
                loss_steps_kept=self._settings.loss_steps_kept,
            ),
        )
        self._runs[job.job_id] = run
        return run

    async def _create_shares(self, run: Run) -> None:
        """Makes a share on each server, however long it takes them to answer; then hands out the grants."""
        job = self._jobs[run.job_id]
        while self._is_current(run):
            try:
                await self._try_to_create(run, job)
                break
            except (Unavailable, DeadlineExceeded) as error:
                self._log.info("shares_not_created_yet", job_id=run.job_id, attempt=run.attempt, error=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
            except ShoalError as error:
                fatal = isinstance(error, InvalidInput | Forbidden)
                await self._fail(run, errors=(str(error),), reason=reasons.SHARD_FAILED, fatal=fatal)
                return
        if self._is_current(run):
            self._tasks.start(f"progress:{run.job_id}:{run.attempt}", self._follow(run))

    async def _try_to_create(self, run: Run, job: Job) -> None:
        shards: list[ShardAddress] = []
        incarnations: dict[str, str] = {}
        for index, server_id in enumerate(run.servers):
            member = self._members.get(server_id)
            if member is None or not member.known or not member.present:
                raise Unavailable(f"parameter server {server_id} has not registered")
            shards.append(ShardAddress(server_id=server_id, host=member.host, port=member.port, index=index))
            incarnations[server_id] = member.incarnation

        async def create(shard: ShardAddress) -> int:
            return await self._shards.create_share(
                shard, job_id=job.job_id, attempt=run.attempt, spec_json=job.spec_json, shards=len(shards)
            )

        run.incarnations = incarnations
        versions = await _each(shards, create)
        if max(versions) - min(versions) > 1:
            # Shards keep one step of each other (replay window). More apart: one has lost its share, and all go back.
            self._log.info("shares_begin_again", job_id=job.job_id, attempt=run.attempt, versions=versions)
            await _each(shards, lambda shard: self._shards.drop_share(shard, job_id=job.job_id, delete_files=True))
            versions = await _each(shards, create)
        run.first_version = min(versions)
        run.progress.from_zero = run.first_version == 0
        async with run.publishing:
            if not self._is_current(run):
                return
            run.shards = tuple(shards)
            placement = Placement(ranks=dict(run.ranks), shards=run.shards)
            await self._store.place(job.job_id, attempt=run.attempt, placement=placement, event=None)
            run.ready = True
            self._hand_out(run)

    # Grants.

    async def move(self, job_id: str, *, ranks: Mapping[str, range], reason: str, message: str) -> None:
        """Spreads the ranks of a running attempt anew."""
        run = self._runs[job_id]
        async with run.publishing:
            if not self._is_current(run):
                return
            if run.ready:
                event = Event(at=self._clock.unix(), phase=self._jobs[job_id].phase, reason=reason, message=message)
                placement = Placement(ranks=dict(ranks), shards=run.shards)
                await self._store.place(job_id, attempt=run.attempt, placement=placement, event=event)
            run.ranks = dict(ranks)
            run.moved_at = self._clock.monotonic()
            if run.ready:
                self._hand_out(run)
        shown = {worker_id: f"{hosted.start}-{hosted.stop - 1}" for worker_id, hosted in ranks.items()}
        self._log.info("ranks_move", job_id=job_id, attempt=run.attempt, reason=reason, detail=message, ranks=shown)

    def _hand_out(self, run: Run) -> None:
        if not self._is_current(run):
            return
        spec_json = self._jobs[run.job_id].spec_json
        wanted = {
            worker_id: Grant(
                job_id=run.job_id,
                attempt=run.attempt,
                revision=0,
                spec_json=spec_json,
                first_rank=ranks.start,
                last_rank=ranks.stop,
                shards=run.shards,
            )
            for worker_id, ranks in run.ranks.items()
        }
        self._set_grants(run, wanted)

    def _set_grants(self, run: Run, wanted: Mapping[str, Grant]) -> GrantChanges:
        changes = self._grants.set_job(run.job_id, wanted)
        for worker_id, grant in changes.granted.items():
            if (member := self._members.get(worker_id)) is not None and member.known and member.port:
                self._workers.start_training(member.host, member.port, grant)
        self._changes.touch(run.job_id)
        return changes

    # Progress.

    async def _follow(self, run: Run) -> None:
        """Long-polls shard 0 until the attempt ends."""
        while self._is_current(run) and not run.closing:
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
                self._kick()
                return
            except Unavailable:
                server_id = run.shards[0].server_id
                self._members.connection_broke(server_id, run.incarnations.get(server_id, ""))
                self._kick()
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            except ShoalError as error:
                self._log.warning("progress_not_known", job_id=run.job_id, attempt=run.attempt, error=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            if answer.attempt == run.attempt and self._is_current(run):
                await self._take(run, answer)
                if answer.failure:
                    await self._fail(run, errors=(answer.failure,), reason=reasons.SHARD_FAILED, fatal=False)
                    return
            await asyncio.sleep(self._settings.progress_interval_seconds)

    async def _take(self, run: Run, answer: ShardProgress) -> None:
        """Takes in a shard's answer. What the store cannot take now is tried again with the next answer."""
        change = run.progress.add(answer, now=self._clock.monotonic())
        run.unsaved_evaluations |= change.evaluations
        self._metrics.steps.inc(change.steps)
        self._metrics.samples.inc(change.samples)
        try:
            if run.progress.version > run.first_version and self._jobs[run.job_id].phase is Phase.STARTING:
                await self._apply(
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
        if not self._is_current(run):
            return
        if change.any:
            self._metrics.job_step.labels(job_id=run.job_id).set(run.progress.version)
            self._metrics.job_loss.labels(job_id=run.job_id).set(run.progress.last_loss)
            if run.progress.evaluations:
                accuracy = run.progress.evaluations[-1].accuracy
                self._metrics.job_accuracy.labels(job_id=run.job_id).set(accuracy)
            self._changes.touch(run.job_id)
        rate = run.progress.samples_per_second(now=self._clock.monotonic())
        self._metrics.job_samples_per_second.labels(job_id=run.job_id).set(rate)

    # The end.

    async def complete(self, report: Completion) -> Answer:
        """The end of a job, as a trainer or an external client reports it. Idempotent."""
        try:
            job = self._jobs.get(report.job_id) or await self._store.get(report.job_id)
        except NotFound as error:
            return Answer(accepted=False, message=str(error))
        if report.attempt not in (0, job.attempt):
            message = f"stale: attempt {report.attempt} of job {job.job_id} is not the current one, {job.attempt}"
            return Answer(accepted=False, message=message)
        if job.phase.ended:
            return Answer(accepted=True, message=f"job {job.job_id} had already ended as {job.phase}: nothing changed")
        run = self._runs.get(job.job_id)
        if run is None or job.phase not in transitions.UNDER_WAY:
            return Answer(accepted=False, message=f"job {job.job_id} is {job.phase}: no attempt is running")
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
            await self._apply(
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
        self._close(run)
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
        fatal = report.results.metrics.get("fatal") == 1
        job = await self._fail(run, errors=errors, reason=reasons.TRAINER_FAILED, fatal=fatal)
        if job is None:
            return Answer(accepted=False, message=f"stale: attempt {run.attempt} of job {run.job_id} has ended")
        if job.phase is Phase.FAILED:
            return Answer(accepted=True, message=f"job {job.job_id} has failed: {job.message}")
        message = f"attempt {run.attempt} of job {job.job_id} has ended; the next one follows"
        return Answer(accepted=True, message=message)

    def _close(self, run: Run) -> None:
        run.closing = True
        self._tasks.cancel(f"progress:{run.job_id}:{run.attempt}")
        self._tasks.start(f"finish:{run.job_id}:{run.attempt}", self._finish(run))
        self._changes.touch(run.job_id)

    async def _finish(self, run: Run) -> None:
        """Snapshots every shard, and ends the job in one stored step."""
        tries = 0
        while self._is_current(run):
            try:
                answer = await self._shards.progress(
                    run.shards[0], job_id=run.job_id, from_version=run.progress.version
                )
                await self._take(run, answer)
                files = await _each(
                    run.shards, lambda shard: self._shards.snapshot(shard, job_id=run.job_id, attempt=run.attempt)
                )
                await self._succeed(run, tuple(files))
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
                    await self._fail(run, errors=(message,), reason=reasons.SNAPSHOT_FAILED, fatal=True)
                    return
            await asyncio.sleep(_RETRY_SECONDS * 2 ** min(tries, 5))

    async def _succeed(self, run: Run, files: tuple[ShardFile, ...]) -> None:
        results = self._jobs[run.job_id].results
        assert results is not None
        progress = run.progress
        results = replace(results, steps=results.steps or progress.version, samples=results.samples or progress.samples)
        await self._apply(
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
        self._end_run(run)
        self._drop(run.job_id, run.shards, delete_files=False)

    async def _fail(self, run: Run, *, errors: tuple[str, ...], reason: str, fatal: bool) -> Job | None:
        """Ends an attempt that failed. None: it had ended before."""
        job = self._jobs.get(run.job_id)
        if job is None or not self._is_current(run):
            return None
        message = "\n".join(errors)[-_MESSAGE_CHARACTERS:]
        now = self._clock.unix()
        last = fatal or job.attempt >= job.requirements.max_attempts
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
            transition = transitions.recover(run.job_id, attempt=run.attempt, at=now, reason=reason, message=message)
            self._not_before[run.job_id] = self._clock.monotonic() + min(
                self._settings.retry_delay_seconds * 2 ** min(job.attempt - 1, 20),
                self._settings.longest_retry_delay_seconds,
            )
        while True:
            try:
                job = await self._apply(transition)
                break
            except Stale as error:
                self._log.info("failure_of_ended_attempt", job_id=run.job_id, attempt=run.attempt, error=str(error))
                return None
            except Unavailable as error:
                self._log.warning("store_unavailable", job_id=run.job_id, error=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
        self._metrics.attempts_ended_early.labels(reason=reason).inc()
        self._log.warning("attempt_failed", job_id=run.job_id, attempt=run.attempt, reason=reason, detail=message)
        self._end_run(run)
        if last:
            self._drop(run.job_id, run.shards, delete_files=True)
        return job

    async def recover(self, job_id: str, *, reason: str, message: str) -> None:
        """Ends an attempt whose weights are gone. That is nobody's fault but the machines': always another attempt."""
        run = self._runs[job_id]
        try:
            await self._apply(
                transitions.recover(job_id, attempt=run.attempt, at=self._clock.unix(), reason=reason, message=message)
            )
        except Stale as error:
            self._log.info("attempt_superseded", job_id=job_id, attempt=run.attempt, error=str(error))
            return
        self._metrics.attempts_ended_early.labels(reason=reason).inc()
        self._log.warning("attempt_ends", job_id=job_id, attempt=run.attempt, reason=reason, detail=message)
        self._end_run(run)

    async def cancel(self, job_id: str) -> Cancellation:
        """Ends a live job. Raises NotFound; says so if the job had ended."""
        job = self._jobs.get(job_id) or await self._store.get(job_id)
        if job.phase.ended:
            return Cancellation(phase=job.phase, message=f"job {job_id} had already ended as {job.phase}")
        run = self._runs.get(job_id)
        try:
            await self._apply(
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
        shards = self._shards_of(job)
        if run is not None:
            self._end_run(run)
        self._drop(job_id, shards, delete_files=True)
        return Cancellation(phase=Phase.CANCELLED, message=f"job {job_id} is cancelled")

    def drop_leftovers(self, server: Member, held: tuple[str, ...]) -> None:
        """Frees a server from shares of jobs that are not live any more."""
        shard = ShardAddress(server_id=server.member_id, host=server.host, port=server.port, index=0)
        for job_id in held:
            if job_id not in self._jobs:
                self._drop(job_id, (shard,), delete_files=False)

    # Inner parts.

    def _is_current(self, run: Run) -> bool:
        return self._runs.get(run.job_id) is run

    async def _apply(self, transition: Transition) -> Job:
        """Stores a change, then lets the rest of the master know."""
        job = await self._store.apply(transition)
        if job.phase.ended:
            self._jobs.pop(job.job_id, None)
            self._not_before.pop(job.job_id, None)
            outcome = job.phase.lower()
            self._metrics.job_results.labels(outcome=outcome).inc()
            self._metrics.job_seconds.labels(outcome=outcome).observe(max(0.0, transition.at - job.submitted_at))
        else:
            self._jobs[job.job_id] = job
        self._log.info(
            "job_phase",
            job_id=job.job_id,
            attempt=job.attempt,
            phase=job.phase.value,
            reason=job.reason,
            detail=job.message,
        )
        self._changes.touch(job.job_id)
        self._kick()
        return job

    def _end_run(self, run: Run) -> None:
        """Withdraws everything that was handed out for the attempt."""
        if not self._is_current(run):
            return
        del self._runs[run.job_id]
        for kind in ("begin", "progress", "finish"):
            self._tasks.cancel(f"{kind}:{run.job_id}:{run.attempt}")
        for worker_id in self._set_grants(run, {}).withdrawn:
            # Pushed only here: a worker takes a stop as the attempt's end, while moved ranks may come back to it.
            member = self._members.get(worker_id)
            if member is not None and member.known and member.present and member.port:
                self._workers.stop_training(member.host, member.port, job_id=run.job_id, attempt=run.attempt)
        self._metrics.forget_job(run.job_id)
        self._kick()

    def _shards_of(self, job: Job) -> tuple[ShardAddress, ...]:
        """Where the job's shares may be, attempt or not."""
        run = self._runs.get(job.job_id)
        if run is not None and run.shards:
            return run.shards
        found = ((index, self._members.get(server_id)) for index, server_id in enumerate(job.servers))
        return tuple(
            ShardAddress(server_id=member.member_id, host=member.host, port=member.port, index=index)
            for index, member in found
            if member is not None and member.known
        )

    def _drop(self, job_id: str, shards: tuple[ShardAddress, ...], *, delete_files: bool) -> None:
        if shards:
            self._drops += 1
            self._tasks.start(f"drop:{job_id}:{self._drops}", self._drop_shares(job_id, shards, delete_files))

    async def _drop_shares(self, job_id: str, shards: tuple[ShardAddress, ...], delete_files: bool) -> None:
        """Best effort: a server that cannot be asked now says what it holds when it registers again."""
        for shard in shards:
            try:
                await self._shards.drop_share(shard, job_id=job_id, delete_files=delete_files)
            except ShoalError as error:
                self._log.info("share_not_dropped", job_id=job_id, server_id=shard.server_id, error=str(error))


async def _each(shards: Sequence[ShardAddress], call: Callable[[ShardAddress], Awaitable[_T]]) -> list[_T]:
    """One call per shard, at the same time. Waits for all; raises the error that says most, if any failed."""
    outcomes = await asyncio.gather(*(call(shard) for shard in shards), return_exceptions=True)
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    errors.sort(key=lambda error: isinstance(error, Unavailable | DeadlineExceeded))
    if errors:
        raise errors[0]
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
