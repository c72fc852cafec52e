"""Takes snapshots of running attempts: asks all shards for one version, and commits the manifest when all have it.

Nothing waits for a snapshot: one that fails is told, and the next one comes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from shoal.core.errors import DeadlineExceeded, Missed, NotFound, Refused, ShoalError, Stale, Unavailable
from shoal.core.job import Event, ShardAddress
from shoal.jobspec.reading import load_spec
from shoal.jobspec.spec import SnapshotsSpec
from shoal.master import reasons
from shoal.master.clients.shards import ShardClient, Written, whole
from shoal.master.lifecycle import cadence
from shoal.master.lifecycle.live import LiveJobs, Run
from shoal.master.lifecycle.sweeping import Sweeper
from shoal.master.membership.members import Members
from shoal.master.settings import MasterSettings
from shoal.master.store.base import JobStore, Manifest
from shoal.master.tasks import Tasks
from shoal.metrics.master import MasterMetrics
from shoal.process.clock import Clock
from shoal.process.logs import get_logger

_T = TypeVar("_T")
_RETRY_SECONDS = 0.2  # between tries of a store or a server that does not answer
_FIRST_MARGIN_SECONDS = 0.5  # what the master knows is a poll old, and a shard makes room for the copy first
_LEAST_MEASURED_SECONDS = 1.0  # a rate over less is mostly chance
_LONGEST_MARGIN_SECONDS = 60.0  # bound of the doubling when a version was missed


class Snapshots:
    def __init__(
        self,
        *,
        live: LiveJobs,
        store: JobStore,
        members: Members,
        shards: ShardClient,
        sweeper: Sweeper,
        tasks: Tasks,
        metrics: MasterMetrics,
        clock: Clock,
        settings: MasterSettings,
    ) -> None:
        self._live = live
        self._store = store
        self._members = members
        self._shards = shards
        self._sweeper = sweeper
        self._tasks = tasks
        self._metrics = metrics
        self._clock = clock
        self._settings = settings
        self._log = get_logger()

    def start(self, run: Run) -> None:
        """For as long as the attempt runs, if the job wants any."""
        policy = load_spec(self._live.job_of(run).spec_json).snapshots
        if not cadence.never(policy):
            self._tasks.start(f"snapshots:{run.job_id}:{run.attempt}", self._keep_taking(run, policy))

    async def _keep_taking(self, run: Run, policy: SnapshotsSpec) -> None:
        last_at, last_step = self._clock.monotonic(), 0
        margin_seconds = _FIRST_MARGIN_SECONDS
        told = ""
        while self._live.is_current(run) and not run.closing:
            decision = self._decide(run, policy, last_at=last_at, last_step=last_step, margin_seconds=margin_seconds)
            if isinstance(decision, cadence.Rest):
                await asyncio.sleep(decision.seconds)
                continue
            began = self._clock.monotonic()
            try:
                if not await self._take(run, decision.version):
                    return
            except Missed as error:
                margin_seconds = min(2 * margin_seconds, _LONGEST_MARGIN_SECONDS)
                last_step = decision.version
                self._metrics.snapshots.labels(outcome="missed").inc()
                self._log.info("snapshot_missed", job_id=run.job_id, attempt=run.attempt, reason=str(error))
                continue
            except DeadlineExceeded as error:  # training stands still, so nothing would be new in a snapshot
                self._log.info("snapshot_not_reached", job_id=run.job_id, attempt=run.attempt, reason=str(error))
                continue
            except (Unavailable, Refused) as error:
                self._log.info("snapshot_not_taken", job_id=run.job_id, attempt=run.attempt, reason=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            except ShoalError as error:
                self._metrics.snapshots.labels(outcome="failed").inc()
                self._log.error("snapshot_failed", job_id=run.job_id, attempt=run.attempt, error=str(error))
                await self._tell_failure(run, decision.version, error, again=type(error).__name__ == told)
                told = type(error).__name__
            else:
                told = ""
            last_at, last_step = began, decision.version

    def _decide(
        self, run: Run, policy: SnapshotsSpec, *, last_at: float, last_step: int, margin_seconds: float
    ) -> cadence.Take | cadence.Rest:
        now = self._clock.monotonic()
        job = self._live.job_of(run)
        trained = run.progress.started and (run.ranks or job.requirements.external)
        if not trained or run.progress.measured_seconds(now=now) < _LEAST_MEASURED_SECONDS:
            return cadence.Rest(seconds=cadence.LONGEST_REST_SECONDS / 4)
        return cadence.due(
            policy,
            cadence.Facts(
                version=run.progress.version,
                steps_per_second=run.progress.steps_per_second(now=now),
                total_steps=run.progress.total_steps,
                seconds_since_last=now - last_at,
                last_step=last_step,
                margin_seconds=margin_seconds,
            ),
        )

    async def _take(self, run: Run, version: int) -> bool:
        """False if the attempt is over. Raises what a shard raises: nothing has been committed then."""
        began = self._clock.monotonic()

        async def ask(shard: ShardAddress) -> Written:
            try:
                return await self._shards.snapshot(shard, job_id=run.job_id, attempt=run.attempt, at_version=version)
            except NotFound:
                run.gone.add(shard.server_id)
                self._live.kick()
                raise
            except Unavailable:
                self._members.connection_broke(shard.server_id, run.incarnations.get(shard.server_id, ""))
                self._live.kick()
                raise

        try:
            files = whole(await all_or_none(run.shards, ask))
        except (Stale, NotFound) as error:
            self._log.info("snapshot_superseded", job_id=run.job_id, attempt=run.attempt, reason=str(error))
            return False
        manifest = Manifest(
            job_id=run.job_id,
            attempt=run.attempt,
            step=version,
            files=files,
            at=self._clock.unix(),
        )
        if not await self._commit(run, manifest):
            return False
        self._metrics.snapshots.labels(outcome="committed").inc()
        self._metrics.job_snapshot_step.labels(job_id=run.job_id).set(version)
        seconds = self._clock.monotonic() - began
        self._log.info(
            "snapshot_committed", job_id=run.job_id, attempt=run.attempt, step=version, seconds=round(seconds, 3)
        )
        self._live.touch(run)
        await self._sweeper.sweep_live(run)
        return True

    async def _commit(self, run: Run, manifest: Manifest) -> bool:
        while self._live.is_current(run):
            try:
                await self._store.add_manifest(manifest, kept=self._settings.snapshots_kept)
                return True
            except Stale as error:
                self._log.info("manifest_superseded", job_id=run.job_id, attempt=run.attempt, reason=str(error))
                return False
            except Unavailable as error:
                self._log.warning("store_unavailable", job_id=run.job_id, error=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
        return False

    async def _tell_failure(self, run: Run, version: int, error: ShoalError, *, again: bool) -> None:
        """As an event, once for each series of equal failures."""
        if again or not self._live.is_current(run):
            return
        event = Event(
            at=self._clock.unix(),
            phase=self._live.job_of(run).phase,
            reason=reasons.SNAPSHOT_FAILED,
            message=f"at step {version}: {error}; training goes on, and the snapshot before stays",
            attempt=run.attempt,
        )
        try:
            await self._store.add_event(run.job_id, event)
        except (Unavailable, NotFound) as store_error:
            self._log.warning("event_not_stored", job_id=run.job_id, error=str(store_error))
        self._live.touch(run)


async def all_or_none(shards: Sequence[ShardAddress], call: Callable[[ShardAddress], Awaitable[_T]]) -> list[_T]:
    """One call per shard, at the same time. The first error ends the other calls, and is raised."""
    calls = [asyncio.ensure_future(call(shard)) for shard in shards]
    try:
        return await asyncio.gather(*calls)
    finally:
        for one in calls:
            one.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
