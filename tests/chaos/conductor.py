"""Carries out a plan while jobs run, and tells what happened."""

import itertools
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from shoal.sdk import JobView
from tests.chaos.cluster import ChaosCluster, is_alive, until
from tests.chaos.jobs import BRIEF, KINDS, Ran, run_job
from tests.chaos.network import INBOUND, OUTBOUND, Network
from tests.chaos.plan import WORKERS, Fault, Kind
from tests.chaos.proxy import Proxy
from tests.postgres import PostgresServer

JOBS_AT_A_TIME = 2
ENDING_SECONDS = 500.0  # for the jobs that are left when every fault has happened, on a busy machine
POSSIBLE_SECONDS = 60.0  # a fault waits so long for its victim, such as a trainer on that worker
_DELAY_SECONDS = 0.05
_LAG_SECONDS = 0.01  # between submits and the leader's death: so much more each time


@dataclass(frozen=True, kw_only=True, slots=True)
class Lasting:
    """A fault that goes on until `end`. `proof` is what shows that it happens; '' while nothing does."""

    proof: Callable[[], str]
    end: Callable[[], object]


@dataclass(kw_only=True)
class Happened:
    """A fault that was begun. `proof` is what shows that it happened; '' if nothing does."""

    fault: Fault
    at: float  # seconds from the start
    jobs: int  # that ran
    proof: str = ""


@dataclass(kw_only=True)
class Report:
    seed: int
    seconds: float = 0.0
    happened: list[Happened] = field(default_factory=list)
    ran: list[Ran] = field(default_factory=list)
    listed: tuple[JobView, ...] = ()  # every job that the master knows at the end
    ended_by_themselves: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)

    @property
    def proven(self) -> list[Happened]:
        return [one for one in self.happened if one.proof]

    def summary(self) -> str:
        kinds = Counter(str(one.fault.kind) for one in self.proven)
        jobs = Counter(ran.kind for ran in self.ran)
        attempts = sum(ran.job.attempt for ran in self.ran)
        return (
            f"chaos: seed {self.seed}: {len(self.proven)} faults in {self.seconds:.0f} s;"
            f" {len(self.ran)} jobs in {attempts} attempts\n"
            + "".join(f"  {count:4} {kind}\n" for kind, count in sorted(kinds.items()))
            + f"  jobs: {', '.join(f'{count} {kind}' for kind, count in sorted(jobs.items()))}"
        )


def run_chaos(
    plan: Iterable[Fault],
    *,
    seed: int,
    steps: int,
    folder: Path,
    server: PostgresServer,
    network: Network | None,
    tell: Callable[[str], None] = print,
) -> Report:
    """Two masters on `server`, two parameter servers, three workers. Jobs run until every fault has happened."""
    with ExitStack() as stack:
        store = stack.enter_context(server.database())
        cluster = stack.enter_context(ChaosCluster(folder=folder, masters=2, store=store, network=network))
        pool = stack.enter_context(ThreadPoolExecutor(32, thread_name_prefix="client"))
        return _Conductor(plan, Report(seed=seed), cluster, server, pool, steps=steps, tell=tell).run()


