"""Trainers as processes of the simulation: the real loop, parameters and control; the model is a ledger."""

import asyncio
import copy
import itertools
import math
import os as real_os
import termios
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shoal.core.errors import ShoalError, Unavailable
from shoal.core.facts import DatasetFacts
from shoal.core.layout import PAGE, flatten, partition
from shoal.core.tree import Block
from shoal.models.evaluation import EvaluationSums
from shoal.models.state import layers_of
from shoal.wire.exchange.base import Hello
from shoal.wire.exchange.frames import Frame, Kind, fenced_error, last_frame
from shoal.wire.exchange.memory import FlatSpace, FloatArray
from shoal.worker.control import REPORT_FD_VARIABLE
from shoal.worker.trainers import TrainerProcess
from tests.simulation import threads
from tests.simulation.loop import PROCESS, Process, in_fiber, wait_for
from tests.simulation.network import Network, Wire

PAGES = 3  # layers of the ledger, each on a page of its own: as many shards at most
LAYER_ELEMENTS = 64  # places for units in each layer
MOST_RANKS = 8
FACTS = DatasetFacts(train_samples=64, heldout_samples=16, input_shape=(2,), classes=2, fingerprint="ledger")
_INBOUND, _OUTBOUND = 3, 4  # descriptors of a trainer's pipes


class Ledger(nn.Module):
    """Every layer has a place for each unit, which holds how often it was counted."""

    def __init__(self) -> None:
        super().__init__()
        for number in range(PAGES):
            self.register_parameter(f"page{number}", nn.Parameter(torch.zeros(LAYER_ELEMENTS)))


@lru_cache(maxsize=1)
def _blank() -> Ledger:
    return Ledger()


def build_model(*_: object, **__: object) -> nn.Module:
    """Stands in for `models.catalog.build_model`."""
    return copy.deepcopy(_blank())


def place_of(step: int, rank: int) -> int:
    return step * MOST_RANKS + rank


def expected_page(version: int, world_size: int) -> Tensor:
    """One layer after `version` steps, each unit counted once."""
    return _expected(version, world_size)


@lru_cache(maxsize=256)
def _expected(version: int, world_size: int) -> Tensor:
    page = torch.zeros(LAYER_ELEMENTS)
    for step in range(version):
        page[place_of(step, 0) : place_of(step, world_size)] = 1.0
    return page


class _Dataset:
    facts = FACTS
    train = heldout = None


def open_dataset(**_: object) -> _Dataset:
    return _Dataset()


class LedgerGradients:
    """Stands in for `trainer.gradients.Gradients`: a unit's gradient is -1 in its place, and takes its time."""

    def __init__(self, *, plan: Any, length: int, **_: object) -> None:
        self._plan, self._length = plan, length
        self.unit_seconds: list[float] = []
        self._seconds = PROCESS.get().unit_seconds  # type: ignore[attr-defined]
        self.seconds_per_unit = 0.0

    def load(self, flat: Tensor, integers: bytes) -> None:
        pass

    def of(self, block: Block, step: int, out: Tensor) -> tuple[float, bytes]:
        ranks = block.ranks(self._plan.world_size)
        wait_for(asyncio.sleep(self._seconds * len(ranks)))
        self.unit_seconds += [self._seconds] * len(ranks)
        self.seconds_per_unit = self._seconds
        out.zero_()
        for number in range(PAGES):
            first = number * PAGE
            out[first + place_of(step, ranks.start) : first + place_of(step, ranks.stop)] = -1.0
        return float(len(ranks)), b""

    def heldout(self, block: Block) -> EvaluationSums:
        ranks = block.ranks(self._plan.world_size)
        wait_for(asyncio.sleep(0.2 * self._seconds * len(ranks)))
        return EvaluationSums(correct=len(ranks), samples=2 * len(ranks), loss=0.5 * len(ranks))


# The exchange.


class SimExchange:
    """Stands in for `GrpcExchangeServer`."""

    def __init__(self, endpoints: Any) -> None:
        self.endpoints = endpoints
        self.handler = self
        self.simulated_exchange = self


