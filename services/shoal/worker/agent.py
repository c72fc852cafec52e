"""The agent: keeps this worker known to the master and its trainers in line with its grants.

Grants are level-triggered: whatever the newest list says is made true. RequestJob's long poll and the master's
StartTraining hand out the same grants; whichever comes first wins, the other finds nothing to do.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
import structlog

from shoal.core.errors import DeadlineExceeded, Exhausted, NotFound, ShoalError, Stale, Unavailable
from shoal.core.job import Capabilities, Grant, Load, Progress, Results
from shoal.metrics.worker import WorkerMetrics
from shoal.process.load import LoadMeter
from shoal.wire.convert import (
    capabilities_to_proto,
    grant_from_proto,
    load_to_proto,
    progress_to_proto,
    results_to_proto,
)
from shoal.wire.status import raised_from_call
from shoal.wire.v1 import master_pb2, master_pb2_grpc
from shoal.worker.control import Advanced, Assignment, Failed, Fenced, Finished
from shoal.worker.trainers import Crashed, Ending, TrainerProcess, WarmTrainers

_CALL_SECONDS = 5.0
_GOODBYE_SECONDS = 1.0  # for the last word: nobody waits long for a master that does not hear it
_POLL_MARGIN_SECONDS = 10.0  # a long poll's deadline beyond its length
_RETRY_SECONDS = 0.2  # first wait after a failed call; doubles
_RETRY_LIMIT_SECONDS = 3.0
_LOG_SECONDS = 0.5  # log lines are handed over this often
_LOG_BATCH = 500


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
        self._metrics = metrics
        self._metrics.slots.set(capabilities.max_concurrent_jobs)
        self._load = LoadMeter()
        self._jobs: dict[str, _Running] = {}
        self._ended: dict[str, int] = {}  # attempts that this worker has finished with: not to be started again
        self._revision = 0
        self._heartbeat_seconds = 1.0
        self._applying = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self.registered = asyncio.Event()
        self._leaving = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._log = structlog.get_logger()

    # -- life -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled; an eternal task that ends by an error ends the agent, loudly."""
        await self._warm.refill()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_registered(), name="registration")
            tasks.create_task(self._beat_forever(), name="heartbeats")
            tasks.create_task(self._poll_forever(), name="grants")
            tasks.create_task(self._hand_over_logs_forever(), name="logs")

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
            await running.trainer.stop()
            if running.task is not None:
                await running.task
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
            except (Unavailable, DeadlineExceeded) as error:
                if str(error) != told:
                    self._log.warning("master_unreachable", error=str(error))
                    told = str(error)
                await asyncio.sleep(retry)
                retry = min(2 * retry, _RETRY_LIMIT_SECONDS)

    async def _register(self) -> None:
        answer = await self._master.RegisterWorker(
            master_pb2.RegisterWorkerRequest(
                worker_id=self.worker_id,
                capabilities=capabilities_to_proto(self.capabilities),
                host=self._host,
                port=self._port,
                incarnation=self.incarnation,
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
        self.worker_id = answer.assigned_worker_id
        self._heartbeat_seconds = answer.heartbeat_seconds or self._heartbeat_seconds
        self._revision = 0
        self.registered.set()
        self._metrics.registrations.inc()
        structlog.contextvars.bind_contextvars(worker_id=self.worker_id)
        self._log.info("registered", message=answer.message)

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
        self._metrics.cpu.set(load.cpu_percent / 100)
        self._metrics.memory.set(load.memory_percent / 100)
        try:
            with raised_from_call():
                answer = await self._master.SendHeartbeat(
                    master_pb2.SendHeartbeatRequest(
                        worker_id=self.worker_id,
                        status=load_to_proto(load),
                        incarnation=self.incarnation,
                        progress=[progress_to_proto(progress) for progress in self.progress()],
                        presence=presence,
                    ),
                    timeout=timeout,
                )
        except (Unavailable, DeadlineExceeded) as error:
            self._metrics.heartbeats.labels("failed").inc()
            self._log.info("heartbeat_lost", error=str(error))
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
            try:
                with raised_from_call():
                    answer = await self._master.RequestJob(
                        master_pb2.RequestJobRequest(
                            worker_id=self.worker_id,
                            incarnation=self.incarnation,
                            known_revision=self._revision,
                            wait_seconds=self._poll_seconds,
                        ),
                        timeout=self._poll_seconds + _POLL_MARGIN_SECONDS,
                    )
                retry = _RETRY_SECONDS
            except (Unavailable, DeadlineExceeded):
                await asyncio.sleep(retry)
                retry = min(2 * retry, _RETRY_LIMIT_SECONDS)
                continue
            if answer.revision == 0:  # not recognized: the heartbeat sees to it
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            await self.apply(answer.revision, [grant_from_proto(grant) for grant in answer.grants])

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
        """Makes the whole list true, unless a newer one has been applied."""
        async with self._applying:
            if revision < self._revision:
                return
            self._revision = revision
            wanted = {grant.job_id: grant for grant in grants}
            for job_id in [job_id for job_id in self._jobs if job_id not in wanted]:
                await self._stop(job_id)
            for grant in grants:
                await self._apply_one(grant)
            self._ended = {job_id: attempt for job_id, attempt in self._ended.items() if job_id in wanted}
            self._note_jobs()

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
        trainer = await self._warm.take()
        trainer.assign(self._assignment(grant))
        running = _Running(grant=grant, trainer=trainer, restarts=restarts, last_crash=last_crash)
        self._jobs[grant.job_id] = running
        running.task = asyncio.create_task(self._follow(running), name=f"job-{grant.job_id}")
        running.task.add_done_callback(_shout)
        self._metrics.trainer_starts.inc()
        self._log.info(
            "job_started",
            job_id=grant.job_id,
            attempt=grant.attempt,
            first=grant.first_rank,
            last=grant.last_rank,
            pid=trainer.pid,
        )

    async def _stop(self, job_id: str) -> None:
        running = self._jobs.pop(job_id)
        running.stopping = True
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
            async with self._applying:
                if self._jobs.get(job_id) is running:
                    await self._launch(running.grant, restarts=running.restarts + 1, last_crash=ending.in_one_line())
            await self._warm.refill()
            return
        del self._jobs[job_id]
        self._ended[job_id] = running.grant.attempt
        self._note_jobs()
        await self._report(running.grant, ending)
        await self._warm.refill()

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

    async def _report(self, grant: Grant, ending: Ending) -> None:
        """Tells the master how the job ended here, until it has heard.

        A master that has just been started again does not recognize this worker, or has not taken up the attempt yet:
        as long as its own list says that the attempt is this worker's, it is told again.
        """
        match ending:
            case Finished(results=results):
                pass
            case Failed(error=error, fatal=fatal):
                results = Results(success=False, errors=(error,), metrics={"fatal": 1.0} if fatal else {})
            case Crashed():
                results = Results(success=False, errors=(ending.describe(),))
            case Fenced(reason=reason):
                self._log.info("job_fenced", job_id=grant.job_id, attempt=grant.attempt, reason=reason)
                return
        request = master_pb2.CompleteJobRequest(
            worker_id=self.worker_id,
            job_id=grant.job_id,
            attempt=grant.attempt,
            incarnation=self.incarnation,
            results=results_to_proto(results),
        )
        retry = _RETRY_SECONDS
        while True:
            try:
                with raised_from_call():
                    answer = await self._master.CompleteJob(request, timeout=_CALL_SECONDS)
                self._log.info("job_reported", job_id=grant.job_id, success=results.success, message=answer.message)
                if answer.success or not self._is_last_word(grant):
                    return
            except (Unavailable, DeadlineExceeded):
                pass  # it is told again
            except ShoalError as error:
                self._log.error("report_refused", job_id=grant.job_id, error=str(error))
                return
            await asyncio.sleep(retry)
            retry = min(2 * retry, _RETRY_LIMIT_SECONDS)

    def _is_last_word(self, grant: Grant) -> bool:
        """Does the master's newest list still want of this worker the attempt that has ended here?"""
        return self._ended.get(grant.job_id) == grant.attempt and grant.job_id not in self._jobs

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
                await self._master.ReportLogs(request, timeout=_CALL_SECONDS)
            except grpc.RpcError:  # they stay here, the newest 10,000 of them, for the next time
                room = (entries.maxlen or len(batch)) - len(entries)
                entries.extendleft(reversed(batch[max(0, len(batch) - room) :]))
                return


def _shout(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        structlog.get_logger().error("task_failed", task=task.get_name(), error=repr(error), exc_info=error)
