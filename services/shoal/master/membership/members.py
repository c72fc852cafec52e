"""Who is there: workers and parameter servers, from their registrations, heartbeats and broken connections.

In memory only, and rebuilt from what members say. Plain code on a clock; no I/O.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from shoal.core.errors import Exhausted, FencedOff, InvalidInput
from shoal.core.job import Capabilities, Load, Progress
from shoal.process.clock import Clock

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}")
_REJOIN_SECONDS = 6.0  # at least: a channel tries to connect every 2 s, and its owner calls every second
_FULL_SECONDS = 5.0  # a member's place is free when it has been lost for long
NOT_RECOGNIZED = "worker not recognized: register again"


class Role(StrEnum):
    WORKER = "worker"
    PARAMETER_SERVER = "parameter server"


class MemberState(StrEnum):
    ALIVE = "alive"
    LEAVING = "leaving"  # hands its ranks back: gets nothing, keeps nothing
    SUSPECT = "suspect"  # its connection broke, or a restarted master has not heard of it yet: gets nothing new
    LOST = "lost"  # must register again


class Finding(StrEnum):
    """What came of asking a silent member on another connection."""

    ALIVE = "alive"  # the same incarnation answers
    GONE = "gone"  # nobody listens there, or another incarnation does
    SILENT = "silent"  # no definite answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Application:
    """What a process says of itself when it registers."""

    member_id: str  # the id it would like
    role: Role
    incarnation: str  # '': a plain client, identified by id, host and port
    host: str
    port: int
    metrics_port: int
    capabilities: Capabilities


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    member_id: str
    role: Role
    incarnation: str
    host: str
    port: int
    metrics_port: int
    capabilities: Capabilities
    state: MemberState
    heard_at: float  # monotonic seconds
    ends_at: float  # monotonic seconds: lost then, unless it is heard
    known: bool = True  # false: only expected, from before the master's restart
    left: bool = False  # it said that it ends
    doubted: bool = False  # its connection broke
    asked_at: float | None = None  # monotonic seconds: when it was asked, since it was last heard
    finding: Finding | None = None  # None: it was not asked, or has not answered yet
    load: Load | None = None
    progress: tuple[Progress, ...] = ()

    @property
    def present(self) -> bool:
        return self.state is not MemberState.LOST

    @property
    def can_be_asked(self) -> bool:
        return self.known and not self.left and bool(self.host and self.port and self.incarnation)

    def seconds_per_unit(self, job_id: str, attempt: int) -> float:
        """As last reported; 0: not known."""
        return next(
            (entry.seconds_per_unit for entry in self.progress if (entry.job_id, entry.attempt) == (job_id, attempt)),
            0.0,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Registration:
    member: Member
    message: str
    renamed: bool  # the id asked for belongs to somebody who lives
    newcomer: bool  # false: the same process registered again
    displaced: Member | None = None  # whose id it got: nothing of that one counts any more


@dataclass(frozen=True, kw_only=True, slots=True)
class Expiry:
    lost: tuple[Member, ...]  # since the last look
    forgotten: tuple[Member, ...]  # lost for so long that they are not listed any more


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    lease_seconds: float
    suspect_grace_seconds: float  # of a worker, which calls again at once when it lives
    server_grace_seconds: float  # of a parameter server, which is only heard by heartbeats
    lost_kept_seconds: float
    probe_seconds: float = 1.0  # the longest wait for the answer of a silent member that is asked


class Members:
    """The only owner of liveness. `limit` is for all that are listed, the lost ones too."""

    def __init__(self, *, clock: Clock, timing: Timing, limit: int = 10_000) -> None:
        self._clock = clock
        self._timing = timing
        self._limit = limit
        self._members: dict[str, Member] = {}
        self._displaced: dict[str, float] = {}  # workers' incarnations whose id another one has got, and since when

    def register(self, application: Application) -> Registration:
        """Makes a process known.

        Raises InvalidInput for an id that cannot be one, Exhausted if there is no room for another one, and FencedOff
        for a worker that has been counted as lost, or whose id another one has got since: the shards refuse that
        incarnation for good. A parameter server may come back: its shares are still what they were.
        Who leaves goes on leaving: a registration that was under way, or came twice, takes nothing back.
        """
        _check(application)
        now = self._clock.monotonic()
        wanted = application.member_id
        holder = self._members.get(wanted)
        same = self._find_incarnation(application)
        lost = same is not None and same.role is Role.WORKER and same.incarnation and not same.present
        if lost or application.incarnation in self._displaced:
            raise FencedOff(f"incarnation {application.incarnation} of {wanted} has been counted as dead: begin anew")
        if same is not None:
            member_id, renamed = same.member_id, same.member_id != wanted
            message = f"registered again as {member_id}"
        elif holder is None or _gives_way(holder, application):
            member_id, renamed = wanted, False
            message = f"registered as {member_id}"
        else:
            member_id, renamed = self._free_id(wanted), True
            message = f"the id {wanted} belongs to a live {holder.role}: registered as {member_id}"
        if member_id not in self._members and len(self._members) >= self._limit:
            raise Exhausted(
                f"this master lists {self._limit} members already, and has no room for {member_id}; try again later",
                retry_after_seconds=_FULL_SECONDS,
            )
        leaving = same is not None and same.state is MemberState.LEAVING
        left = same is not None and leaving and same.left
        member = Member(
            member_id=member_id,
            role=application.role,
            incarnation=application.incarnation,
            host=application.host,
            port=application.port,
            metrics_port=application.metrics_port,
            capabilities=application.capabilities,
            state=MemberState.LEAVING if leaving else MemberState.ALIVE,
            heard_at=now,
            ends_at=now if left else now + self._timing.lease_seconds,
            left=left,
            load=same.load if same else None,
            progress=same.progress if same else (),
        )
        before = self._members.get(member_id)
        displaced = before if before is not None and before.incarnation not in ("", member.incarnation) else None
        if displaced is not None and displaced.role is Role.WORKER:
            self._displaced[displaced.incarnation] = now
        self._members[member_id] = member
        return Registration(member=member, message=message, renamed=renamed, newcomer=same is None, displaced=displaced)

    def heard(
        self,
        member_id: str,
        incarnation: str,
        *,
        load: Load | None = None,
        progress: tuple[Progress, ...] | None = None,
    ) -> Member | None:
        """Renews the lease. None: not recognized (unknown, lost, or another incarnation); it must register again.

        Who leaves does not come back by a heartbeat that was under way, only as another incarnation.
        """
        member = self.recognized(member_id, incarnation)
        if member is None or member.left:
            return member
        now = self._clock.monotonic()
        member = replace(
            member,
            state=MemberState.LEAVING if member.state is MemberState.LEAVING else MemberState.ALIVE,
            heard_at=now,
            ends_at=now + self._timing.lease_seconds,
            load=member.load if load is None else load,
            progress=member.progress if progress is None else progress,
            doubted=False,
            asked_at=None,
            finding=None,
        )
        self._members[member_id] = member
        return member

    def recognized(self, member_id: str, incarnation: str) -> Member | None:
        member = self._members.get(member_id)
        if member is None or not member.present or not member.known or member.incarnation != incarnation:
            return None
        return member

    def leaves(self, member_id: str, incarnation: str) -> Member | None:
        """It is about to end: what it has is for others. None: not recognized."""
        return self._depart(member_id, incarnation, left=False)

    def left(self, member_id: str, incarnation: str) -> Member | None:
        """It ends now: lost with the next look. None: not recognized."""
        return self._depart(member_id, incarnation, left=True)

    def _depart(self, member_id: str, incarnation: str, *, left: bool) -> Member | None:
        member = self.recognized(member_id, incarnation)
        if member is None:
            return None
        ends_at = self._clock.monotonic() if left else member.ends_at
        member = replace(member, state=MemberState.LEAVING, left=member.left or left, ends_at=ends_at)
        self._members[member_id] = member
        return member

    def connection_broke(self, member_id: str, incarnation: str) -> None:
        """Suspects a member at once; it is lost soon unless it is heard again."""
        member = self.recognized(member_id, incarnation)
        if member is None or member.state is MemberState.SUSPECT:
            return
        grace = self._timing.suspect_grace_seconds if member.role is Role.WORKER else self._timing.server_grace_seconds
        ends_at = min(member.ends_at, self._clock.monotonic() + grace)
        state = MemberState.LEAVING if member.state is MemberState.LEAVING else MemberState.SUSPECT
        self._members[member_id] = replace(member, state=state, ends_at=ends_at, doubted=True)

    def take_doubtful(self) -> tuple[Member, ...]:
        """Whom to ask now, on another connection, whether they live: each is given out once until it is heard again."""
        now = self._clock.monotonic()
        doubtful = [
            replace(
                member,
                asked_at=now,
                state=MemberState.LEAVING if member.state is MemberState.LEAVING else MemberState.SUSPECT,
            )
            for member in self._members.values()
            if member.present
            and member.can_be_asked
            and member.asked_at is None
            and (member.doubted or now >= member.ends_at)
        ]
        self._members.update({member.member_id: member for member in doubtful})
        return tuple(doubtful)

    def found(self, member_id: str, incarnation: str, finding: Finding) -> None:
        """Only a definite answer changes anything. That a worker lives prolongs its lease, once until it is heard."""
        member = self.recognized(member_id, incarnation)
        if member is None or member.asked_at is None or member.finding is not None:
            return
        ends_at = member.ends_at
        if finding is Finding.ALIVE:
            ends_at = self._clock.monotonic() + self._timing.lease_seconds
        self._members[member_id] = replace(member, finding=finding, ends_at=ends_at)

    def _lost_at(self, member: Member) -> float:
        """Monotonic seconds from which on it is lost, as things stand."""
        if member.finding is Finding.GONE:
            return member.asked_at or member.ends_at
        if not member.can_be_asked or member.finding is not None:
            return member.ends_at
        asked_at = member.ends_at if member.asked_at is None else member.asked_at
        return max(member.ends_at, asked_at + self._timing.probe_seconds)

    def expect(self, member_id: str, role: Role) -> None:
        """A restarted master knows a name from its store: its owner has one period of grace to register."""
        now = self._clock.monotonic()
        grace = max(self._timing.lease_seconds, _REJOIN_SECONDS)
        self._members.setdefault(
            member_id,
            Member(
                member_id=member_id,
                role=role,
                incarnation="",
                host="",
                port=0,
                metrics_port=0,
                capabilities=Capabilities(has_gpu=False, supported_models=frozenset(), max_concurrent_jobs=0),
                state=MemberState.SUSPECT,
                heard_at=now,
                ends_at=now + grace,
                known=False,
            ),
        )

    def expire(self) -> Expiry:
        """Whose time has run out: lost now, or lost for so long that they are forgotten."""
        now = self._clock.monotonic()
        kept = self._timing.lost_kept_seconds
        self._displaced = {gone: since for gone, since in self._displaced.items() if now < since + kept}
        lost: list[Member] = []
        forgotten: list[Member] = []
        for member in list(self._members.values()):
            if member.present and now >= self._lost_at(member):
                member = replace(member, state=MemberState.LOST, ends_at=now)
                self._members[member.member_id] = member
                lost.append(member)
            elif not member.present and (now >= member.ends_at + kept or not member.known):
                del self._members[member.member_id]
                forgotten.append(member)
        return Expiry(lost=tuple(lost), forgotten=tuple(forgotten))

    def get(self, member_id: str) -> Member | None:
        return self._members.get(member_id)

    @property
    def everyone(self) -> tuple[Member, ...]:
        return tuple(self._members.values())

    def of(self, role: Role) -> tuple[Member, ...]:
        """Everyone of a role, the lost ones too, by id."""
        found = (member for member in self._members.values() if member.role is role)
        return tuple(sorted(found, key=lambda member: member.member_id))

    def seconds_since_heard(self, member: Member) -> float:
        return self._clock.monotonic() - member.heard_at

    def next_expiry(self) -> float | None:
        """Monotonic seconds of the earliest loss or question to come, as things stand."""
        times = (
            member.ends_at if member.asked_at is None else self._lost_at(member)
            for member in self._members.values()
            if member.present
        )
        return min(times, default=None)

    def _find_incarnation(self, application: Application) -> Member | None:
        """The same process, under the name it wants or the one it was given."""
        if not application.incarnation:
            holder = self._members.get(application.member_id)
            same = (
                holder is not None
                and holder.known
                and holder.role is application.role
                and (holder.incarnation, holder.host, holder.port) == ("", application.host, application.port)
            )
            return holder if same else None
        matching: Iterable[Member] = (
            member
            for member in self._members.values()
            if member.incarnation == application.incarnation and member.role is application.role
        )
        return next(iter(matching), None)

    def _free_id(self, wanted: str) -> str:
        number = 2
        while (member := self._members.get(f"{wanted}-{number}")) is not None and member.present:
            number += 1
        return f"{wanted}-{number}"


def _gives_way(holder: Member, application: Application) -> bool:
    """May a newcomer have the holder's id? Yes if the holder is lost, silent, or proven to be gone.

    Two processes cannot listen on one port, so a parameter server's successor in the same place proves that. It must
    keep the name, for jobs know their servers by name.
    """
    if not holder.present or holder.left:
        return True
    if holder.role is not application.role:
        return False
    if holder.state is MemberState.SUSPECT:
        return True
    return (
        holder.role is Role.PARAMETER_SERVER
        and application.port > 0
        and (holder.host, holder.port) == (application.host, application.port)
        and bool(application.incarnation)
    )


def _check(application: Application) -> None:
    if not _ID.fullmatch(application.member_id):
        raise InvalidInput(
            f"worker_id '{application.member_id}': 1 to 127 letters, digits, '.', '_' or '-' are expected,"
            " beginning with a letter or digit",
            field="worker_id",
        )
    if not 0 <= application.port <= 65_535:
        raise InvalidInput(f"port {application.port} is not within 0..65535", field="port")
    if application.role is Role.PARAMETER_SERVER and not (application.host and application.port):
        raise InvalidInput("a parameter server must say its host and port", field="port")
    if application.capabilities.max_concurrent_jobs < 0:
        raise InvalidInput(
            f"max_concurrent_jobs is {application.capabilities.max_concurrent_jobs}; at least 0 is expected",
            field="capabilities.max_concurrent_jobs",
        )
