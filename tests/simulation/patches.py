"""Where the simulation takes the place of time, chance, threads, the network and processes in the real programs.

Nothing else of them is touched. A name that a program no longer has is an error, so that this list stays true.
"""

import asyncio
import contextlib
import gc
import logging
import random
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import structlog

import shoal.master.app
import shoal.master.clients.shards
import shoal.master.clients.workers
import shoal.master.jobs
import shoal.master.lifecycle.live
import shoal.master.membership.probes
import shoal.master.store.database
import shoal.master.store.timed
import shoal.ps.app
import shoal.ps.initial
import shoal.ps.membership
import shoal.ps.share
import shoal.ps.shares
import shoal.ps.snapshot
import shoal.wire.epochs
import shoal.worker.agent
import shoal.worker.app
import shoal.worker.trainer.app
import shoal.worker.trainer.attach
import shoal.worker.trainer.loop
import shoal.worker.trainer.parameters
import shoal.worker.trainers
from shoal.core.job import Capabilities
from tests.simulation import store, threads, trainers
from tests.simulation.loop import PROCESS
from tests.simulation.network import AioServer, Channel, SyncChannel, SyncServer

_Change = tuple[Any, str, Any]


class Surroundings:
    """What the patched names lead to: the world of the seed that runs now."""

    def __init__(self) -> None:
        self.world: Any = None

    def channel(self, address: str, **_: object) -> Channel:
        return Channel(self.world.network, address)

    def sync_channel(self, address: str, **_: object) -> SyncChannel:
        return SyncChannel(self.world.network, address)

    def aio_server(self, *_: object, **__: object) -> AioServer:
        return AioServer(self.world.network, sync=False)

    def sync_server(self, *_: object, **__: object) -> SyncServer:
        return SyncServer(self.world.network, sync=True)

    def identity(self, *_: object) -> str:
        return f"{PROCESS.get().name.replace('/', '-')}.{next(self.world.numbers):x}"

    def uuid4(self) -> uuid.UUID:
        return uuid.UUID(int=self.world.programs_chance.getrandbits(128))

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.world.programs_chance.random())

    async def open_database(self, *_: object, **__: object) -> store.SimDatabase:
        return store.SimDatabase(self.world.disk)

    def open_target(self, *_: object, **__: object) -> Any:
        return self.world.target_of(PROCESS.get().name)

    async def open_connection(self, host: str, port: int) -> Any:
        return await self.world.network.connect(host, port)

    async def start_trainer(self, *, data_roots: object) -> Any:
        return await self.world.trainers.start(data_roots=data_roots)

    def crash_point(self, name: str) -> None:
        self.world.crash_point(name)