class _Conductor:
    """On the thread that started the cluster; clients have threads of their own."""

    def __init__(
        self,
        plan: Iterable[Fault],
        report: Report,
        cluster: ChaosCluster,
        server: PostgresServer,
        pool: ThreadPoolExecutor,
        *,
        steps: int,
        tell: Callable[[str], None],
    ) -> None:
        self._plan = plan
        self._report = report
        self._cluster = cluster
        self._server = server
        self._pool = pool
        self._steps = steps
        self._tell = tell
        self._client = cluster.client()
        self._kinds = self._in_turn()
        self._running: dict[Future[Ran], str] = {}
        self._lasting: list[tuple[float, Happened, Lasting]] = []  # with when it is to end

    def run(self) -> Report:
        try:
            began = time.monotonic()
            self._tend_until(lambda: self._trainers_near(WORKERS[0]), "nobody trains")
            last = time.monotonic()
            for fault in self._plan:
                self._tend_for(last + fault.after_seconds - time.monotonic())
                last = self._do(fault, began)
            self._tend_until(lambda: not self._lasting, "a fault does not end")
            self._tend_until(lambda: not self._running, "jobs do not end", seconds=ENDING_SECONDS, new_jobs=False)
            report = self._report
            report.seconds = time.monotonic() - began
            report.listed = self._client.list()
            report.ended_by_themselves = self._cluster.ended_by_themselves
            report.tracebacks = [
                f"{path.name}: {line}"
                for path in sorted(self._cluster.folder.glob("*.log"))
                for line in path.read_text(errors="replace").splitlines()
                if "Traceback" in line or "task_failed" in line
            ]
            return report
        finally:
            for _, _, lasting in self._lasting:
                lasting.end()
            self._client.close()  # lets threads end that still wait

    # -- jobs -------------------------------------------------------------------------------------------------------

    def _in_turn(self) -> Iterator[str]:
        """The kinds; which comes first is the seed's choice."""
        yield from itertools.islice(itertools.cycle(KINDS), self._report.seed % len(KINDS), None)

    def _submit(self, kind: str) -> Future[Ran]:
        key = f"{kind}-{uuid.uuid4().hex}"
        job = self._pool.submit(run_job, self._client, kind, key, steps=self._steps)
        self._running[job] = kind
        return job

    def _tend(self, *, new_jobs: bool = True) -> None:
        self._cluster.tend()
        now = time.monotonic()
        for entry in list(self._lasting):
            until_then, happened, lasting = entry
            if now >= until_then and (lasting.proof() or now >= until_then + POSSIBLE_SECONDS):
                proof = lasting.proof()
                lasting.end()
                self._lasting.remove(entry)
                self._prove(happened, proof)
        for job in [job for job in self._running if job.done()]:
            del self._running[job]
            self._report.ran.append(job.result())
        while new_jobs and sum(kind != BRIEF for kind in self._running.values()) < JOBS_AT_A_TIME:
            self._submit(next(self._kinds))

    def _tend_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self._tend_until(lambda: time.monotonic() >= end, "time stands still")

    def _tend_until(
        self, condition: Callable[[], object], what: str, *, seconds: float = 120.0, new_jobs: bool = True
    ) -> None:
        def tended() -> object:
            self._tend(new_jobs=new_jobs)
            return condition()

        until(tended, what, seconds=seconds)

    # -- faults -----------------------------------------------------------------------------------------------------

    def _do(self, fault: Fault, began: float) -> float:
        """Returns when it happened."""
        begun: list[Lasting | str] = []

        def is_done() -> bool:
            what = self._try(fault)
            begun.extend([what] if what is not None else [])
            return bool(begun)

        self._tend_until(is_done, f"{fault} is not possible", seconds=POSSIBLE_SECONDS)
        now = time.monotonic()
        happened = Happened(fault=fault, at=now - began, jobs=len(self._running))
        self._report.happened.append(happened)
        (what,) = begun
        if isinstance(what, str):
            self._prove(happened, what)
        else:
            self._lasting.append((now + fault.for_seconds, happened, what))
        return now

    def _prove(self, happened: Happened, proof: str) -> None:
        happened.proof = proof
        number = 1 + self._report.happened.index(happened)
        shown = happened.proof or "IT DID NOT HAPPEN"
        self._tell(f"fault {number:3} at {happened.at:6.1f} s: {happened.fault}: {shown}; {happened.jobs} jobs")

    def _try(self, fault: Fault) -> Lasting | str | None:
        """What was done: its proof, where it is an instant's; None: not possible just now."""
        cluster, target = self._cluster, fault.target
        if fault.for_seconds and any(happened.fault.target == target for _, happened, _ in self._lasting):
            return None  # its end would be that of the one before
        match fault.kind:
            case Kind.KILL_LEADER:
                return self._kill_leader()
            case Kind.FREEZE_LEADER:
                leader = cluster.leader()
                return None if leader is None else self._freeze(leader.name)
            case Kind.KILL_STANDBY:
                leader = cluster.leader()
                waiting = [seat.name for seat in cluster.masters if seat is not leader]
                return None if leader is None else self._kill(waiting[0])
            case Kind.KILL_AGENT:
                return self._kill(target, whole_group=False)
            case Kind.FREEZE_AGENT:
                return self._freeze(target, whole_group=False)
            case Kind.KILL_WORKER | Kind.KILL_SERVER:
                return self._kill(target)
            case Kind.FREEZE_WORKER | Kind.FREEZE_SERVER:
                return self._freeze(target)
            case Kind.KILL_TRAINER:
                return next((_kill(trainer) for trainer in self._trainers_near(target)), None)
            case Kind.FREEZE_TRAINER:
                return next((_freeze(trainer) for trainer in self._trainers_near(target)), None)
            case Kind.KILL_STORE:
                self._server.kill()
                self._server.launch()
                return "started again"
            case Kind.FREEZE_STORE:
                return self._freeze_store()
            case Kind.CUT:
                proxy = self._proxy(target)
                before = proxy.counts.cut
                cluster.proxies.do(proxy.cut())
                cut = proxy.counts.cut - before
                return f"{cut} connections" if cut else None
            case Kind.STALL:
                proxy = self._proxy(target)
                cluster.proxies.do(proxy.stall())
                return self._counted(lambda: proxy.counts.stalled, proxy.flow)
            case Kind.DELAY:
                proxy = self._proxy(target)
                cluster.proxies.do(proxy.delay(_DELAY_SECONDS))
                return self._counted(lambda: proxy.counts.delayed, lambda: proxy.delay(0))
            case Kind.PART:
                return self._part(target, INBOUND, OUTBOUND)
            case Kind.PART_IN:
                return self._part(target, INBOUND)
            case Kind.PART_OUT:
                return self._part(target, OUTBOUND)

    def _kill_leader(self) -> str | None:
        """While a job is submitted: before it is received, later and later on its way, after its acknowledgement."""
        leader = self._cluster.leader()
        if leader is None or not leader.member.running:
            return None
        job = self._submit(BRIEF)
        wait([job], timeout=_LAG_SECONDS * sum(one.fault.kind is Kind.KILL_LEADER for one in self._report.happened))
        return self._kill(leader.name)

    def _kill(self, name: str, *, whole_group: bool = True) -> str | None:
        pid = self._cluster.seats[name].member.pid
        return f"{name}, process {pid}, ended" if self._cluster.kill(name, whole_group=whole_group) else None

    def _freeze(self, name: str, *, whole_group: bool = True) -> Lasting | None:
        """It, and its trainers if it has some."""
        try:
            leader = psutil.Process(self._cluster.seats[name].member.pid)
            return _freeze(leader, whole_group=whole_group)
        except psutil.NoSuchProcess:
            return None

    def _freeze_store(self) -> Lasting:
        frozen = ExitStack()
        frozen.enter_context(self._server.frozen())
        return Lasting(proof=lambda: "thawed", end=frozen.close)

    def _trainers_near(self, worker: str) -> list[psutil.Process]:
        """Those of the worker or, if it has no job, of another one."""
        others = (other for other in WORKERS if other != worker)
        return next((found for name in (worker, *others) if (found := self._trainers(name))), [])

    def _trainers(self, worker: str) -> list[psutil.Process]:
        """Those that have a job."""
        seat = self._cluster.seats[worker]
        lines = [line for line in self._cluster.log(worker).splitlines() if "job_started" in line]
        busy = {int(pid) for line in lines for pid in re.findall(r"pid=(\d+)", line)}
        return [trainer for trainer in seat.trainers() if trainer.pid in busy]

    def _proxy(self, target: str) -> Proxy:
        return {"to master": self._cluster.to_master, "to ps-1": self._cluster.to_server}[target]

    def _counted(self, count: Callable[[], int], end: Callable[[], Coroutine[Any, Any, None]]) -> Lasting:
        before = count()

        def proof() -> str:
            chunks = count() - before
            return f"{chunks} chunks waited" if chunks else ""

        return Lasting(proof=proof, end=lambda: self._cluster.proxies.do(end()))

    def _part(self, target: str, *chains: str) -> Lasting:
        place = self._cluster.places[target]
        place.drop(*chains)

        def proof() -> str:
            packets = place.dropped()
            return f"{packets} packets dropped" if packets else ""

        return Lasting(proof=proof, end=place.heal)


