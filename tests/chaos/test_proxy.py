"""The proxy, between a client and a server that says everything again."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.chaos.proxy import Proxies, Proxy, Service


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                while data := connection.recv(100):
                    connection.sendall(data)

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(10)


@pytest.fixture
def through(echo) -> Iterator[tuple[Proxies, Proxy, socket.socket]]:
    with Proxies() as proxies:
        proxy, port = proxies.open("127.0.0.1", 0, lambda: echo)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            assert said_again(client) == b"x"
            yield proxies, proxy, client


def said_again(client: socket.socket) -> bytes:
    client.sendall(b"x")
    return client.recv(10)


def test_it_cuts(through):
    proxies, proxy, client = through
    proxies.do(proxy.cut())
    assert proxy.counts.cut == 1
    with contextlib.suppress(ConnectionResetError):
        assert client.recv(10) == b""


def test_it_stalls_and_nothing_is_lost(through):
    proxies, proxy, client = through
    proxies.do(proxy.stall())
    client.sendall(b"y")
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.recv(10)
    proxies.do(proxy.flow())
    client.settimeout(10)
    assert client.recv(10) == b"y"
    assert proxy.counts.stalled == 1


def test_it_delays_each_way(through):
    proxies, proxy, client = through
    proxies.do(proxy.delay(0.1))
    began = time.monotonic()
    assert said_again(client) == b"x"
    assert time.monotonic() - began >= 0.2
    assert proxy.counts.delayed == 2


def test_nobody_ready_is_nobody_there():
    with Proxies() as proxies:
        proxy, port = proxies.open("127.0.0.1", 0, Service([]).ready)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            assert client.recv(10) == b""
        assert proxy.counts.cut == 0
