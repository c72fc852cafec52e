"""The agent: keeps this worker known to the master and its trainers in line with its grants.

Grants are level-triggered: whatever the newest list says is made true. RequestJob's long poll and the master's
StartTraining hand out the same grants; whichever comes first wins, the other finds nothing to do.
"""

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import grpc
import structlog

from shoal.core.errors import DeadlineExceeded, Exhausted, FencedOff, NotFound, ShoalError, Stale, Unavailable
from shoal.core.job import Capabilities, Failure, Grant, Load, Progress, Results
from shoal.metrics.worker import WorkerMetrics
from shoal.process.clock import awake_or_asleep_seconds
from shoal.process.identity import new_incarnation
from shoal.process.load import LoadMeter
from shoal.wire.convert import (
    capabilities_to_proto,
    failure_to_proto,
    grant_from_proto,
    load_to_proto,
    progress_to_proto,
    results_to_proto,
)
from shoal.wire.epochs import MasterEpochs
from shoal.wire.status import raised_from_call
from shoal.wire.v1 import master_pb2, master_pb2_grpc
from shoal.worker.control import Advanced, Assignment, Failed, Fenced, Finished
from shoal.worker.trainers import Crashed, Ending, TrainerProcess, WarmTrainers

_CALL_SECONDS = 5.0
_GOODBYE_SECONDS = 1.0  # for the last word: nobody waits long for a master that does not hear it
_POLL_MARGIN_SECONDS = 10.0  # a long poll's deadline beyond its length
_RETRY_SECONDS = 0.2  # first wait after a failed call; doubles
_RETRY_LIMIT_SECONDS = 1.0
_LOG_SECONDS = 0.5  # log lines are handed over this often
_LOG_BATCH = 500
_CLAIM = 0.75  # of a lease without an answer of the master's: then the agent starts nothing of its own accord
_LOOKS = 8  # at its trainers within the time after which one counts as hung


@dataclass(kw_only=True, eq=False, slots=True)
class _Running:
    """One job on this worker."""

    grant: Grant
    trainer: TrainerProcess
    task: asyncio.Task[None] | None = None
    restarts: int = 0
    last_crash: str = ""
    stopping: bool = False
    handing_over_logs: asyncio.Lock = field(default_factory=asyncio.Lock)