class Session:
    """A trainer's link, seen from the shard."""

    transport = "shared_memory"

    def __init__(self, hello: Hello, link: "Link", wire: Wire, endpoints: Any) -> None:
        self.hello = hello
        self._link, self._wire, self._endpoints = link, wire, endpoints
        self._slots: dict[int, FloatArray] = {}
        self._inbox: deque[tuple[Frame, FloatArray | None]] = deque()
        self._arrived = threads.Condition()
        self._ended = False
        self._endpoint: Any = None
        self._number = next(link.network.numbers)

    def __hash__(self) -> int:
        return self._number  # a set of them has the same order in each run

    def __eq__(self, other: object) -> bool:
        return self is other

    def send(self, frame: Frame) -> None:
        self._wire.send(self._link.deliver, frame, None)

    def version_changed(self) -> None:
        frame = self._endpoint.version_frame()
        old, new = (self._endpoint.weights(version).copy() for version in (frame.step - 1, frame.step))
        self._wire.send(self._link.deliver, frame, (old, new) if frame.step % 2 else (new, old))

    def end(self) -> None:
        self._ended = True
        self._wire.send(self._link.broke, Unavailable("the shard closed the link"))
        self._arrived.notify_all()

    def slot(self, number: int) -> FloatArray:
        return self._slots[number]

    def take(self, frame: Frame, data: FloatArray | None) -> None:
        self._inbox.append((frame, data))
        self._arrived.notify_all()

    def hang_up(self) -> None:
        self._ended = True
        self._arrived.notify_all()

    def serve(self) -> None:
        """In a fiber of the shard's process."""
        try:
            self._endpoint = self._endpoints.endpoint(self.hello)
            self._endpoint.attach(self)
        except ShoalError as error:
            self.send(last_frame(error))
            self.end()
            return
        self._wire.send(self._link.welcome)
        try:
            while True:
                self._arrived.wait_for(lambda: self._inbox or self._ended)
                if self._ended:
                    return
                frame, data = self._inbox.popleft()
                if data is not None:
                    self._slots[frame.slot] = data
                self._endpoint.receive(self, frame)
        except ShoalError as error:
            self.send(last_frame(error))
            self.end()
        finally:
            self._endpoint.detach(self)


