"""Deletes files that no manifest and no finished model needs, on the parameter servers that are there.

Only files that were listed before the store was asked are deleted, by name, and names are never used twice: whatever
is written meanwhile stays. Files of jobs that the store does not know are left alone, unless this master has pruned
them: they may belong to another store.
"""

from collections import defaultdict
from collections.abc import Iterable

from shoal.core.errors import NotFound, ShoalError, Unavailable
from shoal.core.job import Job, ShardAddress
from shoal.master.clients.shards import ShardClient
from shoal.master.lifecycle.live import LiveJobs, Run
from shoal.master.membership.members import Member, Members
from shoal.master.store.base import JobStore
from shoal.master.tasks import Tasks
from shoal.process.clock import Clock
from shoal.process.logs import get_logger


class Sweeper:
    def __init__(
        self,
        *,
        live: LiveJobs,
        store: JobStore,
        members: Members,
        shards: ShardClient,
        tasks: Tasks,
        clock: Clock,
        ended_jobs_kept: int,
        ended_snapshots_seconds: float,
    ) -> None:
        self._live = live
        self._store = store
        self._members = members
        self._shards = shards
        self._tasks = tasks
        self._clock = clock
        self._ended_jobs_kept = ended_jobs_kept
        self._ended_snapshots_seconds = ended_snapshots_seconds
        self._pruned: defaultdict[str, set[str]] = defaultdict(set)  # by server: jobs whose files are to go
        self._started = 0
        self._log = get_logger()

    async def sweep_live(self, run: Run) -> None:
        """After a manifest of a running attempt; nobody else writes files of that job."""
        for shard in run.shards:
            await self._sweep(shard, run.job_id)

    def after(self, job: Job) -> None:
        """The job has just ended."""
        places = [place for server_id in job.servers if (place := self._place(server_id)) is not None]
        if places:
            self._started += 1
            self._tasks.start(f"sweep:{job.job_id}:{self._started}", self._sweep_ended(job.job_id, places))

    def at(self, server: Member) -> None:
        """A parameter server has registered: what was to be deleted while it was away, is so now."""
        name = f"sweep:{server.member_id}:{server.incarnation}"
        if not self._tasks.runs(name):
            self._tasks.start(name, self._sweep_server(_address(server)))

    async def prune(self) -> None:
        """Forgets ended jobs that are too many, and snapshots of ended ones that are too old."""
        for job in await self._store.prune(ended_kept=self._ended_jobs_kept):
            for server_id in job.servers:
                self._pruned[server_id].add(job.job_id)
        for server_id in list(self._pruned):
            if (place := self._place(server_id)) is not None:
                await self._delete_pruned(place)
        for job in await self._store.forget_manifests(ended_before=self._clock.unix() - self._ended_snapshots_seconds):
            self.after(job)

    async def _sweep_ended(self, job_id: str, places: Iterable[ShardAddress]) -> None:
        for place in places:
            await self._sweep(place, job_id)

    async def _sweep_server(self, place: ShardAddress) -> None:
        await self._delete_pruned(place)
        try:
            there = await self._shards.list_snapshots(place)
        except ShoalError as error:
            self._log.info("snapshots_not_listed", server_id=place.server_id, error=str(error))
            return
        for job_id in there:
            if self._live.job(job_id) is None:
                await self._sweep(place, job_id)

    async def _sweep(self, place: ShardAddress, job_id: str) -> None:
        try:
            there = (await self._shards.list_snapshots(place, job_id=job_id)).get(job_id, ())
            needed = await self._needed(job_id)
            superfluous = [name for name in there if name not in needed]
            if superfluous:
                await self._shards.delete_snapshots(place, job_id=job_id, names=superfluous)
                self._log.info("snapshots_deleted", job_id=job_id, server_id=place.server_id, files=len(superfluous))
        except NotFound:
            self._log.info("files_of_unknown_job", job_id=job_id, server_id=place.server_id)
        except ShoalError as error:
            self._log.info("snapshots_not_deleted", job_id=job_id, server_id=place.server_id, error=str(error))

    async def _needed(self, job_id: str) -> frozenset[str]:
        job = await self._store.get(job_id)
        manifests = await self._store.manifests(job_id)
        return frozenset(file.file_name for files in (job.files, *(m.files for m in manifests)) for file in files)

    async def _delete_pruned(self, place: ShardAddress) -> None:
        waiting = self._pruned.pop(place.server_id, set())
        while waiting:
            job_id = waiting.pop()
            try:
                await self._shards.drop_share(place, job_id=job_id, delete_files=True)
            except Unavailable as error:
                self._pruned[place.server_id] |= {job_id, *waiting}
                self._log.info("snapshots_not_deleted", job_id=job_id, server_id=place.server_id, error=str(error))
                return
            except ShoalError as error:
                self._log.warning("snapshots_not_deleted", job_id=job_id, server_id=place.server_id, error=str(error))

    def _place(self, server_id: str) -> ShardAddress | None:
        member = self._members.get(server_id)
        return _address(member) if member is not None and member.known and member.present else None


def _address(member: Member) -> ShardAddress:
    return ShardAddress(server_id=member.member_id, host=member.host, port=member.port, index=0)
