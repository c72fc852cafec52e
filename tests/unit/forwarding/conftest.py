import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shoal.forwarding.kube import Kubernetes, Wanted
from tests.fake_kubernetes import FakeKubernetes

Talk = Callable[[socket.socket], None]


class Service:
    """What serves in a pod: each connection is handed to `talk`."""

    def __init__(self, talk: Talk) -> None:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                talk(self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            request_queue_size = 128

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="service")
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def serving() -> Iterator[Callable[[Talk], int]]:
    """Starts a service; returns its port."""
    services: list[Service] = []

    def start(talk: Talk) -> int:
        services.append(Service(talk))
        return services[-1].port

    yield start
    for service in services:
        service.close()


@pytest.fixture
def fake() -> Iterator[FakeKubernetes]:
    with FakeKubernetes() as fake:
        yield fake


@pytest.fixture
def kubernetes(fake: FakeKubernetes, tmp_path: Path) -> Callable[..., Kubernetes]:
    """Opens the fake cluster as a user does."""

    def open_as(**wanted: str) -> Kubernetes:
        return Kubernetes(Wanted(kubeconfig=str(fake.kubeconfig(tmp_path / "config")), **wanted))

    return open_as