class _Mute:
    """Any metric, unheard."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __getattr__(self, _name: str) -> Any:
        return self

    def __call__(self, *_: object, **__: object) -> Any:
        return self


class _Metrics(_Mute):
    port = 0


class _Load:
    def cpu_percent(self) -> float:
        return 1.0

    def memory_percent(self) -> float:
        return 1.0


class _Asyncio:
    """The module, but for the one function that opens a real connection."""

    def __init__(self, surroundings: Surroundings) -> None:
        self.open_connection = surroundings.open_connection

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)


class _Random:
    def __init__(self, surroundings: Surroundings) -> None:
        self.uniform = surroundings.uniform


class _Uuid:
    def __init__(self, surroundings: Surroundings) -> None:
        self.uuid4 = surroundings.uuid4


def _detect(*, supported_models: tuple[str, ...], max_concurrent_jobs: int) -> Capabilities:
    return Capabilities(
        has_gpu=False, supported_models=frozenset(supported_models), max_concurrent_jobs=max_concurrent_jobs
    )


def _nothing(*_: object, **__: object) -> None:
    pass


def _changes(here: Surroundings) -> list[_Change]:
    master, ps, worker, trainer = shoal.master, shoal.ps, shoal.worker, shoal.worker.trainer
    return [
        (grpc, "server", here.sync_server),
        (grpc.aio, "server", here.aio_server),
        # The master.
        (master.app, "time", threads.SimTime),
        (master.app, "MetricsServer", _Metrics),
        (master.app, "MasterMetrics", _Mute),
        (master.app, "GrpcServerMetrics", _Mute),
        (master.app, "AioMetricsInterceptor", _Mute),
        (master.app, "new_registry", _Mute),
        (master.app, "new_incarnation", here.identity),
        (master.app, "open_database", here.open_database),
        (master.app, "_check_port", _nothing),
        (master.jobs, "uuid", _Uuid(here)),
        (master.lifecycle.live, "random", _Random(here)),
        (master.membership.probes, "asyncio", _Asyncio(here)),
        (master.membership.probes, "open_aio_channel", here.channel),
        (master.clients.shards, "open_aio_channel", here.channel),
        (master.store.database, "to_the_end", store.without_a_task),
        (master.store.timed, "time", threads.SimTime),
        # Workers.
        (worker.app, "MetricsServer", _Metrics),
        (worker.app, "WorkerMetrics", _Mute),
        (worker.app, "GrpcServerMetrics", _Mute),
        (worker.app, "AioMetricsInterceptor", _Mute),
        (worker.app, "new_registry", _Mute),
        (worker.app, "new_incarnation", here.identity),
        (worker.app, "open_aio_channel", here.channel),
        (worker.app, "detect", _detect),
        (worker.agent, "new_incarnation", here.identity),
        (worker.agent, "random", _Random(here)),
        (worker.agent, "LoadMeter", _Load),
        (worker.agent, "awake_or_asleep_seconds", threads.now),
        (worker.trainers, "time", threads.SimTime),
        (worker.trainers, "oom_kills", lambda: 0),
        (worker.trainers.TrainerProcess, "start", here.start_trainer),
        # Trainers.
        (trainer.app, "os", trainers.SimOs),
        (trainer.app, "fcntl", trainers.SimFcntl),
        (trainer.app, "select", trainers.SimSelect),
        (trainer.app, "time", threads.SimTime),
        (trainer.app, "awake_or_asleep_seconds", threads.now),
        (trainer.app, "configure_logs", _nothing),
        (trainer.app, "open_dataset", trainers.open_dataset),
        (trainer.app, "build_model", trainers.build_model),
        (trainer.app, "Gradients", trainers.LedgerGradients),
        (trainer.app, "print", _nothing),
        (trainer.loop, "time", threads.SimTime),
        (trainer.parameters, "select", trainers.SimSelect),
        (trainer.attach, "open_channel", here.sync_channel),
        (trainer.attach, "GrpcLink", trainers.Link),
        # Parameter servers.
        (ps.app, "MetricsServer", _Metrics),
        (ps.app, "ParameterServerMetrics", _Mute),
        (ps.app, "GrpcServerMetrics", _Mute),
        (ps.app, "SyncMetricsInterceptor", _Mute),
        (ps.app, "new_registry", _Mute),
        (ps.app, "new_incarnation", here.identity),
        (ps.app, "GrpcExchangeServer", trainers.SimExchange),
        (ps.app, "open_target", here.open_target),
        (ps.app, "futures", _Mute()),
        (ps.membership, "threading", threads.SimThreading),
        (ps.membership, "start_thread", threads.start_thread),
        (ps.membership, "open_channel", here.sync_channel),
        (ps.membership, "LoadMeter", _Load),
        (ps.membership, "random", _Random(here)),
        (ps.share, "threading", threads.SimThreading),
        (ps.share, "time", threads.SimTime),
        (ps.share, "build_model", trainers.build_model),
        (ps.shares, "threading", threads.SimThreading),
        (ps.snapshot, "time", threads.SimTime),
        (ps.initial, "open_channel", here.sync_channel),
        (shoal.wire.epochs, "threading", threads.SimThreading),
    ]


_NEW_NAMES = frozenset({"print"})  # built in, so a module does not have them until they are put there


@contextlib.contextmanager
def surroundings() -> Iterator[Surroundings]:
    """For the length of the block the programs of this process are simulated ones."""
    here = Surroundings()
    changes = _changes(here)
    before = []
    for owner, name, _ in changes:
        if name not in _NEW_NAMES and name not in vars(owner):
            raise AttributeError(f"{owner} has no '{name}' any more: tests/simulation/patches.py must follow")
        before.append((owner, name, vars(owner).get(name)))
    hook, collects, level = sys.unraisablehook, gc.isenabled(), logging.root.manager.disable
    configuration = structlog.get_config()
    gc.collect()
    gc.freeze()  # what is there already is looked at no more: a collection between two seeds is quick
    gc.disable()  # when garbage goes must not depend on what ran before
    sys.unraisablehook = _nothing  # tasks of processes that were killed end unfinished, as they should
    logging.disable(logging.CRITICAL)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL), cache_logger_on_first_use=False
    )
    unheard = warnings.catch_warnings()
    unheard.__enter__()
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited")  # a process died before it began
    try:
        for owner, name, replacement in changes:
            setattr(owner, name, replacement)
        yield here
    finally:
        for owner, name, original in before:
            if name in _NEW_NAMES and original is None:
                delattr(owner, name)
            else:
                setattr(owner, name, original)
        here.world = None
        gc.unfreeze()
        gc.collect()
        unheard.__exit__(None, None, None)
        sys.unraisablehook = hook
        logging.disable(level)
        structlog.configure(**configuration)
        if collects:
            gc.enable()


def chance(seed: str) -> random.Random:
    return random.Random(seed)


Changes = Callable[[], None]
