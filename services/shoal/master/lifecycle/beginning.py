"""How an attempt begins, goes on after a restart of the master, and where its ranks lie.

Each change is stored first, then acted on.
"""

import asyncio
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from shoal.core.errors import (
    Corrupt,
    DeadlineExceeded,
    Forbidden,
    InvalidInput,
    NotFound,
    ShoalError,
    Stale,
    Unavailable,
)
from shoal.core.job import Event, Job, Results, ShardAddress
from shoal.jobspec.reading import load_spec
from shoal.master import reasons
from shoal.master.clients.shards import Created, InitialWeights, Restore, ShardClient, each
from shoal.master.lifecycle import transitions
from shoal.master.lifecycle.completion import Completions
from shoal.master.lifecycle.endings import Endings
from shoal.master.lifecycle.following import Follower
from shoal.master.lifecycle.initial import InitialSources
from shoal.master.lifecycle.live import LiveJobs, Run
from shoal.master.lifecycle.snapshots import Snapshots
from shoal.master.membership.members import Member, Members, Role
from shoal.master.store.base import LIVE, JobStore, Manifest, Placement, Summary
from shoal.master.tasks import Tasks
from shoal.process.clock import Clock
from shoal.process.logs import get_logger

_RETRY_SECONDS = 0.2  # between tries of a call to a server that does not answer


class _Damaged(Exception):
    """A file of this manifest is not what was written; the cause says which."""

    def __init__(self, manifest: Manifest, error: Corrupt) -> None:
        super().__init__(str(error))
        self.manifest = manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class _Making:
    """The shares of an attempt, and what they are to be made of where there are none."""

    job: Job
    attempt: int
    shards: tuple[ShardAddress, ...]
    manifest: Manifest | None
    initial: InitialWeights | None

    def restore_of(self, shard: ShardAddress) -> Restore | None:
        """None: at version 0, or the shard holds nothing of the model."""
        if self.manifest is None:
            return None
        files = {file.shard_index: file for file in self.manifest.files}
        file = files.get(shard.index)
        return Restore(file=file, step=self.manifest.step) if file is not None else None

    def is_new(self, created: Sequence[Created]) -> bool:
        return any(share.made_in_attempt == self.attempt for share in created)

    def is_torn(self, created: Sequence[Created]) -> bool:
        """Were they made in different attempts, or are they further apart than the one step that replay bridges?

        All shares of an attempt that has begun were made in the same one. One that did not come to that (a server was
        lost meanwhile) leaves some that were made in it beside older ones.
        """
        if self.is_new(created):
            restores = [self.restore_of(shard) for shard in self.shards]
            wanted = [(self.attempt, restore.step if restore else 0) for restore in restores]
            return [(share.made_in_attempt, share.version) for share in created] != wanted
        if len({share.made_in_attempt for share in created}) > 1:
            return True
        versions = [share.version for share in created if share.started]
        return not self.job.requirements.external and max(versions, default=0) - min(versions, default=0) > 1


