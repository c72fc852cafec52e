"""The network: what is called arrives late, twice, out of order, or not at all; so does what is answered.

Calls go by the generated stubs and servicers, with their messages as bytes. A call ends by an answer, by its deadline,
or, when the other process dies or a message is lost, as a broken connection. A partition swallows everything one way.
Links of trainers keep their order, as TCP does, and wait for a partition to end.
"""

import asyncio
import contextvars
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from tests.simulation.loop import PROCESS, Process, VirtualLoop, in_fiber, wait_for

OUTSIDE = contextvars.Context()  # of what happens in no process
_ORDER_SECONDS = 1e-6  # between two messages of one connection: timers of one moment have no order
NOT_THERE_SECONDS = 0.002  # to learn that nobody listens at an address
Place = tuple[str, int]


class SimRpcError(grpc.RpcError):
    def __init__(self, status: grpc.StatusCode, details: str, trailing: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(details)
        self._status, self._details, self._trailing = status, details, trailing

    def code(self) -> grpc.StatusCode:
        return self._status

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._trailing


class _Aborted(Exception):
    def __init__(self, error: SimRpcError) -> None:
        super().__init__(error.details())
        self.error = error


@dataclass(kw_only=True)
class Weather:
    """What the network does to messages now; chances are per message."""

    delay: float = 0.002  # seconds, of which up to as much again is added at random
    lost: float = 0.0
    twice: float = 0.0
    late: float = 0.0  # ... by up to `late_seconds`
    late_seconds: float = 3.0


@dataclass(kw_only=True, eq=False)
class _Call:
    source: Process
    future: "asyncio.Future[bytes]"
    method: str
    handling: "asyncio.Task[None] | None" = None
    server: Process | None = None
    context: "Context | None" = None
    timer: asyncio.TimerHandle | None = None


@dataclass(kw_only=True, eq=False)
class Server:
    """What one process listens with."""

    process: Process
    place: Place
    sync: bool
    handlers: dict[str, Any] = field(default_factory=dict)
    serves: bool = False
    exchange: Any = None  # the exchange of a parameter server


class Network:
    def __init__(self, loop: VirtualLoop, chance: random.Random, log: Callable[[str], None]) -> None:
        self.loop = loop
        self.chance = chance
        self.weather = Weather()
        self.counts: Counter[str] = Counter()
        self.violated: Callable[[str], None] = lambda _: None
        self._log = log
        self._servers: dict[Place, Server] = {}
        self._cut: dict[tuple[str, str], float] = {}  # (from, to): until when
        self._calls: dict[_Call, None] = {}
        self.numbers = itertools.count(1)  # of links
        self.links: dict[Any, tuple[Process, Process]] = {}  # trainers' ends: who speaks with whom

    # Places.

    def bind(self, server: Server) -> None:
        self._servers[server.place] = server

    def unbind(self, server: Server) -> None:
        if self._servers.get(server.place) is server:
            del self._servers[server.place]

    def at(self, place: Place) -> Server | None:
        server = self._servers.get(place)
        return server if server is not None and server.serves and server.process.alive else None

    # Faults.

    def cut(self, source: str, target: str, *, until: float) -> None:
        self._cut[source, target] = until

    def heal(self) -> None:
        self._cut.clear()

    def is_cut(self, source: Process, target: Process) -> bool:
        return self.loop.time() < self._cut.get((_host(source), _host(target)), 0.0)

    def died(self, process: Process) -> None:
        """Its connections break: the other sides learn of it soon."""
        for call in list(self._calls):
            if call.source is process and call.handling is not None:
                self._later(self._delay(), self._break_off, call)
            elif call.server is process:
                self._later(self._delay(), self._fail, call, "the connection broke")
        for link, ends in list(self.links.items()):
            if process in ends:
                self.break_link(link)

    def break_link(self, link: Any) -> None:
        del self.links[link]
        self._later(self._delay(), link.cut)

    def repeats(self) -> bool:
        """Is this message to come twice?"""
        if self.weather.twice and self.chance.random() < self.weather.twice:
            self.counts["message twice"] += 1
            return True
        return False

    def _delay(self) -> float:
        delay = self.weather.delay * (1 + self.chance.random())
        if self.weather.late and self.chance.random() < self.weather.late:
            self.counts["message late"] += 1
            delay += self.chance.random() * self.weather.late_seconds
        return delay

    def _is_lost(self) -> bool:
        if self.weather.lost and self.chance.random() < self.weather.lost:
            self.counts["message lost"] += 1
            return True
        return False

    def _later(self, seconds: float, then: Callable[..., None], *arguments: Any) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, then, *arguments, context=OUTSIDE)

    # Calls.

    async def call(self, place: Place, method: str, request: bytes, timeout: float | None) -> bytes:
        source = PROCESS.get()
        call = _Call(source=source, future=self.loop.create_future(), method=method)
        self._calls[call] = None
        if timeout is not None:
            call.timer = self._later(timeout, self._run_out, call)
        self._later(self._delay(), self._arrive, call, place, request, False)
        if self.repeats():
            self._later(self._delay() + self.chance.random(), self._arrive, call, place, request, True)
        try:
            return await call.future
        except asyncio.CancelledError:
            self._later(self._delay(), self._break_off, call)
            raise
        finally:
            self._calls.pop(call, None)
            if call.timer is not None:
                call.timer.cancel()

    def _arrive(self, call: _Call, place: Place, request: bytes, again: bool) -> None:
        server = self.at(place)
        if server is None:
            if not again:
                self._later(NOT_THERE_SECONDS, self._fail, call, "nobody listens there")
            return
        if self.is_cut(call.source, server.process):
            return  # swallowed: the caller has its deadline
        if self._is_lost():
            if not again:
                self._later(self._delay(), self._fail, call, "the connection broke before the request was there")
            return
        if not again and call.future.done():
            return
        handling = server.process.spawn(self._handle(server, call, request, again), "call")
        if not again:
            call.server, call.handling = server.process, handling

    async def _handle(self, server: Server, call: _Call, request: bytes, again: bool) -> None:
        handler = server.handlers.get(call.method)
        answer: bytes | SimRpcError
        if handler is None:
            answer = SimRpcError(grpc.StatusCode.UNIMPLEMENTED, f"no method {call.method}")
        else:
            context = Context()
            if server.sync and not again:
                call.context = context
            try:
                message = handler.request_deserializer(request)
                if server.sync:
                    response = await in_fiber(handler.unary_unary, message, context)
                else:
                    response = await handler.unary_unary(message, context)
                answer = handler.response_serializer(response)
            except _Aborted as aborted:
                answer = aborted.error
            except Exception as error:  # noqa: BLE001  (as a server does: the call fails, and the run, too)
                self.violated(f"{server.process.name}: {call.method} raised {error!r}")
                answer = SimRpcError(grpc.StatusCode.UNKNOWN, repr(error))
            finally:
                context.done()
        if again:
            return
        source, target = server.process, call.source
        if self.is_cut(source, target):
            return
        if self._is_lost():
            self._later(self._delay(), self._fail, call, "the connection broke before the answer was there")
            return
        self._later(self._delay(), self._answer, call, answer)

    def _answer(self, call: _Call, answer: bytes | SimRpcError) -> None:
        if call.future.done() or call.source.dead:
            return
        if isinstance(answer, SimRpcError):
            call.future.set_exception(answer)
        else:
            call.future.set_result(answer)

    def _fail(self, call: _Call, why: str) -> None:
        self._answer(call, SimRpcError(grpc.StatusCode.UNAVAILABLE, why))

    def _run_out(self, call: _Call) -> None:
        self._answer(call, SimRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, f"{call.method}: no answer in time"))
        self._break_off(call)

    def _break_off(self, call: _Call) -> None:
        """The server learns that nobody waits any more."""
        if call.handling is None or call.server is None or call.server.dead:
            return
        if call.context is not None:  # a thread goes on, and may ask whether somebody waits
            call.context.done()
        else:
            call.handling.cancel()

    # Links.

    def link(self, source: Process, target: Process) -> "Wire":
        return Wire(self, source, target)

    async def connect(self, host: str, port: int) -> tuple[None, "_Connection"]:
        """Stands in for `asyncio.open_connection`, for those who only ask whether somebody listens."""
        source = PROCESS.get()
        await asyncio.sleep(self._delay())
        server = self.at((host, int(port)))
        if server is None:
            raise ConnectionRefusedError(f"nobody listens at {host}:{port}")
        if self.is_cut(source, server.process) or self.is_cut(server.process, source):
            await self.loop.create_future()
        return None, _Connection()


