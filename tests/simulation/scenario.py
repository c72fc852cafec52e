"""One seed: which cluster, which jobs, which faults and when; then the run, and what became of it."""

import gc
import hashlib
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from shoal.models.folder import serialize
from tests.simulation import oracles, patches
from tests.simulation.cluster import JobPlan, World
from tests.simulation.loop import Stuck
from tests.simulation.network import Weather
from tests.simulation.trainers import expected_arrays

FAULT_SECONDS = 14.0  # from the start: then all is well
PATIENCE_SECONDS = 90.0  # for jobs to end, once all is well
TIDY_SECONDS = 15.0  # for their trainers to end after them: a lease, and a long poll
MASTER = "master"


@dataclass(frozen=True, kw_only=True)
class Fault:
    at: float
    kind: str
    target: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    seed: int
    store: str
    workers: dict[str, float]  # seconds per unit
    servers: tuple[str, ...]
    jobs: tuple[JobPlan, ...]
    faults: tuple[Fault, ...]
    weather: Weather


@dataclass(kw_only=True)
class Outcome:
    seed: int
    violation: tuple[str, str] | None
    events: list[str] = field(repr=False)
    steps: int
    injected: Counter[str]
    planned: Counter[str]
    simulated_seconds: float
    digest: str

    @property
    def missed(self) -> Counter[str]:
        """Faults that were planned and did not happen."""
        return self.planned - self.injected


KINDS = (
    "kill worker",
    "kill trainer",
    "kill server",
    "kill master",
    "freeze worker",
    "freeze trainer",
    "freeze server",
    "freeze master",
    "second master",
    "terminate worker",
    "terminate server",
    "terminate master",
    "cut off",
    "cut one way",
    "break links",
    "store away",
    "commit without answer",
    "clock jumps",
)


def plan_of(seed: int, *, sqlite_share: float = 0.25) -> Plan:
    chance = random.Random(f"plan {seed}")
    workers = {f"worker-{number}": chance.choice((0.1, 0.2, 0.4)) for number in range(chance.randint(2, 4))}
    servers = tuple(f"ps-{number}" for number in range(chance.randint(1, 3)))
    jobs = []
    for number in range(chance.choice((1, 1, 2, 3))):
        world_size = chance.randint(2, 4)
        least = chance.randint(1, 2)
        jobs.append(
            JobPlan(
                key=f"job-{number}",
                at=round(chance.uniform(0, 4), 3),
                world_size=world_size,
                steps=chance.randint(3, 7),
                min_workers=least,
                max_workers=chance.randint(least, world_size),
                shards=chance.randint(1, len(servers)),
                snapshot_steps=chance.choice((0, 1, 2)),
                clipped=(seed + number) % 3 == 0,
                cancel_after=round(chance.uniform(0.5, 6), 3) if chance.random() < 0.08 else None,
            )
        )
    faults = []
    for _ in range(chance.randint(1, 6)):
        kind = chance.choice(KINDS)
        target = MASTER
        if kind.endswith(("worker", "trainer")):
            target = chance.choice(list(workers))
        elif kind.endswith("server"):
            target = chance.choice(servers)
        elif kind.startswith(("cut", "break")):
            target = chance.choice([MASTER, *workers, *servers])
        faults.append(
            Fault(
                at=round(chance.uniform(0.5, FAULT_SECONDS - 6), 3),
                kind=kind,
                target=target,
                seconds=round(chance.choice((0.3, 1.0, 3.0, 5.5)), 3),
            )
        )
    weather = Weather(
        lost=chance.choice((0.0, 0.01, 0.05)),
        twice=chance.choice((0.0, 0.02, 0.1)),
        late=chance.choice((0.0, 0.02, 0.1)),
    )
    return Plan(
        seed=seed,
        store="sqlite" if chance.random() < sqlite_share else "memory",
        workers=workers,
        servers=servers,
        jobs=tuple(jobs),
        faults=tuple(sorted(faults, key=lambda fault: (fault.at, fault.kind))),
        weather=weather,
    )


@lru_cache(maxsize=64)
def undisturbed_sha256(steps: int, world_size: int) -> str:
    """Of the model that every run of such a job must end with."""
    tensors: dict[str, np.ndarray[Any, Any]] = expected_arrays(steps, world_size)
    return hashlib.sha256(serialize(tensors)).hexdigest()


