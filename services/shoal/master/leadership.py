"""Which of several masters leads: it alone serves, and writes with its epoch on every write.

The store refuses the writes of earlier epochs, so that nothing here has to be exact for the jobs to be safe. What is
decided here is when to take the lead, and when to give up.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from shoal.core.errors import Deposed, Stale, Unavailable
from shoal.master.store.base import Database, Leader
from shoal.process.clock import Clock
from shoal.process.logs import get_logger

_LOOK_SECONDS = 0.25  # between looks of a standby, and between tries of a leader that could not renew
_RENEW_SECONDS = 0.5  # at most, between renewals: a lost session is to be back before it counts as dead
_UNATTENDED_SECONDS = 1.5  # a leader without a session for so long is dead; it reconnects within _LOOK_SECONDS if not
_GIVE_UP = 0.75  # of a lease without renewal: then this master stops, before another one may lead
_LAST_TRY = 0.1  # of a lease: for the one try of a master that was frozen for longer
_RESIGN_SECONDS = 2.0

VACANT = "nobody leads"
EXPIRED = "the lease has expired"
UNATTENDED = "the leader's session with the store has ended"


@dataclass(frozen=True, kw_only=True, slots=True)
class Take:
    reason: str
    unattended: bool = False  # before its lease ends


@dataclass(frozen=True, kw_only=True, slots=True)
class StandBy:
    reason: str


def decide(leader: Leader, *, unattended_seconds: float) -> Take | StandBy:
    """What a master does that does not lead. `unattended_seconds`: for how long it has seen no session of the leader's.

    The lease is what counts with a leader that is frozen or cut off. One that is dead shows by its session, sooner.
    """
    if not leader.incarnation:
        return Take(reason=VACANT)
    if leader.seconds_left <= 0:
        return Take(reason=EXPIRED)
    if unattended_seconds >= _UNATTENDED_SECONDS:
        return Take(reason=UNATTENDED, unattended=True)
    return StandBy(reason=f"standby: {leader} leads, in epoch {leader.epoch}")


class _Absence:
    """For how long a leader has had no session."""

    def __init__(self) -> None:
        self._epoch = 0
        self._since: float | None = None

    def seconds(self, leader: Leader, *, now: float) -> float:
        if leader.attended or leader.epoch != self._epoch or self._since is None:
            self._epoch, self._since = leader.epoch, None if leader.attended else now
        return 0.0 if self._since is None else now - self._since


class Leadership:
    """This master's part: waits for the lead, keeps it, hands it back."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        incarnation: str,
        host: str,
        lease_seconds: float,
        lost: Callable[[Deposed], None],
    ) -> None:
        self._database = database
        self._clock = clock
        self._incarnation = incarnation
        self._host = host
        self._lease_seconds = lease_seconds
        self._lost = lost
        self._log = get_logger()
        self._renewed_at = 0.0  # monotonic seconds, before the renewal was sent
        self._over = False
        self.epoch = 0  # of this master, once it leads

    async def win(self, *, waits: Callable[[str], None]) -> None:
        """Returns when this master leads. `waits` hears what it waits for."""
        said = ""
        absence = _Absence()
        while True:
            try:
                leader = await self._database.look()
                decision = decide(leader, unattended_seconds=absence.seconds(leader, now=self._clock.monotonic()))
                if isinstance(decision, Take):
                    await self._take(leader, decision, waited=bool(said))
                    return
                reason = decision.reason
            except Stale as error:  # somebody else was quicker
                reason = f"standby: {error}"
            except Unavailable as error:
                reason, absence = str(error), _Absence()
            waits(reason)
            if reason != said:
                self._log.info("master_waits", reason=reason)
                said = reason
            await asyncio.sleep(_LOOK_SECONDS)

    async def _take(self, leader: Leader, decision: Take, *, waited: bool) -> None:
        self._renewed_at = self._clock.monotonic()
        self.epoch = await self._database.take(
            leader,
            incarnation=self._incarnation,
            host=self._host,
            lease_seconds=self._lease_seconds,
            unattended=decision.unattended,
        )
        if waited:
            self._log.info("master_leads", epoch=self.epoch, reason=decision.reason)

    async def keep(self) -> None:
        """Renews the lease until it is lost or given back."""
        pause = 0.0
        while not self._over:
            await asyncio.sleep(pause)
            begun = self._clock.monotonic()
            patience = max(self._seconds_left(), _LAST_TRY * self._lease_seconds)
            error = await self._renew(patience)
            if error is None:
                self._renewed_at = begun
                pause = min(_RENEW_SECONDS, self._lease_seconds / 6)
            elif isinstance(error, Deposed):
                self.lose(error)
                return
            elif self._seconds_left() <= 0:
                silent = self._clock.monotonic() - self._renewed_at
                self.lose(Deposed(f"this master could not renew its lease for {silent:.1f} s: {error}"))
                return
            else:
                self._log.warning("lease_not_renewed", error=str(error), seconds_left=round(self._seconds_left(), 2))
                pause = min(_LOOK_SECONDS, self._lease_seconds / 6)

    def _seconds_left(self) -> float:
        """Until this master has to give up."""
        return self._renewed_at + _GIVE_UP * self._lease_seconds - self._clock.monotonic()

    async def _renew(self, patience: float) -> Unavailable | None:
        """Why the lease is not renewed. A renewal that hangs is left behind: its connection may take long to end."""
        renewal = asyncio.ensure_future(self._database.renew(self.epoch, lease_seconds=self._lease_seconds))
        renewal.add_done_callback(lambda task: task.cancelled() or task.exception())  # of one left behind: of no use
        try:
            await asyncio.wait({renewal}, timeout=patience)
        finally:
            if not renewal.done():
                renewal.cancel()
        if not renewal.done():
            return Unavailable("the job store does not answer")
        try:
            renewal.result()
        except Unavailable as error:
            return error
        return None

    def lose(self, error: Deposed) -> None:
        """Another master leads, or may."""
        if not self._over:
            self._over = True
            self._lost(error)

    async def resign(self) -> None:
        """Another master may lead at once. Best effort: without it, when the lease or the session has ended."""
        if self._over or not self.epoch:
            return
        self._over = True
        try:
            async with asyncio.timeout(_RESIGN_SECONDS):
                await self._database.resign(self.epoch)
        except (Unavailable, TimeoutError) as error:
            self._log.warning("not_resigned", error=str(error) or "the job store does not answer")