def _kill(process: psutil.Process) -> str | None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return None
    until(lambda: not is_alive(process), f"process {process.pid} does not end")
    return f"process {process.pid} ended"


def _freeze(leader: psutil.Process, *, whole_group: bool = False) -> Lasting | None:
    """With its children, if it is the whole group; None: one of them had ended or was frozen already."""
    try:
        if any(process.status() == psutil.STATUS_STOPPED for process in _group(leader, whole_group)):
            return None
        if not _stop(leader):
            return None
        # Only now, for a frozen one begins no more of them; those that end stay zombies until it wakes.
        stopped = [process for process in _group(leader, whole_group) if _stop(process)]
    except psutil.NoSuchProcess:
        _thaw(leader)
        return None

    def end() -> None:
        for process in stopped:
            _thaw(process)

    frozen = f"stopped were {', '.join(str(process.pid) for process in stopped)}"
    return Lasting(proof=lambda: frozen, end=end)


def _group(leader: psutil.Process, whole: bool) -> list[psutil.Process]:
    return [leader, *leader.children()] if whole else [leader]


def _stop(process: psutil.Process) -> bool:
    """False: it has ended, and waits for its parent."""
    process.suspend()
    until(
        lambda: process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE),
        f"process {process.pid} does not stop",
    )
    return process.status() == psutil.STATUS_STOPPED


def _thaw(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):  # it was killed meanwhile
        process.resume()