class Simulation:
    """Runs seeds one after the other in this process."""

    def __init__(self, here: patches.Surroundings, watched: list[oracles.Oracle]) -> None:
        self._here, self._watched = here, watched

    def run(self, plan: Plan) -> Outcome:
        gc.collect()  # what the seed before has left; during a seed nothing is collected
        oracle = oracles.Oracle()
        world = World(plan.seed, store_kind=plan.store, oracle=oracle)
        oracle.world = world
        self._here.world = world
        self._watched[:] = [oracle]
        began = world.now
        try:
            world.loop.run_until_complete(self._happen(plan, world))
        except Stuck as error:
            oracle.violated(oracles.ENDS, str(error))
        expected = {job.key: undisturbed_sha256(job.steps, job.world_size) for job in plan.jobs}
        oracle.at_the_end(expected)
        violation = oracle.violation
        self._watched.clear()
        world.finish()
        self._here.world = None
        injected = world.injected + world.network.counts
        return Outcome(
            seed=plan.seed,
            violation=violation,
            events=world.events,
            steps=world.loop.steps,
            injected=injected,
            planned=Counter(fault.kind for fault in plan.faults),
            simulated_seconds=world.now - began,
            digest=hashlib.sha256("\n".join(world.events).encode()).hexdigest(),
        )

    async def _happen(self, plan: Plan, world: World) -> None:
        loop = world.loop
        began = loop.time()
        world.unit_seconds = dict(plan.workers)
        world.network.weather = plan.weather
        world.start(MASTER, world.run_master)
        for name in plan.servers:
            world.start(name, world.run_server)
        for name in plan.workers:
            world.start(name, world.run_worker)
        for job in plan.jobs:
            world.submit(job)
        for fault in plan.faults:
            loop.call_at(began + fault.at, inject, world, fault)
        loop.call_at(began + FAULT_SECONDS, calm, world)
        deadline = began + FAULT_SECONDS + PATIENCE_SECONDS
        while loop.time() < deadline and world.oracle.violation is None:
            if world.all_ended and loop.time() > began + (plan.faults[-1].at if plan.faults else 0) + 0.1:
                break
            await _pause(loop)
        calm(world)
        deadline = loop.time() + TIDY_SECONDS
        while world.oracle.violation is None and (left := world.trainers_left):
            if loop.time() > deadline:
                world.oracle.violated(oracles.TIDY, f"all jobs have ended, and there are still {left}")
            await _pause(loop)


async def _pause(loop: Any) -> None:
    future = loop.create_future()
    loop.call_later(0.25, future.set_result, None)
    await future


def calm(world: World) -> None:
    """No more faults: what is frozen wakes, what is cut heals."""
    world.network.weather = Weather()
    world.network.heal()
    world.disk.away_until = 0.0
    world.note("calm")


def inject(world: World, fault: Fault) -> None:
    world.note(f"fault {fault.kind} {fault.target} {fault.seconds}")
    world.injected[fault.kind] += 1
    action, _, _ = fault.kind.partition(" ")
    process = world.processes.get(fault.target)
    if process is None:
        return
    match fault.kind:
        case "kill trainer" | "freeze trainer":
            trainers = [child for child in process.children if child.alive]
            for trainer in trainers[:1]:
                if action == "kill":
                    trainer.kill()
                else:
                    _freeze(world, trainer, fault.seconds)
        case "kill worker" | "kill server" | "kill master":
            world.kill(fault.target)
        case "freeze worker" | "freeze server" | "freeze master":
            _freeze(world, process, fault.seconds)
        case "second master":
            _freeze(world, process, fault.seconds)
            world.loop.call_later(0.2, world.replace, MASTER)
        case "terminate worker" | "terminate server" | "terminate master":
            world.terminate(fault.target)
        case "cut off" | "cut one way":
            until = world.now + fault.seconds
            for other in world.processes:
                if other != fault.target:
                    world.network.cut(fault.target, other, until=until)
                    if fault.kind == "cut off":
                        world.network.cut(other, fault.target, until=until)
        case "break links":
            for link, ends in list(world.network.links.items()):
                if any(end.name.partition("/")[0] == fault.target for end in ends):
                    world.network.break_link(link)
        case "store away":
            world.disk.away_until = world.now + fault.seconds
        case "commit without answer":
            world.disk.lose_answer = lambda master: world.kill(master.name) if master.alive else None
        case "clock jumps":
            process.unix_skew += 3600.0 if fault.seconds < 2 else -3600.0


def _freeze(world: World, process: Any, seconds: float) -> None:
    process.freeze()
    world.loop.call_later(seconds, process.thaw)


@contextmanager
def simulation() -> Iterator[Simulation]:
    with patches.surroundings() as here, oracles.watching() as watched:
        yield Simulation(here, watched)
