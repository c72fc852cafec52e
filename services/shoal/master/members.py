"""Who is there: workers and parameter servers, from their registrations, heartbeats and broken connections.

In memory only, and rebuilt from what members say. Plain code on a clock; no I/O.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from shoal.core.errors import InvalidInput
from shoal.core.job import Capabilities, Load, Progress
from shoal.process.clock import Clock

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}")
NOT_RECOGNIZED = "worker not recognized: register again"


class Role(StrEnum):
    WORKER = "worker"
    PARAMETER_SERVER = "parameter server"


class MemberState(StrEnum):
    ALIVE = "alive"
    LEAVING = "leaving"  # hands its ranks back: gets nothing, keeps nothing
    SUSPECT = "suspect"  # its connection broke, or a restarted master has not heard of it yet: gets nothing new
    LOST = "lost"  # must register again


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
    load: Load | None = None
    progress: tuple[Progress, ...] = ()

    @property
    def present(self) -> bool:
        return self.state is not MemberState.LOST

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


class Members:
    """The only owner of liveness."""

    def __init__(self, *, clock: Clock, timing: Timing) -> None:
        self._clock = clock
        self._timing = timing
        self._members: dict[str, Member] = {}

    def register(self, application: Application) -> Registration:
        """Makes a process known. Raises InvalidInput for an id that cannot be one."""
        _check(application)
        now = self._clock.monotonic()
        wanted = application.member_id
        holder = self._members.get(wanted)
        same = self._find_incarnation(application)
        if same is not None:
            member_id, renamed = same.member_id, same.member_id != wanted
            message = f"registered again as {member_id}"
        elif holder is None or _gives_way(holder, application):
            member_id, renamed = wanted, False
            message = f"registered as {member_id}"
        else:
            member_id, renamed = self._free_id(wanted), True
            message = f"the id {wanted} belongs to a live {holder.role}: registered as {member_id}"
        member = Member(
            member_id=member_id,
            role=application.role,
            incarnation=application.incarnation,
            host=application.host,
            port=application.port,
            metrics_port=application.metrics_port,
            capabilities=application.capabilities,
            state=MemberState.ALIVE,
            heard_at=now,
            ends_at=now + self._timing.lease_seconds,
            load=same.load if same else None,
            progress=same.progress if same else (),
        )
        self._members[member_id] = member
        return Registration(member=member, message=message, renamed=renamed, newcomer=same is None)

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
        self._members[member_id] = replace(member, state=state, ends_at=ends_at)

    def expect(self, member_id: str, role: Role) -> None:
        """A restarted master knows a name from its store: its owner has one lease of time to register."""
        now = self._clock.monotonic()
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
                ends_at=now + self._timing.lease_seconds,
                known=False,
            ),
        )

    def expire(self) -> Expiry:
        """Whose time has run out: lost now, or lost for so long that they are forgotten."""
        now = self._clock.monotonic()
        lost: list[Member] = []
        forgotten: list[Member] = []
        for member in list(self._members.values()):
            if member.present and now >= member.ends_at:
                member = replace(member, state=MemberState.LOST, ends_at=now)
                self._members[member.member_id] = member
                lost.append(member)
            elif not member.present and (now >= member.ends_at + self._timing.lost_kept_seconds or not member.known):
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
        """Monotonic seconds of the earliest loss to come, as things stand."""
        return min((member.ends_at for member in self._members.values() if member.present), default=None)

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