class _Connection:
    def close(self) -> None:
        pass


class Wire:
    """One direction of a connection: in order, without loss, until it breaks."""

    def __init__(self, network: Network, source: Process, target: Process) -> None:
        self._network, self._source, self._target = network, source, target
        self._last = 0.0

    def send(self, deliver: Callable[..., None], *arguments: Any) -> None:
        network = self._network
        at = network.loop.time() + network._delay()
        if network.is_cut(self._source, self._target):
            at += network._cut[_host(self._source), _host(self._target)] - network.loop.time()
        self._last = max(at, self._last + _ORDER_SECONDS)
        network.loop.call_at(self._last, deliver, *arguments, context=OUTSIDE)


def _host(process: Process) -> str:
    return process.name.partition("/")[0]


class Context:
    """A server's side of one call, for both kinds of servicers."""

    def __init__(self) -> None:
        self._trailing: tuple[tuple[str, str], ...] = ()
        self._callbacks: list[Callable[[], Any]] = []
        self._active = True

    def set_trailing_metadata(self, metadata: tuple[tuple[str, str], ...]) -> None:
        self._trailing = metadata

    def abort(self, status: grpc.StatusCode, details: str) -> Any:
        raise _Aborted(SimRpcError(status, details, self._trailing))

    def time_remaining(self) -> float | None:
        return None

    def add_callback(self, callback: Callable[[], Any]) -> bool:
        self._callbacks.append(callback)
        return True

    def is_active(self) -> bool:
        return self._active

    def done(self) -> None:
        self._active = False
        for callback in self._callbacks:
            callback()


