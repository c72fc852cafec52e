"""Which job runs where. Pure: the facts go in, decisions with their reasons come out.

* Waiting jobs go by priority, then age. One starts when `min_workers` capable workers have a free slot and there are
  enough parameter servers. It may take workers from jobs that hold more than their own `min_workers`.
* Workers that are free flow to jobs that can use more, the higher priority first, and evenly among equals.
* A job that could run, were others not in its way, keeps its workers from those behind it: nobody starves.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from shoal.core.job import Capabilities, Job, Phase, Requirements
from shoal.master import reasons
from shoal.master.scheduling.spread import Hysteresis, Ranks, respread, spread


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerFacts:
    worker_id: str
    capabilities: Capabilities
    open: bool = True  # false: keeps what it has and gets nothing new (suspect, or not heard since a restart)
    known: bool = True  # false: only expected, its capabilities are not known
    leaving: bool = False  # hands back what it has


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerFacts:
    server_id: str
    shares: int  # jobs that have a share there
    open: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Those who are there; the lost are not in it."""

    workers: tuple[WorkerFacts, ...]
    servers: tuple[ServerFacts, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class JobFacts:
    """A live job. It is under way if an attempt has begun, else it waits."""

    job_id: str
    requirements: Requirements
    submitted_at: float
    under_way: bool
    servers: tuple[str, ...] = ()  # once chosen, they stay
    lost_shares: tuple[str, ...] = ()  # servers whose share of the attempt is gone
    ranks: Ranks = field(default_factory=dict)
    unfit: frozenset[str] = frozenset()  # workers where trainers of the attempt kept being killed
    seconds_per_unit: Mapping[str, float] = field(default_factory=dict)
    moved_at: float = 0.0  # monotonic seconds: when ranks last moved
    not_before: float = 0.0  # monotonic seconds: the earliest begin of the next attempt
    closing: bool = False  # results are in; only the snapshot is missing
    paused: bool = False  # on a user's wish: it gets no workers, and keeps none


def least_workers(requirements: Requirements) -> int:
    """Workers that a job needs to start: never more than it has ranks for."""
    return min(requirements.min_workers, requirements.max_workers, requirements.world_size)


def precedence(job: JobFacts | Job) -> tuple[int, float, str]:
    """The smallest goes first."""
    return (-job.requirements.priority, job.submitted_at, job.job_id)


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Begin the next attempt."""

    job_id: str
    servers: tuple[str, ...]
    ranks: Ranks
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """Spread the ranks of a running attempt like this."""

    job_id: str
    ranks: Ranks
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Recover:
    """End the attempt: a part of the weights is gone, or all who could go on with it have given it up."""

    job_id: str
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Wait:
    job_id: str
    reason: str
    message: str


Decision = Start | Move | Recover | Wait


def decide(now: float, jobs: tuple[JobFacts, ...], cluster: Cluster, settings: Hysteresis) -> tuple[Decision, ...]:
    """`now` in monotonic seconds. At most one decision per job, in the order in which to apply them."""
    ordered = sorted(jobs, key=precedence)
    recoveries = [_recovery(job) for job in ordered if job.under_way and job.lost_shares]
    gone = {decision.job_id for decision in recoveries}
    table = _Table(cluster, [job for job in ordered if job.under_way and job.job_id not in gone])
    stranded = [_stranding(team.facts) for team in table.teams.values() if table.is_stranded(team)]
    gone.update(decision.job_id for decision in stranded)
    waiting = [_admit(now, job, table) for job in ordered if not job.under_way]
    table.grow()
    table.level()
    moves = [
        move
        for job in table.teams.values()
        if job.facts.under_way
        and job.facts.job_id not in gone
        and (move := _move(now, job, table.leaving, settings)) is not None
    ]
    starts = [_start(admission, table) if isinstance(admission, _Admission) else admission for admission in waiting]
    return (*recoveries, *stranded, *moves, *starts)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Admission:
    job: JobFacts
    servers: tuple[str, ...]


@dataclass(kw_only=True, slots=True)
class _Team:
    facts: JobFacts
    workers: list[str]

    @property
    def most(self) -> int:
        return 0 if self.facts.requirements.external or self.facts.paused else self.facts.requirements.max_workers

    @property
    def needs_workers(self) -> bool:
        return not (self.workers or self.facts.requirements.external or self.facts.closing or self.facts.paused)

    @property
    def surplus(self) -> int:
        """Workers that others may take."""
        if self.facts.closing:
            return 0
        return max(0, len(self.workers) - max(1, least_workers(self.facts.requirements)))

    @property
    def grows(self) -> bool:
        return not self.facts.closing and len(self.workers) < self.most


class _Table:
    """The slots of every worker, and who sits there."""

    def __init__(self, cluster: Cluster, under_way: list[JobFacts]) -> None:
        self.workers = {worker.worker_id: worker for worker in cluster.workers}
        self.shares = {server.server_id: server.shares for server in cluster.servers if server.open}
        self.leaving = frozenset(worker.worker_id for worker in cluster.workers if worker.leaving)
        self.used = dict.fromkeys(self.workers, 0)
        self.reserved: set[str] = set()
        self.teams: dict[str, _Team] = {}
        for job in under_way:
            self.teams[job.job_id] = _Team(facts=job, workers=[])
            for worker_id in job.ranks if not job.paused else ():
                if self._may_stay(worker_id, job):
                    self._seat(job.job_id, worker_id)
        for job in under_way:
            if self.teams[job.job_id].needs_workers:
                self.gather(job, need=1)

    def capable(self, job: JobFacts) -> list[str]:
        """Workers that could run it, were they free; least used first."""
        able = (worker for worker in self.workers.values() if worker.open and _can(worker.capabilities, job))
        found = [worker for worker in able if worker.worker_id not in job.unfit]
        return [worker.worker_id for worker in sorted(found, key=lambda w: (self.used[w.worker_id], w.worker_id))]

    def is_stranded(self, team: _Team) -> bool:
        """Nobody is there for its attempt but workers that have given it up: to them, too, the next one is new."""
        if not (team.facts.unfit and team.needs_workers) or self.capable(team.facts):
            return False
        return bool(self.capable(replace(team.facts, unfit=frozenset())))

    def free(self, worker_id: str) -> bool:
        return self.used[worker_id] < self.workers[worker_id].capabilities.max_concurrent_jobs

    def gather(self, job: JobFacts, *, need: int) -> bool:
        """Seats the job on `need` workers: free ones, then what others hold above their least. All or nothing."""
        capable = [worker_id for worker_id in self.capable(job) if worker_id not in self.reserved]
        chosen = [worker_id for worker_id in capable if self.free(worker_id)][:need]
        surplus = {team.facts.job_id: team.surplus for team in self.teams.values()}
        taken: list[tuple[str, str]] = []
        for worker_id in capable:
            if len(chosen) == need:
                break
            if worker_id in chosen:
                continue
            donors = [t for t in self.teams.values() if worker_id in t.workers and surplus[t.facts.job_id] > 0]
            if donors:
                donor = max(donors, key=lambda t: (precedence(t.facts)[0], len(t.workers), t.facts.job_id)).facts.job_id
                surplus[donor] -= 1
                taken.append((donor, worker_id))
                chosen.append(worker_id)
        if len(chosen) < need:
            return False
        for donor, worker_id in taken:
            self._unseat(donor, worker_id)
        self.teams.setdefault(job.job_id, _Team(facts=job, workers=[]))
        for worker_id in chosen:
            self._seat(job.job_id, worker_id)
        return True

    def grow(self) -> None:
        """Free slots go to who can use more: the highest priority, then the smallest team."""
        hungry = [team for team in self.teams.values() if team.grows]
        while hungry:
            team = min(hungry, key=lambda t: (precedence(t.facts)[0], len(t.workers), precedence(t.facts)))
            free = [w for w in self.capable(team.facts) if self.free(w) and w not in team.workers]
            if free:
                self._seat(team.facts.job_id, free[0])
            if not free or not team.grows:
                hungry.remove(team)

    def level(self) -> None:
        """Moves workers from jobs above their least to those of higher priority, or of equal and two smaller."""
        while (step := self._next_move()) is not None:
            donor, taker, worker_id = step
            self._unseat(donor, worker_id)
            self._seat(taker, worker_id)

    def _next_move(self) -> tuple[str, str, str] | None:
        teams = sorted(self.teams.values(), key=lambda t: precedence(t.facts))
        for taker in (team for team in teams if team.grows):
            capable = self.capable(taker.facts)
            for donor in sorted(teams, key=lambda t: (-precedence(t.facts)[0], -len(t.workers))):
                higher = taker.facts.requirements.priority - donor.facts.requirements.priority
                fair = higher > 0 or (higher == 0 and len(donor.workers) - len(taker.workers) >= 2)
                if not fair or not donor.surplus:
                    continue
                for worker_id in reversed(donor.workers):
                    if worker_id in capable and worker_id not in taker.workers:
                        return donor.facts.job_id, taker.facts.job_id, worker_id
        return None

    def _may_stay(self, worker_id: str, job: JobFacts) -> bool:
        worker = self.workers.get(worker_id)
        if worker is None or worker.leaving or worker_id in job.unfit:
            return False
        return not worker.known or (_can(worker.capabilities, job) and self.free(worker_id))

    def _seat(self, job_id: str, worker_id: str) -> None:
        self.teams[job_id].workers.append(worker_id)
        self.used[worker_id] += 1

    def _unseat(self, job_id: str, worker_id: str) -> None:
        self.teams[job_id].workers.remove(worker_id)
        self.used[worker_id] -= 1


def _can(capabilities: Capabilities, job: JobFacts) -> bool:
    requirements = job.requirements
    return (
        requirements.model_type in capabilities.supported_models
        and (capabilities.has_gpu or not requirements.gpu)
        and capabilities.max_concurrent_jobs > 0
    )


def _admit(now: float, job: JobFacts, table: _Table) -> _Admission | Wait:
    """Seats a waiting job, or says what it waits for."""
    requirements = job.requirements
    if job.paused:
        return Wait(job_id=job.job_id, reason=reasons.PAUSED, message="paused: 'shoal resume' lets it go on")
    if now < job.not_before:
        return Wait(
            job_id=job.job_id, reason=reasons.RETRY_DELAY, message="the next attempt begins after a short delay"
        )
    servers = _choose_servers(job, table)
    if isinstance(servers, Wait):
        return servers
    if not requirements.external:
        capable = table.capable(job)
        if not table.gather(job, need=least_workers(requirements)):
            blocked = set(capable) & table.reserved
            if len(capable) >= least_workers(requirements):
                table.reserved.update(capable)
            return _wait_for_workers(job, capable, table, blocked)
    else:
        table.teams[job.job_id] = _Team(facts=job, workers=[])
    for server_id in servers:
        table.shares[server_id] += 1
    return _Admission(job=job, servers=servers)


def _wait_for_workers(job: JobFacts, capable: list[str], table: _Table, blocked: set[str]) -> Wait:
    requirements = job.requirements
    free = sum(1 for worker_id in capable if table.free(worker_id) and worker_id not in blocked)
    asked = f"{least_workers(requirements)} worker(s) that support '{requirements.model_type}'"
    asked += " and have a GPU" if requirements.gpu else ""
    if blocked:
        message = f"waits for {asked}: {len(blocked)} are kept for a job that goes first"
        return Wait(job_id=job.job_id, reason=reasons.BEHIND_OTHERS, message=message)
    message = f"waits for {asked}: {len(capable)} of {len(table.workers)} are capable, {free} of them free"
    return Wait(job_id=job.job_id, reason=reasons.NOT_ENOUGH_WORKERS, message=message)


def _choose_servers(job: JobFacts, table: _Table) -> tuple[str, ...] | Wait:
    """The job's own servers once it has some; else the least loaded ones."""
    if job.servers:
        missing = [server_id for server_id in job.servers if server_id not in table.shares]
        if not missing:
            return job.servers
        message = f"waits for its parameter servers to come back: {', '.join(missing)}"
        return Wait(job_id=job.job_id, reason=reasons.NOT_ENOUGH_PARAMETER_SERVERS, message=message)
    if len(table.shares) < job.requirements.shards:
        message = f"waits for {job.requirements.shards} parameter server(s): {len(table.shares)} are alive"
        return Wait(job_id=job.job_id, reason=reasons.NOT_ENOUGH_PARAMETER_SERVERS, message=message)
    by_load = sorted(table.shares, key=lambda server_id: (table.shares[server_id], server_id))
    return tuple(by_load[: job.requirements.shards])


def _start(admission: _Admission, table: _Table) -> Start:
    job = admission.job
    workers = table.teams[job.job_id].workers
    ranks = spread(
        world_size=job.requirements.world_size,
        workers=workers,
        seconds_per_unit=job.seconds_per_unit,
        current=job.ranks,
    )
    servers = f"{len(admission.servers)} parameter server(s)"
    if job.requirements.external:
        return Start(
            job_id=job.job_id,
            servers=admission.servers,
            ranks={},
            reason=reasons.SERVERS_FOUND,
            message=f"{servers}; clients train it",
        )
    return Start(
        job_id=job.job_id,
        servers=admission.servers,
        ranks=ranks,
        reason=reasons.WORKERS_FOUND,
        message=f"{len(workers)} worker(s), {servers}",
    )


def _recovery(job: JobFacts) -> Recover:
    return Recover(
        job_id=job.job_id,
        reason=reasons.PARAMETER_SERVER_LOST,
        message=f"the share on {', '.join(job.lost_shares)} is gone; the job goes back to its newest snapshot",
    )


def _stranding(job: JobFacts) -> Recover:
    return Recover(
        job_id=job.job_id,
        reason=reasons.TRAINERS_KILLED,
        message=f"only workers are left whose trainers kept being killed: {', '.join(sorted(job.unfit))}",
    )


def _move(now: float, team: _Team, leaving: frozenset[str], settings: Hysteresis) -> Move | None:
    job = team.facts
    if job.requirements.external or job.closing:
        return None
    ranks = respread(
        world_size=job.requirements.world_size,
        workers=team.workers,
        seconds_per_unit=job.seconds_per_unit,
        current=job.ranks,
        seconds_since_move=now - job.moved_at,
        hysteresis=settings,
    )
    if dict(ranks) == dict(job.ranks):
        return None
    joined = sorted(set(ranks) - set(job.ranks))
    left = sorted(set(job.ranks) - set(ranks))
    handed_back = leaving.intersection(left)
    if job.paused:
        reason, message = reasons.PAUSED, f"paused: {', '.join(left)} left"
    elif not ranks:
        reason, message = reasons.NO_WORKERS, f"no worker is left: {', '.join(left)} gone"
    elif joined and left:
        reason, message = reasons.WORKERS_CHANGED, f"{', '.join(joined)} joined, {', '.join(left)} left"
    elif joined:
        reason, message = reasons.WORKER_JOINED, f"{', '.join(joined)} joined"
    elif left and job.unfit.issuperset(left):
        reason, message = reasons.TRAINERS_KILLED, f"{', '.join(left)}: its trainers kept being killed; others go on"
    elif handed_back == set(left) and left:
        reason, message = reasons.WORKER_LEFT, f"{', '.join(left)} handed its ranks back"
    elif left:
        reason, message = reasons.WORKER_LOST, f"{', '.join(left)} left"
    else:
        reason, message = reasons.REBALANCED, "ranks follow the workers' measured speeds"
    return Move(job_id=job.job_id, ranks=ranks, reason=reason, message=message)


def is_waiting(job: Job) -> bool:
    return job.phase in (Phase.PENDING, Phase.RECOVERING)
