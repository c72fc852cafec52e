"""Live jobs and their runs, in memory: what the store knows, and what has been handed out for it.

The one place where a stored change becomes a change of the master's memory, in the order in which it was stored.
"""

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from shoal.core.errors import ShoalError
from shoal.core.job import Grant, Job, ShardAddress
from shoal.master.changes import Changes
from shoal.master.clients.shards import ShardClient
from shoal.master.clients.workers import WorkerClient
from shoal.master.lifecycle.progress import ProgressLog
from shoal.master.membership.members import Member, Members
from shoal.master.scheduling.grants import GrantBook, GrantChanges
from shoal.master.settings import MasterSettings
from shoal.master.store.base import JobStore, Transition
from shoal.master.tasks import Tasks
from shoal.metrics.master import MasterMetrics
from shoal.process.clock import Clock
from shoal.process.logs import get_logger


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
    hosts: set[str] = field(default_factory=set)  # members that have had a part of the attempt
    unfit: dict[str, str] = field(default_factory=dict)  # workers where its trainers kept being killed: incarnations
    publishing: asyncio.Lock = field(default_factory=asyncio.Lock)


class LiveJobs:
    """The only owner of live jobs, runs and their grants."""

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
        self.kick = kick
        self._log = get_logger()
        self._jobs: dict[str, Job] = {}
        self._runs: dict[str, Run] = {}
        self._not_before: dict[str, float] = {}
        self._drops = 0
        self._applying = asyncio.Lock()

    # What is known.

    @property
    def jobs(self) -> tuple[Job, ...]:
        return tuple(self._jobs.values())

    def job(self, job_id: str) -> Job | None:
        """A live one."""
        return self._jobs.get(job_id)

    def run(self, job_id: str) -> Run | None:
        return self._runs.get(job_id)

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(self._runs.values())

    def job_of(self, run: Run) -> Job:
        """Of a current run."""
        return self._jobs[run.job_id]

    def is_current(self, run: Run) -> bool:
        return self._runs.get(run.job_id) is run

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

    def unfit(self, run: Run) -> frozenset[str]:
        """Workers where trainers of the attempt kept being killed. One that has been started again may do better."""
        there = ((worker_id, self._members.get(worker_id)) for worker_id in run.unfit)
        return frozenset(name for name, member in there if member and member.incarnation == run.unfit[name])

    def shards_of(self, job: Job) -> tuple[ShardAddress, ...]:
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

    # Changes.

    def take_up(self, job: Job) -> None:
        """A job that the store has: a new one, or one from before a restart."""
        self._jobs[job.job_id] = job
        self.kick()

    async def apply(self, transition: Transition) -> Job:
        """Stores a change, then lets the rest of the master know."""
        async with self._applying:  # so that what is known here changes in the order in which it was stored
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
        self.kick()
        return job

    def touch(self, run: Run) -> None:
        """Wakes who watches the job."""
        self._changes.touch(run.job_id)

    def delay_next_attempt(self, job: Job) -> None:
        """After a failure: longer each time, so that a job that always crashes does not keep the cluster busy."""
        seconds = self._settings.retry_delay_seconds * 2 ** min(job.failures, 20)
        seconds *= random.uniform(0.75, 1.25)  # so that jobs that failed together do not come back together
        self._not_before[job.job_id] = self._clock.monotonic() + min(
            seconds, self._settings.longest_retry_delay_seconds
        )

    def new_run(self, job: Job) -> Run:
        run = Run(
            job_id=job.job_id,
            attempt=job.attempt,
            servers=job.servers,
            closing=job.results is not None,
            unsaved_evaluations=job.attempt > 1,  # those of steps that are done again are void
            progress=ProgressLog(
                rate_window_seconds=self._settings.rate_window_seconds,
                loss_steps_kept=self._settings.loss_steps_kept,
            ),
        )
        self._runs[job.job_id] = run
        return run

    def hand_out(self, run: Run) -> None:
        if not self.is_current(run):
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
        run.hosts.update(run.ranks, run.servers)
        self._set_grants(run, wanted)

    def _set_grants(self, run: Run, wanted: Mapping[str, Grant]) -> GrantChanges:
        changes = self._grants.set_job(run.job_id, wanted)
        for worker_id, grant in changes.granted.items():
            if (member := self._members.get(worker_id)) is not None and member.known and member.port:
                self._workers.start_training(member.host, member.port, grant)
        self._changes.touch(run.job_id)
        return changes

    def end_run(self, run: Run) -> None:
        """Withdraws everything that was handed out for the attempt."""
        if not self.is_current(run):
            return
        del self._runs[run.job_id]
        for kind in ("begin", "progress", "snapshots", "finish"):
            self._tasks.cancel(f"{kind}:{run.job_id}:{run.attempt}")
        for worker_id in self._set_grants(run, {}).withdrawn:
            # Pushed only here: a worker takes a stop as the attempt's end, while moved ranks may come back to it.
            member = self._members.get(worker_id)
            if member is not None and member.known and member.present and member.port:
                self._workers.stop_training(member.host, member.port, job_id=run.job_id, attempt=run.attempt)
        self._metrics.forget_job(run.job_id)
        self.kick()

    # Shares that nobody needs any more.

    def drop_leftovers(self, server: Member, held: tuple[str, ...]) -> None:
        """Frees a server from shares of jobs that are not live any more."""
        shard = ShardAddress(server_id=server.member_id, host=server.host, port=server.port, index=0)
        for job_id in held:
            if job_id not in self._jobs:
                self.drop(job_id, (shard,))

    def drop(self, job_id: str, shards: tuple[ShardAddress, ...]) -> None:
        if shards:
            self._drops += 1
            self._tasks.start(f"drop:{job_id}:{self._drops}", self._drop_shares(job_id, shards))

    async def _drop_shares(self, job_id: str, shards: tuple[ShardAddress, ...]) -> None:
        """Best effort: a server that cannot be asked now says what it holds when it registers again."""
        for shard in shards:
            try:
                await self._shards.drop_share(shard, job_id=job_id, delete_files=False)
            except ShoalError as error:
                self._log.info("share_not_dropped", job_id=job_id, server_id=shard.server_id, error=str(error))
