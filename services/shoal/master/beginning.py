"""How an attempt begins, goes on after a restart of the master, and where its ranks lie.

Each change is stored first, then acted on.
"""

import asyncio
from array import array
from collections.abc import Mapping
from dataclasses import replace

from shoal.core.errors import DeadlineExceeded, Forbidden, InvalidInput, NotFound, ShoalError, Unavailable
from shoal.core.job import Event, Job, Results, ShardAddress
from shoal.jobspec.reading import load_spec
from shoal.master import reasons, transitions
from shoal.master.completion import Completions
from shoal.master.endings import Endings
from shoal.master.following import Follower
from shoal.master.live import LiveJobs, Run
from shoal.master.members import Member, Members, Role
from shoal.master.shards import ShardClient, each
from shoal.master.store.base import LIVE, JobStore, Placement, Summary
from shoal.master.tasks import Tasks
from shoal.process.clock import Clock
from shoal.process.logs import get_logger

_RETRY_SECONDS = 0.2  # between tries of a call to a server that does not answer


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
            self._follower.start(run)
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
            except (Unavailable, DeadlineExceeded) as error:
                self._log.info("shares_not_created_yet", job_id=run.job_id, attempt=run.attempt, error=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
            except ShoalError as error:
                fatal = isinstance(error, InvalidInput | Forbidden)
                await self._endings.fail(run, errors=(str(error),), reason=reasons.SHARD_FAILED, fatal=fatal)
                return
        if self._live.is_current(run):
            self._follower.start(run)

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
            try:
                return await self._shards.create_share(
                    shard, job_id=job.job_id, attempt=run.attempt, spec_json=job.spec_json, shards=len(shards)
                )
            except Unavailable:
                self._members.connection_broke(shard.server_id, incarnations[shard.server_id])
                raise

        run.incarnations = incarnations
        versions = await each(shards, create)
        if max(versions) - min(versions) > 1:
            # Shards keep one step of each other (replay window). More apart: one has lost its share, and all go back.
            self._log.info("shares_begin_again", job_id=job.job_id, attempt=run.attempt, versions=versions)
            await each(shards, lambda shard: self._shards.drop_share(shard, job_id=job.job_id, delete_files=True))
            versions = await each(shards, create)
        run.first_version = min(versions)
        run.progress.from_zero = run.first_version == 0
        async with run.publishing:
            if not self._live.is_current(run):
                return
            run.shards = tuple(shards)
            placement = Placement(ranks=dict(run.ranks), shards=run.shards)
            await self._store.place(job.job_id, attempt=run.attempt, placement=placement, event=None)
            run.ready = True
            self._live.hand_out(run)

    async def move(self, run: Run, *, ranks: Mapping[str, range], reason: str, message: str) -> None:
        """Spreads the ranks of a running attempt anew."""
        async with run.publishing:
            if not self._live.is_current(run):
                return
            if run.ready:
                event = Event(at=self._clock.unix(), phase=self._live.job_of(run).phase, reason=reason, message=message)
                placement = Placement(ranks=dict(ranks), shards=run.shards)
                await self._store.place(run.job_id, attempt=run.attempt, placement=placement, event=event)
            run.ranks = dict(ranks)
            run.moved_at = self._clock.monotonic()
            if run.ready:
                self._live.hand_out(run)
        shown = {worker_id: f"{hosted.start}-{hosted.stop - 1}" for worker_id, hosted in ranks.items()}
        self._log.info("ranks_move", job_id=run.job_id, attempt=run.attempt, reason=reason, detail=message, ranks=shown)