class Agent:
    """All on one event loop."""

    def __init__(
        self,
        *,
        master: "master_pb2_grpc.MasterServiceAsyncStub",
        worker_id: str,
        incarnation: str,
        host: str,
        port: int,
        metrics_port: int,
        capabilities: Capabilities,
        warm: WarmTrainers,
        poll_seconds: float,
        trainer_restarts: int,
        hang_seconds: float,
        metrics: WorkerMetrics,
    ) -> None:
        self._master = master
        self.worker_id = worker_id
        self.incarnation = incarnation
        self._host, self._port, self._metrics_port = host, port, metrics_port
        self.capabilities = capabilities
        self._warm = warm
        self._poll_seconds = poll_seconds
        self._trainer_restarts = trainer_restarts
        self._hang_seconds = hang_seconds
        self.epochs = MasterEpochs()
        self._metrics = metrics
        self._load = LoadMeter()
        self._jobs: dict[str, _Running] = {}
        self._ended: dict[str, int] = {}  # attempts that this worker has finished with: not to be started again
        self._revision = 0
        self._heartbeat_seconds = 1.0
        self._lease_seconds = math.inf  # until the master has said it
        self._heard_at = -math.inf  # when the last call was made that the master has answered
        self._heard = asyncio.Event()
        self._applying = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self.registered = asyncio.Event()
        self._leaving = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._cramped = asyncio.Event()  # no further trainer can be started here
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # by an error in a job's task
        self._log = structlog.get_logger()

    # -- life -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled; an error in any of its tasks ends the agent, loudly: others take its ranks."""
        await self._warm.refill()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_registered(), name="registration")
            tasks.create_task(self._beat_forever(), name="heartbeats")
            tasks.create_task(self._poll_forever(), name="grants")
            tasks.create_task(self._hand_over_logs_forever(), name="logs")
            tasks.create_task(self._attend_trainers_forever(), name="attention")
            tasks.create_task(self._watch_trainers_forever(), name="watch")
            tasks.create_task(self._make_room_forever(), name="room")
            tasks.create_task(self._until_a_job_breaks(), name="jobs")

    async def leave(self, *, wait_seconds: float) -> tuple[str, ...]:
        """Hands the ranks back: others get them, and this worker gets nothing any more.

        Returns the jobs that are still here: none, unless `wait_seconds` are over or the master cannot be asked.
        """
        if not self._leaving:
            self._leaving = True
            self._log.info("leaves", jobs=sorted(self._jobs))
            await self._warm.close()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_seconds
        while self._jobs and self.registered.is_set() and loop.time() < deadline and await self._beat():
            try:
                async with asyncio.timeout(min(self._heartbeat_seconds, deadline - loop.time())):
                    await self._idle.wait()
            except TimeoutError:
                pass
        return tuple(self._jobs)

    async def close(self) -> None:
        """Ends every trainer, and says so to the master if it hears."""
        for running in list(self._jobs.values()):
            running.stopping = True
            self._wake()
            await running.trainer.stop()
            if running.task is not None:
                await asyncio.wait({running.task})
        await self._warm.close()
        if self.registered.is_set():
            await self._beat(master_pb2.PRESENCE_LEFT, timeout=_GOODBYE_SECONDS)

    async def _keep_registered(self) -> None:
        retry, told = _RETRY_SECONDS, ""
        while True:
            if self.registered.is_set():
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            try:
                with raised_from_call():
                    await self._register()
                retry, told = _RETRY_SECONDS, ""
            except FencedOff as error:
                await self._begin_anew(self.incarnation, str(error))
            except (Unavailable, DeadlineExceeded, Exhausted) as error:
                if str(error) != told:
                    self._log.warning("master_unreachable", error=str(error))
                    told = str(error)
                await asyncio.sleep(_pause(retry, error))
                retry = min(2 * retry, _RETRY_LIMIT_SECONDS)

    async def _begin_anew(self, dead: str, reason: str) -> None:
        """The incarnation `dead` counts as that: drops every job, and goes on as another one."""
        async with self._applying:
            if dead != self.incarnation:
                return  # done already: all of its trainers are told
            self._log.warning("fenced_off", incarnation=dead, reason=reason, jobs=sorted(self._jobs))
            self._metrics.fenced.labels("incarnation").inc()
            for job_id in list(self._jobs):
                await self._stop(job_id)
            if self.registered.is_set():  # a restarted master that does not know: the name is free at once
                await self._beat(master_pb2.PRESENCE_LEFT, timeout=_GOODBYE_SECONDS)
            self.incarnation = new_incarnation()
            self._ended.clear()
            self._revision = 0
            self.registered.clear()
            self._note_jobs()

    def _note_heard(self, begun: float, epoch: int) -> bool:
        """Takes note of an answer to a call made at `begun`. False: the master that gave it has been deposed."""
        if not self.epochs.admits(epoch):
            self._log.warning("deposed_master_answers", epoch=epoch, newest=self.epochs.highest)
            return False
        self._heard_at = max(self._heard_at, begun)
        self._wake()
        return True

    def _wake(self) -> None:
        """Whoever waits for the master looks again."""
        self._heard.set()
        self._heard = asyncio.Event()

    @property
    def _may_claim(self) -> bool:
        """Has the master answered so lately that it cannot have given this worker's ranks away?"""
        return awake_or_asleep_seconds() - self._heard_at < _CLAIM * self._lease_seconds

    async def _register(self) -> None:
        begun, incarnation = awake_or_asleep_seconds(), self.incarnation
        answer = await self._master.RegisterWorker(
            master_pb2.RegisterWorkerRequest(
                worker_id=self.worker_id,
                capabilities=capabilities_to_proto(self._advertised()),
                host=self._host,
                port=self._port,
                incarnation=incarnation,
                role=master_pb2.ROLE_WORKER,
                metrics_port=self._metrics_port,
                held=[
                    master_pb2.HeldAssignment(job_id=running.grant.job_id, attempt=running.grant.attempt)
                    for running in self._jobs.values()
                ],
            ),
            timeout=_CALL_SECONDS,
        )
        if not answer.success:
            raise Unavailable(answer.message)
        if not self._note_heard(begun, answer.master_epoch) or incarnation != self.incarnation:
            raise Unavailable("the answer is not of the newest master, or not for the newest incarnation")
        self._lease_seconds = answer.lease_seconds or self._lease_seconds
        self.worker_id = answer.assigned_worker_id
        self._heartbeat_seconds = answer.heartbeat_seconds or self._heartbeat_seconds
        self._revision = 0
        self.registered.set()
        self._metrics.registrations.inc()
        structlog.contextvars.bind_contextvars(worker_id=self.worker_id)
        self._log.info("registered", message=answer.message)

    def _advertised(self) -> Capabilities:
        """What this worker can do now: where no further trainer can be started, only what it does already."""
        slots = len(self._jobs) if self._cramped.is_set() else self.capabilities.max_concurrent_jobs
        self._metrics.slots.set(slots)
        return replace(self.capabilities, max_concurrent_jobs=slots)

    async def _beat_forever(self) -> None:
        while True:
            await self.registered.wait()
            await self._beat()
            await asyncio.sleep(self._heartbeat_seconds)

    async def _beat(
        self, presence: "master_pb2.Presence.ValueType | None" = None, *, timeout: float = _CALL_SECONDS
    ) -> bool:
        """One heartbeat. False: the master could not be asked, or does not know this worker."""
        if presence is None:
            presence = master_pb2.PRESENCE_LEAVING if self._leaving else master_pb2.PRESENCE_UNSPECIFIED
        load = self.load()
        begun, incarnation = awake_or_asleep_seconds(), self.incarnation
        self._metrics.cpu.set(load.cpu_percent / 100)
        self._metrics.memory.set(load.memory_percent / 100)
        try:
            with raised_from_call():
                answer = await self._master.SendHeartbeat(
                    master_pb2.SendHeartbeatRequest(
                        worker_id=self.worker_id,
                        status=load_to_proto(load),
                        incarnation=incarnation,
                        progress=[progress_to_proto(progress) for progress in self.progress()],
                        presence=presence,
                    ),
                    timeout=timeout,
                )
        except (Unavailable, DeadlineExceeded, Exhausted) as error:
            self._metrics.heartbeats.labels("failed").inc()
            self._log.info("heartbeat_lost", error=str(error))
            return False
        if not self._note_heard(begun, answer.master_epoch) or incarnation != self.incarnation:
            return False
        self._metrics.heartbeats.labels("recognized" if answer.success else "unknown").inc()
        if not answer.success:
            self._log.warning("not_recognized", message=answer.message)
            self.registered.clear()
        return answer.success

    async def _poll_forever(self) -> None:
        retry = _RETRY_SECONDS
        while True:
            await self.registered.wait()
            begun, incarnation = awake_or_asleep_seconds(), self.incarnation
            try:
                with raised_from_call():
                    answer = await self._master.RequestJob(
                        master_pb2.RequestJobRequest(
                            worker_id=self.worker_id,
                            incarnation=incarnation,
                            known_revision=self._revision,
                            wait_seconds=self._poll_seconds,
                        ),
                        timeout=self._poll_seconds + _POLL_MARGIN_SECONDS,
                    )
                retry = _RETRY_SECONDS
            except (Unavailable, DeadlineExceeded, Exhausted) as error:
                await asyncio.sleep(_pause(retry, error))
                retry = min(2 * retry, _RETRY_LIMIT_SECONDS)
                continue
            if not self._note_heard(begun, answer.master_epoch) or incarnation != self.incarnation:
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            if answer.revision == 0:  # not recognized: the heartbeat sees to it
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            try:
                await self.apply(answer.revision, [grant_from_proto(grant) for grant in answer.grants])
            except Exhausted as error:
                self._hand_back(str(error))

    # -- what the world sees ------------------------------------------------------------------------------------------

    def load(self) -> Load:
        return Load(
            cpu_percent=self._load.cpu_percent(),
            memory_percent=self._load.memory_percent(),
            current_jobs=len(self._jobs),
        )

    def progress(self) -> tuple[Progress, ...]:
        return tuple(
            Progress(
                job_id=job_id,
                attempt=running.grant.attempt,
                step=running.trainer.advanced.step if running.trainer.advanced else 0,
                seconds_per_unit=running.trainer.advanced.seconds_per_unit if running.trainer.advanced else 0.0,
                restarts=running.restarts,
                last_crash=running.last_crash,
            )
            for job_id, running in self._jobs.items()
        )

    # -- grants -------------------------------------------------------------------------------------------------------

    async def apply(self, revision: int, grants: Sequence[Grant]) -> None:
        """Makes the whole list true, unless a newer one has been applied. Raises Exhausted."""
        async with self._applying:
            if revision < self._revision:
                return
            self._revision = revision
            wanted = {grant.job_id: grant for grant in grants}
            for job_id in [job_id for job_id in self._jobs if job_id not in wanted]:
                await self._stop(job_id)
            try:
                for grant in grants:
                    await self._apply_one(grant)
            finally:
                self._note_jobs()
            self._ended = {job_id: attempt for job_id, attempt in self._ended.items() if job_id in wanted}

    async def start(self, grant: Grant) -> str:
        """One grant, pushed by the master. Returns what was done. Raises Stale or Exhausted."""
        async with self._applying:
            if grant.revision < self._revision:
                raise Stale(f"grant of revision {grant.revision} is older than {self._revision}")
            known = self._jobs.get(grant.job_id)
            if known is None and self._leaving:
                raise Exhausted(f"{self.worker_id} is leaving")
            if known is None and len(self._jobs) >= self.capabilities.max_concurrent_jobs:
                raise Exhausted(f"all {self.capabilities.max_concurrent_jobs} job slots of {self.worker_id} are taken")
            changed = await self._apply_one(grant)
            self._note_jobs()
            return "started" if known is None and changed else "ranks moved" if changed else "nothing to do"

    async def stop(self, job_id: str, attempt: int) -> None:
        """Raises NotFound or Stale."""
        async with self._applying:
            running = self._jobs.get(job_id)
            if running is None:
                raise NotFound(f"job '{job_id}' does not run on {self.worker_id}")
            if attempt not in (0, running.grant.attempt):
                raise Stale(f"attempt {attempt} of job {job_id} does not run here: {running.grant.attempt} does")
            self._ended[job_id] = running.grant.attempt
            await self._stop(job_id)
            self._note_jobs()

    async def _apply_one(self, grant: Grant) -> bool:
        """True if something changed."""
        running = self._jobs.get(grant.job_id)
        if running is not None and running.grant.attempt > grant.attempt:
            return False
        if running is not None and running.grant.attempt < grant.attempt:
            await self._stop(grant.job_id)
            running = None
        if running is None:
            if self._ended.get(grant.job_id, -1) >= grant.attempt:
                return False
            await self._launch(grant)
            return True
        moved = running.grant.ranks != grant.ranks
        running.grant = grant
        if moved:
            running.trainer.assign(self._assignment(grant))
            self._log.info("ranks_moved", job_id=grant.job_id, first=grant.first_rank, last=grant.last_rank)
        return moved

    def _note_jobs(self) -> None:
        self._metrics.jobs_running.set(len(self._jobs))
        if self._jobs:
            self._idle.clear()
        else:
            self._idle.set()

    def _assignment(self, grant: Grant) -> Assignment:
        return Assignment(grant=grant, worker_id=self.worker_id, incarnation=self.incarnation)

    async def _launch(self, grant: Grant, *, restarts: int = 0, last_crash: str = "") -> None:
        """Raises Exhausted where no trainer can be started."""
        trainer = await self._warm.take()
        trainer.assign(self._assignment(grant))
        trainer.beat(self._lease_seconds)
        running = _Running(grant=grant, trainer=trainer, restarts=restarts, last_crash=last_crash)
        self._jobs[grant.job_id] = running
        running.task = asyncio.create_task(self._follow(running), name=f"job-{grant.job_id}")
        running.task.add_done_callback(self._job_ended)
        self._metrics.trainer_starts.inc()
        self._log.info(
            "job_started",
            job_id=grant.job_id,
            attempt=grant.attempt,
            first=grant.first_rank,
            last=grant.last_rank,
            pid=trainer.pid,
        )

    def _job_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self._broken.done():
            self._broken.set_exception(error)

    async def _until_a_job_breaks(self) -> None:
        await self._broken

    async def _stop(self, job_id: str) -> None:
        running = self._jobs.pop(job_id)
        running.stopping = True
        self._wake()
        await running.trainer.stop()
        self._log.info("job_stopped", job_id=job_id, attempt=running.grant.attempt)
        await self._warm.refill()

    async def _follow(self, running: _Running) -> None:
        """One trainer from its start to its end, and what the end means."""
        ending = await running.trainer.follow(self._count)
        await self._hand_over_logs(running)
        job_id = running.grant.job_id
        self._metrics.trainer_exits.labels(type(ending).__name__.lower()).inc()
        if running.stopping or self._jobs.get(job_id) is not running:
            return
        if isinstance(ending, Crashed) and ending.by_signal and running.restarts < self._trainer_restarts:
            # Its ranks stay: whatever it had not pushed is computed again, by the new one or by an idle worker.
            self._log.warning("trainer_crashed", job_id=job_id, error=ending.describe(), restart=running.restarts + 1)
            while not self._may_claim and not running.stopping:
                await self._heard.wait()  # its ranks may be somebody else's by now
            await self._launch_again(running, ending)
            await self._warm.refill()
            return
        del self._jobs[job_id]
        self._ended[job_id] = running.grant.attempt
        self._note_jobs()
        assert running.trainer.assignment is not None
        await self._report(running.grant, ending, incarnation=running.trainer.assignment.incarnation)
        await self._hand_over_logs(running)  # what a master that was away had not heard
        await self._warm.refill()

    async def _launch_again(self, crashed: _Running, ending: Crashed) -> None:
        async with self._applying:
            if self._jobs.get(crashed.grant.job_id) is not crashed:
                return
            try:
                await self._launch(crashed.grant, restarts=crashed.restarts + 1, last_crash=ending.in_one_line())
            except Exhausted as error:
                del self._jobs[crashed.grant.job_id]
                self._note_jobs()
                self._hand_back(str(error))

    def _hand_back(self, why: str) -> None:
        """What the master wants here cannot be started: it is told of fewer slots, and gives the ranks to others."""
        self._log.error("trainer_not_started", error=why)
        self._cramped.set()
        self._revision = 0
        self.registered.clear()

    async def _make_room_forever(self) -> None:
        """Where trainers could not be started, tries it from time to time, and then tells the master."""
        while True:
            await self._cramped.wait()
            pause = _RETRY_SECONDS
            await asyncio.sleep(pause)
            while not await self._warm.refill():
                pause = min(2 * pause, _RETRY_LIMIT_SECONDS)
                await asyncio.sleep(_pause(pause))
            self._cramped.clear()
            self.registered.clear()

    def _count(self, advanced: Advanced) -> None:
        metrics = self._metrics
        metrics.units.inc(len(advanced.unit_seconds))
        for seconds in advanced.unit_seconds:
            metrics.unit_seconds.observe(seconds)
        for seconds in advanced.wait_seconds:
            metrics.wait_seconds.observe(seconds)
        for pushed in advanced.pushed:
            metrics.pushes.labels(pushed.transport).inc(pushed.blocks)
            metrics.push_bytes.labels(pushed.transport).inc(pushed.size)

    async def _report(self, grant: Grant, ending: Ending, *, incarnation: str) -> None:
        """Tells the master how the job ended here, until it has heard.

        A master that has just been started again does not recognize this worker, or has not taken up the attempt yet:
        as long as its own list says that the attempt is this worker's, it is told again.
        """
        failure = Failure.RETRIED
        match ending:
            case Finished(results=results):
                pass
            case Failed(error=error, fatal=fatal):
                results = Results(success=False, errors=(error,))
                failure = Failure.FATAL if fatal else failure
            case Crashed():
                results = Results(success=False, errors=(ending.describe(),))
                failure = Failure.KILLED if ending.by_signal else failure
            case Fenced(reason=reason, incarnation=True):
                await self._begin_anew(incarnation, reason)
                return
            case Fenced(reason=reason):
                self._metrics.fenced.labels("attempt").inc()
                self._log.info("job_fenced", job_id=grant.job_id, attempt=grant.attempt, reason=reason)
                return
        request = master_pb2.CompleteJobRequest(
            worker_id=self.worker_id,
            job_id=grant.job_id,
            attempt=grant.attempt,
            incarnation=incarnation,
            results=results_to_proto(results),
            failure=failure_to_proto(failure),
        )
        retry = _RETRY_SECONDS
        while True:
            try:
                with raised_from_call():
                    answer = await self._master.CompleteJob(request, timeout=_CALL_SECONDS)
                self._log.info("job_reported", job_id=grant.job_id, success=results.success, message=answer.message)
                if answer.success or not self._is_last_word(grant):
                    return
            except (Unavailable, DeadlineExceeded, Exhausted):
                pass  # it is told again
            except ShoalError as error:
                self._log.error("report_refused", job_id=grant.job_id, error=str(error))
                return
            await asyncio.sleep(_pause(retry))
            retry = min(2 * retry, _RETRY_LIMIT_SECONDS)

    def _is_last_word(self, grant: Grant) -> bool:
        """Does the master's newest list still want of this worker the attempt that has ended here?"""
        return self._ended.get(grant.job_id) == grant.attempt and grant.job_id not in self._jobs

    # -- trainers ---------------------------------------------------------------------------------------------------

    async def _attend_trainers_forever(self) -> None:
        """Tells trainers that this agent lives, whether or not the master does: they work by leave of their shards."""
        while True:
            for running in self._jobs.values():
                running.trainer.beat(self._lease_seconds)
            await asyncio.sleep(min(self._heartbeat_seconds, self._lease_seconds / _LOOKS))

    async def _watch_trainers_forever(self) -> None:
        """Kills a trainer that gives no sign of life for `hang_seconds`; it is started again as after any crash."""
        pause = self._hang_seconds / _LOOKS
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await asyncio.sleep(pause)
            waited = min(loop.time() - began, 2 * pause)  # this agent may have been frozen, and its trainers with it
            for job_id, running in list(self._jobs.items()):
                silent = running.trainer.silent_for(waited)
                if silent >= self._hang_seconds:
                    self._metrics.trainer_hangs.inc()
                    self._log.warning("trainer_hangs", job_id=job_id, pid=running.trainer.pid, seconds=round(silent, 1))
                    running.trainer.kill_hung(silent)

    # -- logs -------------------------------------------------------------------------------------------------------

    async def _hand_over_logs_forever(self) -> None:
        while True:
            await asyncio.sleep(_LOG_SECONDS)
            for running in list(self._jobs.values()):
                await self._hand_over_logs(running)

    async def _hand_over_logs(self, running: _Running) -> None:
        async with running.handing_over_logs:  # one at a time: each line once, in order
            await self._hand_over_all(running)

    async def _hand_over_all(self, running: _Running) -> None:
        entries = running.trainer.entries
        while entries:
            batch = [entries.popleft() for _ in range(min(len(entries), _LOG_BATCH))]
            request = master_pb2.ReportLogsRequest(
                worker_id=self.worker_id,
                job_id=running.grant.job_id,
                attempt=running.grant.attempt,
                incarnation=self.incarnation,
                lines=[
                    master_pb2.LogLine(unix_seconds=entry.unix_seconds, worker_id=self.worker_id, text=entry.text)
                    for entry in batch
                ],
            )
            try:
                taken = (await self._master.ReportLogs(request, timeout=_CALL_SECONDS)).success
            except grpc.RpcError:
                taken = False
            if not taken:  # they stay here, the newest 10,000 of them, for the next time
                room = (entries.maxlen or len(batch)) - len(entries)
                entries.extendleft(reversed(batch[max(0, len(batch) - room) :]))
                return


def _pause(seconds: float, error: ShoalError | None = None) -> float:
    """Before the next try: at random within the second half, so that many agents do not call at one moment."""
    asked = error.retry_after_seconds if isinstance(error, Exhausted) else 0.0
    return max(asked, seconds) * random.uniform(1.0 if asked else 0.5, 1.5 if asked else 1.0)