class _UnaryCall:
    def __init__(self, network: Network, place: Place, method: str, serialize: Any, parse: Any) -> None:
        self._network, self._place, self._method = network, place, method
        self._serialize, self._parse = serialize, parse

    async def __call__(self, request: Any, timeout: float | None = None, **_: Any) -> Any:
        answer = await self._network.call(self._place, self._method, self._serialize(request), timeout)
        return self._parse(answer)


class Channel:
    """Of an asyncio client."""

    def __init__(self, network: Network, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.network, self.place = network, (host, int(port))

    def unary_unary(self, method: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        return _UnaryCall(self.network, self.place, method, request_serializer, response_deserializer)

    def unary_stream(self, method: str, *_: Any, **__: Any) -> Any:
        return _not_simulated

    stream_unary = stream_stream = unary_stream

    async def close(self) -> None:
        pass

    async def __aenter__(self) -> "Channel":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


class SyncChannel(Channel):
    """Of a client that blocks."""

    def unary_unary(self, method: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        call = _UnaryCall(self.network, self.place, method, request_serializer, response_deserializer)
        return lambda request, timeout=None, **_: wait_for(call(request, timeout))

    def close(self) -> None:  # type: ignore[override]
        pass

    def __enter__(self) -> "SyncChannel":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _not_simulated(*_: Any, **__: Any) -> Any:
    raise NotImplementedError("this call is not simulated")


class ServerDouble:
    """Stands in for `grpc.Server` and `grpc.aio.Server`."""

    def __init__(self, network: Network, *, sync: bool) -> None:
        self._network = network
        self._sync = sync
        self._handlers: dict[str, Any] = {}
        self._server: Server | None = None

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        for name, handler in handlers.items():
            self._handlers[f"/{service}/{name}"] = handler

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        for handler in handlers:
            if hasattr(handler, "simulated_exchange"):
                self._handlers["exchange"] = handler.simulated_exchange

    def add_insecure_port(self, address: str) -> int:
        host, _, port = address.rpartition(":")
        self._server = Server(process=PROCESS.get(), place=(host, int(port)), sync=self._sync, handlers=self._handlers)
        return int(port)

    def _start(self) -> None:
        assert self._server is not None
        self._server.serves = True
        self._server.exchange = self._handlers.get("exchange")
        self._network.bind(self._server)

    def _stop(self) -> None:
        if self._server is not None:
            self._server.serves = False
            self._network.unbind(self._server)


class AioServer(ServerDouble):
    async def start(self) -> None:
        self._start()

    async def stop(self, grace: float | None) -> None:
        self._stop()


class _Stopped:
    def wait(self, timeout: float | None = None) -> bool:
        return True


class SyncServer(ServerDouble):
    def start(self) -> None:
        self._start()

    def stop(self, grace: float | None) -> _Stopped:
        self._stop()
        return _Stopped()
