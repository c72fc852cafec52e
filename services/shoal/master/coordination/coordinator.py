"""The loop that keeps the cluster at what the scheduler decides: observe, decide, apply."""

import asyncio
import math
from collections import Counter

from shoal.core.errors import Stale, Unavailable
from shoal.core.job import Job, Phase
from shoal.master.changes import Changes
from shoal.master.coordination.fences import Fences
from shoal.master.lifecycle.beginning import Beginnings
from shoal.master.lifecycle.endings import Endings
from shoal.master.lifecycle.live import LiveJobs, Run
from shoal.master.membership.members import Member, Members, MemberState, Role
from shoal.master.membership.probes import Probes
from shoal.master.scheduling.grants import GrantBook
from shoal.master.scheduling.scheduler import (
    Cluster,
    Decision,
    JobFacts,
    Move,
    Recover,
    ServerFacts,
    Start,
    Wait,
    WorkerFacts,
    decide,
)
from shoal.master.scheduling.spread import Hysteresis
from shoal.master.settings import MasterSettings
from shoal.metrics.master import MasterMetrics
from shoal.process.clock import Clock
from shoal.process.logs import get_logger


class Coordinator:
    """Whoever changes a fact calls `kick`; the loop also looks by itself, for time is a fact, too."""

    def __init__(
        self,
        *,
        live: LiveJobs,
        beginnings: Beginnings,
        endings: Endings,
        fences: Fences,
        probes: Probes,
        members: Members,
        grants: GrantBook,
        changes: Changes,
        metrics: MasterMetrics,
        clock: Clock,
        settings: MasterSettings,
        kicked: asyncio.Event,
    ) -> None:
        self._live = live
        self._beginnings = beginnings
        self._endings = endings
        self._fences = fences
        self._probes = probes
        self._members = members
        self._grants = grants
        self._changes = changes
        self._metrics = metrics
        self._clock = clock
        self._settings = settings
        self._hysteresis = Hysteresis(
            gain=settings.rebalance_gain,
            gain_seconds=settings.rebalance_gain_seconds,
            seconds=settings.rebalance_seconds,
        )
        self._kicked = kicked
        self._waits: dict[str, Wait] = {}
        self._log = get_logger()

    def wait_of(self, job_id: str) -> Wait | None:
        """What a waiting job waits for."""
        return self._waits.get(job_id)

    async def run(self) -> None:
        """For ever."""
        while True:
            self._kicked.clear()
            await self.step()
            try:
                async with asyncio.timeout(self._pause()):
                    await self._kicked.wait()
            except TimeoutError:
                pass

    async def step(self) -> None:
        self._see_losses()
        self._beginnings.probe_adopted()
        decisions = decide(self._clock.monotonic(), self._job_facts(), self._cluster(), self._hysteresis)
        self._note_waits(decisions)
        for decision in decisions:
            try:
                await self._apply(decision)
            except (Stale, Unavailable) as error:
                self._log.warning("decision_not_applied", job_id=decision.job_id, error=str(error))
        self._measure()

    async def _apply(self, decision: Decision) -> None:
        if isinstance(decision, Wait):
            return
        job = self._live.job(decision.job_id)
        run = self._live.run(decision.job_id)
        facts = {"reason": decision.reason, "message": decision.message}
        match decision:
            case Start() if job is not None and run is None:
                await self._beginnings.begin(job, servers=decision.servers, ranks=decision.ranks, **facts)
            case Move() if run is not None:
                await self._beginnings.move(run, ranks=decision.ranks, **facts)
            case Recover() if run is not None:
                await self._endings.recover(run, **facts)
            case _:
                return  # it changed while an earlier decision was being stored; the next look takes that in
        self._metrics.decisions.labels(what=type(decision).__name__.lower(), reason=decision.reason).inc()

    def _pause(self) -> float:
        """Seconds until time itself may change something."""
        expiry = self._members.next_expiry()
        if expiry is None:
            return self._settings.tick_seconds
        return max(0.0, min(self._settings.tick_seconds, expiry - self._clock.monotonic()))

    def _see_losses(self) -> None:
        for member in self._members.take_doubtful():
            self._probes.ask(member)
        expiry = self._members.expire()
        for member in expiry.lost:
            tell = self._log.info if member.left else self._log.warning
            tell(
                "member_left" if member.left else "member_lost",
                member_id=member.member_id,
                role=member.role.value,
                incarnation=member.incarnation,
                seconds_since_heard=round(self._members.seconds_since_heard(member), 3),
                finding=member.finding,
            )
            if member.role is Role.WORKER:
                self._fences.cut(member)
                self._metrics.forget_worker(member.member_id)
        for member in expiry.forgotten:
            self._grants.forget(member.member_id)

    # Observe.

    def _job_facts(self) -> tuple[JobFacts, ...]:
        return tuple(self._facts_of(job) for job in self._live.jobs)

    def _facts_of(self, job: Job) -> JobFacts:
        run = self._live.run(job.job_id)
        if run is None:
            return JobFacts(
                job_id=job.job_id,
                requirements=job.requirements,
                submitted_at=job.submitted_at,
                under_way=False,
                servers=job.servers,
                paused=job.paused,
                not_before=self._live.not_before(job.job_id),
            )
        return JobFacts(
            job_id=job.job_id,
            requirements=job.requirements,
            submitted_at=job.submitted_at,
            under_way=True,
            servers=run.servers,
            lost_shares=self._live.lost_shares(run),
            ranks=run.ranks,
            unfit=self._live.unfit(run),
            seconds_per_unit=self.speeds(run),
            moved_at=run.moved_at,
            closing=run.closing,
            paused=job.paused,
        )

    def speeds(self, run: Run) -> dict[str, float]:
        """Seconds per unit by worker, as far as they are known."""
        return {
            worker_id: seconds
            for worker_id in run.ranks
            if (member := self._members.get(worker_id)) is not None
            and 0 < (seconds := member.seconds_per_unit(run.job_id, run.attempt)) < math.inf
        }

    def _cluster(self) -> Cluster:
        shares = Counter(server_id for job in self._live.jobs for server_id in job.servers)
        return Cluster(
            workers=tuple(_worker_facts(member) for member in self._members.of(Role.WORKER) if member.present),
            servers=tuple(
                ServerFacts(
                    server_id=member.member_id,
                    shares=shares[member.member_id],
                    open=member.state is MemberState.ALIVE and member.known,
                )
                for member in self._members.of(Role.PARAMETER_SERVER)
                if member.present
            ),
        )

    def _note_waits(self, decisions: tuple[Decision, ...]) -> None:
        waits = {decision.job_id: decision for decision in decisions if isinstance(decision, Wait)}
        for job_id, wait in waits.items():
            if self._waits.get(job_id) != wait:
                self._log.info("job_waits", job_id=job_id, reason=wait.reason, detail=wait.message)
        changed = [
            job_id for job_id in waits.keys() | self._waits.keys() if waits.get(job_id) != self._waits.get(job_id)
        ]
        self._waits = waits
        for job_id in changed:
            self._changes.touch(job_id)

    def _measure(self) -> None:
        phases = Counter(job.phase for job in self._live.jobs)
        for phase in Phase:
            if not phase.ended:
                self._metrics.jobs.labels(phase=phase.value).set(phases[phase])
        for role, gauge in ((Role.WORKER, self._metrics.workers), (Role.PARAMETER_SERVER, self._metrics.servers)):
            states = Counter(member.state for member in self._members.of(role) if member.known)
            for state in MemberState:
                gauge.labels(state=state.value).set(states[state])


def _worker_facts(member: Member) -> WorkerFacts:
    return WorkerFacts(
        worker_id=member.member_id,
        capabilities=member.capabilities,
        open=member.known and member.state is MemberState.ALIVE,
        known=member.known,
        leaving=member.state is MemberState.LEAVING,
    )
