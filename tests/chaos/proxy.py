"""A TCP proxy that delays, stalls and cuts what it carries, and a service that finds the master that leads."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

CHUNK_BYTES = 64 << 10
_CONNECT_SECONDS = 2.0
_PROBE_SECONDS = 0.5  # a master that does not say in this time that it is ready is not
_PROBE_EVERY_SECONDS = 0.2

Result = TypeVar("Result")
Address = tuple[str, int]


@dataclass(kw_only=True, slots=True)
class Counts:
    """What a proxy has done."""

    cut: int = 0  # connections
    stalled: int = 0  # chunks that waited for `flow`
    delayed: int = 0  # chunks


class Proxy:
    """Carries connections to whatever `upstream` names when they come; refuses them while it names nothing.

    All on one event loop; `Proxies` is the way in from other threads.
    """

    def __init__(self, upstream: Callable[[], Address | None]) -> None:
        self._upstream = upstream
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._delay_seconds = 0.0
        self._open: set[asyncio.Task[None]] = set()
        self.counts = Counts()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its beginning to its end."""
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError, TimeoutError):
                await self._carry(reader, writer)
        finally:
            self._open.discard(task)
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = self._upstream()
        if upstream is None:
            return
        async with asyncio.timeout(_CONNECT_SECONDS):
            server_reader, server_writer = await asyncio.open_connection(*upstream)
        pumps = [
            asyncio.ensure_future(self._pump(reader, server_writer)),
            asyncio.ensure_future(self._pump(server_reader, writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            server_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if self._delay_seconds:
                self.counts.delayed += 1
                await asyncio.sleep(self._delay_seconds)
            if not self._flowing.is_set():
                self.counts.stalled += 1
                await self._flowing.wait()
            writer.write(data)
            await writer.drain()

    async def cut(self) -> None:
        """Every connection, by a reset."""
        tasks = list(self._open)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.counts.cut += len(tasks)

    async def stall(self) -> None:
        """Nothing goes through, either way, until `flow`; connections stay."""
        self._flowing.clear()

    async def flow(self) -> None:
        self._flowing.set()

    async def delay(self, seconds: float) -> None:
        """Every chunk, each way, comes so much later. 0: none does."""
        self._delay_seconds = seconds


class Service:
    """Of several masters the one that says it is ready, as a Service of Kubernetes would pick it.

    `masters` has the address where each serves and the one where it tells whether it is ready.
    """

    def __init__(self, masters: Sequence[tuple[Address, Address]]) -> None:
        self._masters = masters
        self._ready: Address | None = None

    def ready(self) -> Address | None:
        return self._ready

    async def look_forever(self) -> None:
        while True:
            answers = await asyncio.gather(*(self._says_ready(probe) for _, probe in self._masters))
            self._ready = next((address for (address, _), yes in zip(self._masters, answers, strict=True) if yes), None)
            await asyncio.sleep(_PROBE_EVERY_SECONDS)

    async def _says_ready(self, probe: Address) -> bool:
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                reader, writer = await asyncio.open_connection(*probe)
                try:
                    writer.write(b"GET /readyz HTTP/1.0\r\n\r\n")
                    return b" 200 " in await reader.readline()
                finally:
                    writer.transport.abort()
        except (OSError, TimeoutError):
            return False


class Proxies:
    """The event loop of proxies, in a thread of its own, for the length of the block."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def open(self, host: str, port: int, upstream: Callable[[], Address | None]) -> tuple[Proxy, int]:
        """A proxy that listens, and its port (for `port` 0, a free one)."""

        async def listen() -> tuple[Proxy, int]:
            proxy = Proxy(upstream)
            server = await asyncio.start_server(proxy.carry, host, port)
            self._servers.append(server)
            return proxy, int(server.sockets[0].getsockname()[1])

        return self.do(listen())

    def run(self, forever: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(forever, self._loop)

    def do(self, what: Awaitable[Result]) -> Result:
        async def done() -> Result:
            return await what

        return asyncio.run_coroutine_threadsafe(done(), self._loop).result(30)

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
