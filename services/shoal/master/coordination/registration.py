"""Registration of members: who may have a name that somebody else had."""

from collections.abc import Callable

from shoal.core.errors import DeadlineExceeded, Unavailable
from shoal.core.job import ShardAddress
from shoal.master.clients.shards import ShardClient
from shoal.master.coordination.fences import Fences
from shoal.master.lifecycle.live import LiveJobs
from shoal.master.lifecycle.sweeping import Sweeper
from shoal.master.membership.members import Application, Member, Members, MemberState, Registration, Role
from shoal.master.membership.polls import Polls
from shoal.process.logs import get_logger


class Registrar:
    def __init__(
        self,
        *,
        members: Members,
        live: LiveJobs,
        polls: Polls,
        shards: ShardClient,
        fences: Fences,
        sweeper: Sweeper,
        kick: Callable[[], None],
    ) -> None:
        self._members = members
        self._fences = fences
        self._sweeper = sweeper
        self._live = live
        self._polls = polls
        self._shards = shards
        self._kick = kick
        self._log = get_logger()

    async def register(self, application: Application, *, held: tuple[str, ...]) -> Registration:
        """Makes a process known. `held`: jobs that it says it has. Raises InvalidInput or FencedOff."""
        holder = self._members.get(application.member_id)
        if holder is not None and self._is_in_the_way(holder, application) and not await self._answers(holder):
            self._members.connection_broke(holder.member_id, holder.incarnation)
        registration = self._members.register(application)
        member = registration.member
        if member.role is Role.PARAMETER_SERVER:
            self._live.drop_leftovers(member, held)
            self._sweeper.at(member)
        else:
            self._polls.registered(member, newcomer=registration.newcomer)
            if registration.displaced is not None:
                self._fences.cut(registration.displaced)
        self._kick()
        self._log.info(
            "member_registered",
            member_id=member.member_id,
            wanted=application.member_id,
            role=member.role.value,
            incarnation=member.incarnation,
            host=member.host,
            port=member.port,
            held=held,
        )
        return registration

    def _is_in_the_way(self, holder: Member, application: Application) -> bool:
        """A parameter server's successor needs its very name, for jobs know their servers by name."""
        return (
            holder.role is application.role is Role.PARAMETER_SERVER
            and holder.state is MemberState.ALIVE
            and holder.incarnation != application.incarnation
        )

    async def _answers(self, holder: Member) -> bool:
        where = ShardAddress(server_id=holder.member_id, host=holder.host, port=holder.port, index=0)
        try:
            await self._shards.ping(where)
        except (Unavailable, DeadlineExceeded) as error:
            self._log.info("holder_does_not_answer", member_id=holder.member_id, error=str(error))
            return False
        return True
