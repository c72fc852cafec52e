"""One simulated cluster: its processes, who restarts them, its disk, and the clients that give it work."""

import asyncio
import contextlib
import io
import itertools
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, BinaryIO

import grpc

from shoal.core.errors import Deposed, Unavailable
from shoal.master.app import serving
from shoal.master.settings import MasterSettings
from shoal.ps.app import ParameterServer
from shoal.ps.settings import PsSettings
from shoal.ps.targets.base import SnapshotTarget
from shoal.wire.v1 import jobs_pb2, jobs_pb2_grpc
from shoal.worker.app import serve as serve_worker
from shoal.worker.settings import WorkerSettings
from tests.simulation import patches, store, threads
from tests.simulation.loop import Process, VirtualLoop, in_fiber, wait_for
from tests.simulation.network import Channel, Network
from tests.simulation.trainers import TrainerStarter

MASTER = ("master", 7070)
HEARTBEAT_SECONDS = 1.0
LEASE_SECONDS = 4.0
RESTART_SECONDS = 0.5  # from the end of a process to the start of its successor


@lru_cache(maxsize=1)
def _master_settings() -> MasterSettings:
    return MasterSettings(
        host=MASTER[0],
        port=MASTER[1],
        store="memory://",
        lease_seconds=LEASE_SECONDS,
        heartbeat_seconds=HEARTBEAT_SECONDS,
        suspect_grace_seconds=0.5,
        probe_seconds=0.5,
        tick_seconds=1.0,
        progress_interval_seconds=0.3,
        progress_wait_seconds=2.0,
        call_seconds=2.0,
        push_seconds=1.0,
        snapshot_seconds=5.0,
        retry_delay_seconds=0.2,
        longest_retry_delay_seconds=2.0,
        lost_kept_seconds=20.0,
        leadership_lease_seconds=3.0,
    )


@lru_cache(maxsize=16)
def _worker_settings(name: str) -> WorkerSettings:
    return WorkerSettings(
        host=name,
        port=7090,
        master=f"{MASTER[0]}:{MASTER[1]}",
        worker_id=name,
        max_concurrent_jobs=2,
        warm_trainers=0,
        poll_seconds=8.0,
        hang_seconds=20.0,
        leave_seconds=2.0,
    )


@lru_cache(maxsize=16)
def _server_settings(name: str) -> PsSettings:
    return PsSettings(
        host=name,
        port=7080,
        master=f"{MASTER[0]}:{MASTER[1]}",
        server_id=name,
        shared_memory=False,
        heartbeat_seconds=HEARTBEAT_SECONDS,
    )


class MemoryTarget(SnapshotTarget):
    """A parameter server's disk. A file is there whole or not at all."""

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], bytes] = {}

    def write(self, job_id: str, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        data = b"".join(bytes(piece) for piece in pieces)
        wait_for(asyncio.sleep(0.005))
        self.files[job_id, name] = data

    def open(self, job_id: str, name: str) -> BinaryIO:
        if (job_id, name) not in self.files:
            raise FileNotFoundError(name)
        return io.BytesIO(self.files[job_id, name])

    def jobs(self) -> tuple[str, ...]:
        return tuple(sorted({job_id for job_id, _ in self.files}))

    def names(self, job_id: str) -> tuple[str, ...]:
        return tuple(sorted(name for job, name in self.files if job == job_id))

    def delete(self, job_id: str, names: Iterable[str]) -> None:
        for name in names:
            self.files.pop((job_id, name), None)

    def delete_job(self, job_id: str) -> None:
        self.delete(job_id, self.names(job_id))

    def clean(self) -> int:
        return 0

    def __str__(self) -> str:
        return "memory"


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """One job that a client submits."""

    key: str
    at: float  # seconds after the start
    world_size: int
    steps: int
    min_workers: int
    max_workers: int
    shards: int
    snapshot_steps: int = 0  # between snapshots; 0: none
    clipped: bool = False  # by a norm that is never reached: shards take two turns for a step, and change nothing
    cancel_after: float | None = None

    @property
    def spec(self) -> str:
        clip = ", clip_norm: 1000000" if self.clipped else ""
        return (
            f"name: {self.key}\nmodel: {{type: mlp}}\n"
            f"training: {{world_size: {self.world_size}, steps: {self.steps}, batch_size: 4{clip}}}\n"
            "optimizer: {name: sgd, learning_rate: 1.0}\nmax_attempts: 100\n"
            f"snapshots: {{every_steps: {self.snapshot_steps}}}\n"
            f"resources: {{min_workers: {self.min_workers}, max_workers: {self.max_workers}, shards: {self.shards}}}\n"
        )


@dataclass(kw_only=True)
class Acknowledged:
    """What a client was told."""

    plan: JobPlan
    job_ids: list[str] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)
    sha256: str = ""
    cancel_sent: bool = False