class Link:
    """Stands in for `GrpcLink`: the trainer's side."""

    transport = "shared_memory"

    @property
    def network(self) -> Network:
        return self._network

    def __init__(self, channel: Any, hello: Hello, length: int) -> None:
        self._process = PROCESS.get()
        self._pipes: Pipes = self._process.pipes  # type: ignore[attr-defined]
        self._network: Network = channel.network
        self._descriptor = self._pipes.new_descriptor(self)
        self._incoming: deque[tuple[Frame, Any]] = deque()
        self._error: ShoalError | None = None
        self._welcomed = False
        self._slots: list[FloatArray] = []
        self._weights: tuple[FloatArray, ...] = ()
        server = self._network.at(channel.place)
        if server is None or server.exchange is None:
            raise Unavailable("nobody listens there")
        self._out = self._network.link(self._process, server.process)
        self._session = Session(
            hello, self, self._network.link(server.process, self._process), server.exchange.endpoints
        )
        self._network.links[self] = (self._process, server.process)
        self._out.send(self._open, server.process)
        # What a shard tells at once may come before the welcome; what it says last never does.
        self._pipes.changed.wait_for(lambda: self._welcomed or self._error)
        if not self._welcomed:
            self.close()
            if self._incoming:
                frame, _ = self._incoming.pop()
                raise fenced_error(frame) if frame.kind is Kind.FENCED else Unavailable(bytes(frame.payload).decode())
            assert self._error is not None
            raise self._error

    def _open(self, server: Process) -> None:
        if server.alive:
            server.spawn(in_fiber(self._session.serve), "link")

    def welcome(self) -> None:
        self._welcomed = True
        self._pipes.changed.notify_all()

    def deliver(self, frame: Frame, weights: Any) -> None:
        self._incoming.append((frame, weights))
        self._pipes.changed.notify_all()

    def cut(self) -> None:
        """The connection is gone: both sides learn of it."""
        self.broke(Unavailable("the connection broke"))
        self._session.hang_up()

    def broke(self, error: ShoalError) -> None:
        self._error = self._error or error
        self._pipes.changed.notify_all()

    @property
    def readable(self) -> bool:
        return bool(self._incoming) or self._error is not None

    def fileno(self) -> int:
        return self._descriptor

    def receive(self) -> Sequence[Frame]:
        if not self._incoming and self._error is not None:
            raise self._error
        frames = []
        while self._incoming:
            frame, weights = self._incoming.popleft()
            if weights is not None:
                for array, values in zip(self._weights, weights, strict=True):
                    array[:] = values
            frames.append(frame)
        return frames

    def map_weights(self, spaces: tuple[FlatSpace, FlatSpace], start: int, stop: int) -> None:
        for space in spaces:
            space.map_private(start, stop)
        self._weights = tuple(space.array(start, stop) for space in spaces)

    def map_slot(self, number: int, space: FlatSpace, start: int, stop: int) -> None:
        space.map_private(start, stop)
        self._slots.append(space.array(start, stop))

    def push(self, frame: Frame) -> None:
        self._out.send(self._session.take, frame, self._slots[frame.slot].copy())
        if self._network.repeats():
            self._out.send(self._session.take, frame, self._slots[frame.slot].copy())

    def send(self, frame: Frame) -> None:
        self._out.send(self._session.take, frame, None)

    def pull(self, version: int) -> None:
        """By shared memory the weights are there already."""

    def close(self) -> None:
        self._network.links.pop(self, None)
        self._out.send(self._session.hang_up)


# Processes.


class Pipes:
    """What a trainer reads, and what wakes it; what its agent has not read of what it wrote."""

    def __init__(self) -> None:
        self.unread: Callable[[], int] = lambda: 0
        self.inbound = bytearray()
        self.changed = threads.Condition()
        self.write: Callable[[bytes], None] = lambda _: None
        self._links: dict[int, Link] = {}

    def new_descriptor(self, link: Link) -> int:
        descriptor = 10 + len(self._links)
        self._links[descriptor] = link
        return descriptor

    def is_readable(self, descriptor: int) -> bool:
        return bool(self.inbound) if descriptor == _INBOUND else self._links[descriptor].readable


def _pipes() -> Pipes:
    pipes: Pipes = PROCESS.get().pipes  # type: ignore[attr-defined]
    return pipes


class SimOs:
    """Stands in for `os` in a trainer."""

    environ = {REPORT_FD_VARIABLE: str(_OUTBOUND)}  # noqa: RUF012
    pathsep = real_os.pathsep

    @staticmethod
    def set_blocking(descriptor: int, blocking: bool) -> None:
        pass

    @staticmethod
    def read(descriptor: int, size: int) -> bytes:
        pipes = _pipes()
        if not pipes.inbound:
            raise BlockingIOError
        data = bytes(pipes.inbound)
        pipes.inbound.clear()
        return data

    @staticmethod
    def write(descriptor: int, data: bytes) -> int:
        _pipes().write(data)
        return len(data)


class SimFcntl:
    """Stands in for `fcntl` in a trainer, which asks only how much of what it wrote has not been read."""

    @staticmethod
    def ioctl(descriptor: int, request: int, answer: "array[int]") -> None:
        assert (descriptor, request) == (_OUTBOUND, termios.FIONREAD)
        answer[0] = _pipes().unread()