class Beginnings:
    def __init__(
        self,
        *,
        live: LiveJobs,
        endings: Endings,
        follower: Follower,
        completions: Completions,
        store: JobStore,
        members: Members,
        shards: ShardClient,
        snapshots: Snapshots,
        initial: InitialSources,
        tasks: Tasks,
        clock: Clock,
    ) -> None:
        self._live = live
        self._endings = endings
        self._follower = follower
        self._completions = completions
        self._store = store
        self._members = members
        self._shards = shards
        self._snapshots = snapshots
        self._initial = initial
        self._tasks = tasks
        self._clock = clock
        self._log = get_logger()

    # From the store.

    async def load(self) -> None:
        """Takes up every live job. What ran goes on with the same attempt, once its members have been heard."""
        placements = await self._store.placements()
        for job in await self._store.jobs(phases=LIVE):
            if not await self._is_readable(job):
                continue
            self._live.take_up(job)
            if job.phase in transitions.UNDER_WAY:
                self._adopt(job, placements.get(job.job_id))

    async def _is_readable(self, job: Job) -> bool:
        """A job whose spec this program cannot read fails now, rather than on every worker."""
        try:
            load_spec(job.spec_json)
        except InvalidInput as error:
            await self._live.apply(
                transitions.fail(
                    job.job_id,
                    attempt=job.attempt,
                    results=Results(success=False, errors=(str(error),)),
                    at=self._clock.unix(),
                    reason=reasons.SPEC_NOT_READABLE,
                    message=f"{error}; submit the job again",
                    summary=Summary(),
                    losses=array("d"),
                )
            )
            return False
        return True

    def _adopt(self, job: Job, placement: Placement | None) -> None:
        run = self._live.new_run(job)
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
        self._live.hand_out(run)
        if job.results is not None:
            self._completions.close(run)
        else:
            self._watch(run)
        self._log.info("job_adopted", job_id=job.job_id, attempt=job.attempt, workers=sorted(run.ranks))

    def probe_adopted(self) -> None:
        """Asks servers that came back after the master's restart whether they still have the shares."""
        for run in self._live.runs:
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
            self._live.kick()
            return
        except ShoalError as error:
            self._log.info("probe_failed", job_id=run.job_id, server_id=shard.server_id, error=str(error))
            run.probed.discard(shard.server_id)
            return
        if answer.attempt != run.attempt:
            run.gone.add(shard.server_id)
            self._live.kick()
        else:
            run.incarnations[shard.server_id] = member.incarnation

    # Anew.

    async def begin(
        self, job: Job, *, servers: tuple[str, ...], ranks: Mapping[str, range], reason: str, message: str
    ) -> None:
        """Stores that the next attempt begins, and starts to make its shares."""
        job = await self._live.apply(
            transitions.begin(job, servers=servers, at=self._clock.unix(), reason=reason, message=message)
        )
        run = self._live.new_run(job)
        run.ranks = dict(ranks)
        run.moved_at = self._clock.monotonic()
        self._tasks.start(f"begin:{run.job_id}:{run.attempt}", self._create_shares(run))
        self._log.info("attempt_begins", job_id=job.job_id, attempt=job.attempt, servers=servers, workers=sorted(ranks))

    async def _create_shares(self, run: Run) -> None:
        """Makes a share on each server, however long it takes them to answer; then hands out the grants."""
        job = self._live.job_of(run)
        while self._live.is_current(run):
            try:
                await self._try_to_create(run, job)
                break
            except _Damaged as error:
                await self._condemn(run, error)
            except (Unavailable, DeadlineExceeded) as error:
                self._log.info("shares_not_created_yet", job_id=run.job_id, attempt=run.attempt, error=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
            except ShoalError as error:
                fatal = isinstance(error, InvalidInput | Forbidden)
                await self._endings.fail(run, errors=(str(error),), reason=reasons.SHARD_FAILED, fatal=fatal)
                return
        if self._live.is_current(run):
            self._watch(run)

    def _watch(self, run: Run) -> None:
        self._follower.start(run)
        self._snapshots.start(run)

    async def _try_to_create(self, run: Run, job: Job) -> None:
        shards: list[ShardAddress] = []
        incarnations: dict[str, str] = {}
        for index, server_id in enumerate(run.servers):
            member = self._members.get(server_id)
            if member is None or not member.known or not member.present:
                raise Unavailable(f"parameter server {server_id} has not registered")
            shards.append(ShardAddress(server_id=server_id, host=member.host, port=member.port, index=index))
            incarnations[server_id] = member.incarnation

        run.incarnations = incarnations
        manifest = await self._current(run)
        made = _Making(
            job=job,
            attempt=run.attempt,
            shards=tuple(shards),
            manifest=manifest,
            initial=await self._initial.of(job) if manifest is None else None,
        )
        created = await self._create(made, incarnations)
        if made.is_torn(created):
            # A share that is new does not fit to those that went on: all go back to the same step.
            self._log.info("shares_begin_again", job_id=job.job_id, attempt=run.attempt, created=created)
            created = await self._create(made, incarnations, start_over=True)
        if manifest is not None and made.is_new(created):
            await self._tell(run, reasons.RESTORED, f"all shards go on from the snapshot at step {manifest.step}")
        run.first_version = min((share.version for share in created if share.started), default=0)
        run.progress.from_zero = run.first_version == 0
        async with run.publishing:
            if not self._live.is_current(run):
                return
            run.shards = tuple(shards)
            placement = Placement(ranks=dict(run.ranks), shards=run.shards)
            await self._store.place(job.job_id, attempt=run.attempt, placement=placement, event=None)
            run.ready = True
            self._live.hand_out(run)

    async def _current(self, run: Run) -> Manifest | None:
        """The newest manifest that is not known to be damaged."""
        manifests = await self._store.manifests(run.job_id)
        return next((manifest for manifest in manifests if not manifest.damaged), None)

    async def _create(
        self, made: "_Making", incarnations: Mapping[str, str], *, start_over: bool = False
    ) -> list[Created]:
        async def create(shard: ShardAddress) -> Created:
            try:
                return await self._shards.create_share(
                    shard,
                    job_id=made.job.job_id,
                    attempt=made.attempt,
                    spec_json=made.job.spec_json,
                    shards=len(made.shards),
                    restore=made.restore_of(shard),
                    start_over=start_over,
                    initial=made.initial,
                )
            except Unavailable:
                self._members.connection_broke(shard.server_id, incarnations[shard.server_id])
                raise
            except Corrupt as error:
                if made.manifest is None:
                    raise
                raise _Damaged(made.manifest, error) from error

        return await each(made.shards, create)

    async def _condemn(self, run: Run, damaged: "_Damaged") -> None:
        """The manifest before becomes the current one; if there is none, the job begins again."""
        event = Event(
            at=self._clock.unix(),
            phase=self._live.job_of(run).phase,
            reason=reasons.SNAPSHOT_DAMAGED,
            message=f"the snapshot at step {damaged.manifest.step} cannot be used: {damaged}",
            attempt=run.attempt,
        )
        self._log.warning("snapshot_damaged", job_id=run.job_id, attempt=run.attempt, detail=event.message)
        try:
            await self._store.condemn_manifest(damaged.manifest, attempt=run.attempt, event=event)
        except Unavailable as error:
            self._log.warning("store_unavailable", job_id=run.job_id, error=str(error))
            await asyncio.sleep(_RETRY_SECONDS)  # and then the file is looked at again
        except Stale as error:
            self._log.info("attempt_superseded", job_id=run.job_id, attempt=run.attempt, error=str(error))
        self._live.touch(run)

    async def _tell(self, run: Run, reason: str, message: str) -> None:
        phase = self._live.job_of(run).phase
        event = Event(at=self._clock.unix(), phase=phase, reason=reason, message=message, attempt=run.attempt)
        try:
            await self._store.add_event(run.job_id, event)
        except Unavailable as error:
            self._log.warning("event_not_stored", job_id=run.job_id, reason=reason, error=str(error))
        self._live.touch(run)

    async def move(self, run: Run, *, ranks: Mapping[str, range], reason: str, message: str) -> None:
        """Spreads the ranks of a running attempt anew."""
        async with run.publishing:
            if not self._live.is_current(run):
                return
            if run.ready:
                phase = self._live.job_of(run).phase
                event = Event(at=self._clock.unix(), phase=phase, reason=reason, message=message, attempt=run.attempt)
                placement = Placement(ranks=dict(ranks), shards=run.shards)
                await self._store.place(run.job_id, attempt=run.attempt, placement=placement, event=event)
            run.ranks = dict(ranks)
            run.moved_at = self._clock.monotonic()
            if run.ready:
                self._live.hand_out(run)
        shown = {worker_id: f"{hosted.start}-{hosted.stop - 1}" for worker_id, hosted in ranks.items()}
        self._log.info("ranks_move", job_id=run.job_id, attempt=run.attempt, reason=reason, detail=message, ranks=shown)