class World:
    """Everything of one seed."""

    def __init__(self, seed: int, *, store_kind: str, oracle: Any) -> None:
        self.loop = VirtualLoop()
        self.chance = patches.chance(f"faults {seed}")
        self.programs_chance = patches.chance(f"programs {seed}")
        self.numbers = itertools.count(1)
        self.events: list[str] = []
        self.injected: Counter[str] = Counter()
        self.network = Network(self.loop, patches.chance(f"network {seed}"), self.note)
        self.network.violated = lambda text: oracle.violated("no program breaks", text)
        self.oracle = oracle
        self.disk = store.Disk(store.new_database(store_kind), oracle.stored)
        self.trainers = TrainerStarter(self.network, lambda agent: self.unit_seconds[agent.name])
        self.unit_seconds: dict[str, float] = {}
        self.processes: dict[str, Process] = {}
        self.shares: dict[str, Any] = {}  # of each living parameter server, by name
        self.client = Process(self.loop, "client")
        self.acknowledged: list[Acknowledged] = []
        self.stopping = False
        self.crash_at: dict[str, str] = {}  # crash point: name of the process that dies there
        self._targets: dict[str, MemoryTarget] = {}
        self._programs: dict[str, Callable[[Process], Awaitable[None]]] = {}

    @property
    def now(self) -> float:
        return self.loop.time()

    def note(self, text: str) -> None:
        self.events.append(f"{self.now:.6f} {text}")

    def target_of(self, name: str) -> MemoryTarget:
        return self._targets.setdefault(name, MemoryTarget())

    # Processes.

    def start(self, name: str, program: Callable[[Process], Awaitable[None]]) -> None:
        """Runs a program, again and again: as Kubernetes would."""
        self._programs[name] = program
        self._start(name)

    def _start(self, name: str) -> None:
        if self.stopping or ((before := self.processes.get(name)) is not None and before.alive):
            return
        process = Process(self.loop, name)
        self.processes[name] = process
        self.note(f"start {name}")
        process.on_death.append(lambda: self._ended(process))

        async def main() -> None:
            try:
                await self._programs[name](process)
            except Exception as error:  # noqa: BLE001  (a program that ends by an error is what is looked for)
                self.oracle.violated("no program breaks", f"{name} ended by {error!r}")
            self.note(f"exit {name}")
            process.kill()

        process.spawn(main())

    def _ended(self, process: Process) -> None:
        self.network.died(process)
        if self.processes.get(process.name) is process:
            self.shares.pop(process.name, None)
            self.loop.call_later(RESTART_SECONDS, self._start, process.name, context=threads_outside())

    def kill(self, name: str) -> None:
        self.note(f"kill {name}")
        self.processes[name].kill()

    def replace(self, name: str) -> None:
        """Starts a successor beside a process that may still be there (frozen, or cut off)."""
        old = self.processes.pop(name)
        self.shares.pop(name, None)
        self._start(name)
        self.processes[f"{name} (old)"] = old

    def terminate(self, name: str) -> None:
        """As by SIGTERM."""
        process = self.processes[name]
        self.note(f"terminate {name}")
        handler = process.signals.get(signal.SIGTERM)
        if handler is None or process.dead:
            process.kill()
        else:
            self.loop.call_soon(handler, context=process.context)

    def crash_point(self, name: str) -> None:
        """Called by the programs at their crash points."""
        process = patches.PROCESS.get()
        if self.crash_at.get(name) == process.name:
            del self.crash_at[name]
            self.note(f"crash {process.name} at {name}")
            self.injected[f"crash at {name}"] += 1
            process.kill()
            wait_for(self.loop.create_future())

    async def run_master(self, process: Process) -> None:
        settings = _master_settings()
        stop = asyncio.Event()
        process.signals[signal.SIGTERM] = stop.set
        try:
            await self._lead(process, settings, stop)
        except Unavailable as error:  # while it takes over: the program ends, as its `main` does, and is started again
            self.note(f"give up {process.name}: {error}")

    async def _lead(self, process: Process, settings: MasterSettings, stop: asyncio.Event) -> None:
        async with serving(settings, clock=threads.SimTime()) as master:  # type: ignore[arg-type]
            self.note(f"lead {process.name} in epoch {master.epoch}")
            stopped = asyncio.ensure_future(stop.wait())
            await asyncio.wait([master.failed, stopped], return_when=asyncio.FIRST_COMPLETED)
            if master.failed.done():
                error = master.failed.result()
                self.note(f"give up {process.name}: {type(error).__name__}")
                if not isinstance(error, Deposed):
                    self.oracle.violated("no program breaks", f"{process.name}: a task ended by {error!r}")
            stopped.cancel()

    async def run_worker(self, process: Process) -> None:
        await serve_worker(_worker_settings(process.name))

    async def run_server(self, process: Process) -> None:
        stop = asyncio.Event()
        process.signals[signal.SIGTERM] = stop.set
        server = await in_fiber(ParameterServer, _server_settings(process.name))
        self.shares[process.name] = server.shares
        await stop.wait()
        await in_fiber(server.close)

    # Clients.

    def submit(self, plan: JobPlan) -> None:
        told = Acknowledged(plan=plan)
        self.acknowledged.append(told)
        self.client.spawn(self._client(told), plan.key)

    async def _client(self, told: Acknowledged) -> None:
        plan = told.plan
        await asyncio.sleep(plan.at)
        jobs = jobs_pb2_grpc.JobServiceStub(Channel(self.network, f"{MASTER[0]}:{MASTER[1]}"))

        async def until_answered(call: Callable[[], Awaitable[Any]]) -> Any:
            while True:
                with contextlib.suppress(grpc.RpcError):
                    return await call()
                await asyncio.sleep(0.3)

        request = jobs_pb2.SubmitRequest(spec_json=plan.spec, idempotency_key=plan.key)
        answer = await until_answered(lambda: jobs.Submit(request, timeout=2.0))
        told.job_ids.append(answer.job_id)
        self.note(f"acknowledged {plan.key} as {answer.job_id}")
        self.oracle.acknowledged(plan, answer.job_id)
        if plan.at % 0.5 < 0.25:  # some ask twice
            answer = await until_answered(lambda: jobs.Submit(request, timeout=2.0))
            told.job_ids.append(answer.job_id)
            self.oracle.acknowledged(plan, answer.job_id)
        job_id = told.job_ids[0]
        if plan.cancel_after is not None:
            await asyncio.sleep(plan.cancel_after)
            told.cancel_sent = True
            self.injected["cancel"] += 1
            self.note(f"cancel {plan.key}")
            await until_answered(lambda: jobs.Cancel(jobs_pb2.CancelRequest(job_id=job_id), timeout=2.0))
        while True:
            job = await until_answered(lambda: jobs.Get(jobs_pb2.GetRequest(job_id=job_id), timeout=2.0))
            if not told.phases or told.phases[-1] != job.phase:
                told.phases.append(job.phase)
            if job.phase in ("SUCCEEDED", "FAILED", "CANCELLED"):
                told.sha256 = job.results.weights_sha256
                self.note(f"ended {plan.key} as {job.phase}")
                return
            await asyncio.sleep(0.7)

    @property
    def all_ended(self) -> bool:
        return all(
            told.phases and told.phases[-1] in ("SUCCEEDED", "FAILED", "CANCELLED") for told in self.acknowledged
        )

    @property
    def trainers_left(self) -> list[str]:
        return [child.name for process in self.processes.values() for child in process.children if child.alive]

    def finish(self) -> None:
        self.stopping = True
        self.loop.finish()


def threads_outside() -> Any:
    from tests.simulation.network import OUTSIDE

    return OUTSIDE