class SimSelect:
    """Stands in for `select` in a trainer."""

    POLLIN = 1

    @staticmethod
    def select(reads: list[int], _writes: list[int], _errors: list[int]) -> None:
        pipes = _pipes()
        pipes.changed.wait_for(lambda: any(pipes.is_readable(descriptor) for descriptor in reads))

    class poll:
        def __init__(self) -> None:
            self._watched: list[int] = []

        def register(self, descriptor: int, _mask: int) -> None:
            self._watched.append(descriptor)

        def poll(self, milliseconds: float) -> list[tuple[int, int]]:
            pipes = _pipes()

            def ready() -> list[tuple[int, int]]:
                return [(descriptor, 1) for descriptor in self._watched if pipes.is_readable(descriptor)]

            if milliseconds <= 0:
                return ready()
            found: list[tuple[int, int]] = pipes.changed.wait_for(ready, math.ceil(milliseconds) / 1000)
            return found


class _Stdin:
    def __init__(self, pipes: Pipes, process: Process) -> None:
        self._pipes, self._process = pipes, process
        self.transport = self

    def is_closing(self) -> bool:
        return self._process.dead

    def get_write_buffer_size(self) -> int:
        return len(self._pipes.inbound)

    def write(self, line: bytes) -> None:
        if self._process.alive:
            self._pipes.inbound += line
            self._pipes.changed.notify_all()


class SubprocessDouble:
    """Stands in for `asyncio.subprocess.Process`."""

    def __init__(self, process: Process, pipes: Pipes, reports: asyncio.StreamReader, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdout = asyncio.StreamReader()
        self.stdin = _Stdin(pipes, process)
        self._process, self._reports = process, reports
        self._ended = threads.Condition()
        process.on_death.append(lambda: self._end(-9))

    def kill(self) -> None:
        self._process.kill()

    async def wait(self) -> int:
        await self._ended.until(lambda: self.returncode is not None)
        assert self.returncode is not None
        return self.returncode

    def exited(self, code: int) -> None:
        self._process.dead = True
        self._end(code)

    def _end(self, code: int) -> None:
        if self.returncode is None:
            self.returncode = code
            self._reports.feed_eof()
            self.stdout.feed_eof()
            self._ended.notify_all()


class TrainerStarter:
    """Stands in for `TrainerProcess.start`."""

    def __init__(self, network: Network, unit_seconds: Callable[[Process], float]) -> None:
        self._network, self._unit_seconds = network, unit_seconds
        self._pids = itertools.count(100)

    async def start(self, *, data_roots: object) -> TrainerProcess:
        from shoal.worker.trainer import app

        agent = PROCESS.get()
        process = Process(agent.loop, f"{agent.name}/trainer", parent=agent)
        pipes = Pipes()
        process.pipes = pipes  # type: ignore[attr-defined]
        process.unit_seconds = self._unit_seconds(agent)  # type: ignore[attr-defined]
        process.on_death.append(lambda: self._network.died(process))
        reports = asyncio.StreamReader(limit=1 << 20)
        double: Any = SubprocessDouble(process, pipes, reports, next(self._pids))
        pipes.write = lambda data: None if double.returncode is not None else reports.feed_data(data)
        pipes.unread = lambda: len(reports._buffer)  # type: ignore[attr-defined]

        async def main() -> None:
            try:
                code = await in_fiber(app.run, _INBOUND)
            except Exception as error:  # noqa: BLE001  (the process ends by it; so does the run)
                self._network.violated(f"{process.name} ended by {error!r}")
                code = 1
            self._network.died(process)
            double.exited(code)

        process.spawn(main())
        return TrainerProcess(double, reports)


def pages_of(weights: Any, version: int) -> dict[int, Tensor]:
    """What a shard holds: by layer."""
    return {
        int(piece.layer.name.removeprefix("page")): weights.slice_at(piece, version) for piece in weights.held.slices
    }


@lru_cache(maxsize=8)
def active_shards(shards: int) -> int:
    """How many of them hold a part of the ledger."""
    parameters, buffers = layers_of(_blank())
    layout = partition(flatten(parameters=parameters, buffers=buffers), shards=shards, whole=False)
    return len(layout.active)


def expected_arrays(version: int, world_size: int) -> dict[str, np.ndarray[Any, Any]]:
    return {f"page{number}": expected_page(version, world_size).numpy() for number in range(PAGES)}
