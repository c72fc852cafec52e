"""Long polls of workers: who waits for assignments, and what a broken wait says about its worker."""

from collections import Counter
from dataclasses import dataclass

from shoal.core.job import Grant
from shoal.master.membership.members import Member, Members
from shoal.master.scheduling.grants import Assignments, GrantBook


@dataclass(frozen=True, kw_only=True, slots=True)
class Handed:
    """To a plain client: one job that it has not had yet, if there is one."""

    grant: Grant | None
    assignments: Assignments


class Polls:
    """A worker calls again at once when a poll ends, so an end by a broken connection is the first sign of a death."""

    def __init__(self, *, grants: GrantBook, members: Members) -> None:
        self._grants = grants
        self._members = members
        self._open: Counter[tuple[str, str]] = Counter()
        self._taken: dict[str, set[tuple[str, int]]] = {}  # by plain client: (job, attempt) handed out

    def registered(self, member: Member, *, newcomer: bool) -> None:
        if newcomer:
            self._taken.pop(member.member_id, None)

    async def wait(self, worker_id: str, incarnation: str, *, known_revision: int, seconds: float) -> Assignments:
        """The worker's assignments, as soon as their revision is not `known_revision`, or after `seconds`."""
        self._grants.rise_above(worker_id, known_revision)
        self._open[worker_id, incarnation] += 1
        try:
            return await self._grants.wait_for_change(worker_id, known_revision, seconds=seconds)
        finally:
            self._open[worker_id, incarnation] -= 1
            self._open += Counter()  # drops the zeros

    async def take_one(self, worker_id: str, *, seconds: float) -> Handed:
        """One job not handed out to this plain client yet, as soon as there is one, or none after `seconds`."""
        taken = self._taken.setdefault(worker_id, set())
        assignments = self._grants.of(worker_id)
        if (grant := _first_new(assignments, taken)) is None and seconds > 0:
            assignments = await self.wait(worker_id, "", known_revision=assignments.revision, seconds=seconds)
            grant = _first_new(assignments, taken)
        if grant is not None:
            taken.add((grant.job_id, grant.attempt))
        return Handed(grant=grant, assignments=assignments)

    def broke(self, worker_id: str, incarnation: str) -> None:
        """A poll ended because its connection did. With another one open, nothing is to be suspected."""
        if not self._open[worker_id, incarnation]:
            self._members.connection_broke(worker_id, incarnation)


def _first_new(assignments: Assignments, taken: set[tuple[str, int]]) -> Grant | None:
    current = {(grant.job_id, grant.attempt) for grant in assignments.grants}
    taken &= current
    return next((grant for grant in assignments.grants if (grant.job_id, grant.attempt) not in taken), None)
