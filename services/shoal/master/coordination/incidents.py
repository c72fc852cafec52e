"""What happens to members, told to the jobs that it touches: events beside those of the jobs' own phases."""

from collections.abc import Iterable

from shoal.core.errors import NotFound, Unavailable
from shoal.core.job import Event
from shoal.master import reasons
from shoal.master.changes import Changes
from shoal.master.lifecycle.live import LiveJobs, Run
from shoal.master.membership.members import Member, Members
from shoal.master.store.base import JobStore
from shoal.process.clock import Clock
from shoal.process.logs import get_logger


class Incidents:
    def __init__(self, *, live: LiveJobs, members: Members, store: JobStore, changes: Changes, clock: Clock) -> None:
        self._live = live
        self._members = members
        self._store = store
        self._changes = changes
        self._clock = clock
        self._restarts: dict[tuple[str, int, str, str], int] = {}  # told, by (job, attempt, worker, incarnation)
        self._log = get_logger()

    async def progress(self, member: Member) -> None:
        """A worker's newest report: says which of its trainers have been started again since the one before."""
        for entry in member.progress:
            key = (entry.job_id, entry.attempt, member.member_id, member.incarnation)
            run = self._live.run(entry.job_id)
            if run is None or run.attempt != entry.attempt or entry.restarts <= self._restarts.get(key, 0):
                continue
            self._restarts = {key: told for key, told in self._restarts.items() if self._live.run(key[0]) is not None}
            message = f"{member.member_id}: {entry.last_crash}; it was started again ({entry.restarts})"
            if key not in self._restarts and await self._told_before(run, message):
                self._restarts[key] = entry.restarts
                continue
            self._restarts[key] = entry.restarts
            await self._tell([run], reasons.TRAINER_RESTARTED, message)

    async def _told_before(self, run: Run, message: str) -> bool:
        """By the master before this one: workers report restarts for as long as the attempt lasts."""
        try:
            events = await self._store.events(run.job_id)
        except (Unavailable, NotFound):
            return False
        return any((event.attempt, event.message) == (run.attempt, message) for event in events)

    async def pod(self, name: str, address: str, *, reason: str, message: str) -> None:
        """Something happened to the pod `name` with that IP address: for every running job that has been there."""
        here = {name} | {member.member_id for member in self._members.everyone if address and member.host == address}
        await self._tell([run for run in self._live.runs if run.hosts & here], reason, message)

    async def _tell(self, runs: Iterable[Run], reason: str, message: str) -> None:
        for run in runs:
            event = Event(
                at=self._clock.unix(),
                phase=self._live.job_of(run).phase,
                reason=reason,
                message=message,
                attempt=run.attempt,
            )
            try:
                await self._store.add_event(run.job_id, event)
            except (Unavailable, NotFound) as error:
                self._log.warning("event_not_stored", job_id=run.job_id, reason=reason, error=str(error))
            self._changes.touch(run.job_id)
