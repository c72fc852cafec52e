"""The HTTP endpoint, asked by a real client."""

import socket
import struct
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter

from shoal.core.errors import InvalidInput
from shoal.metrics.http import MetricsServer
from shoal.metrics.registry import new_registry


class Role:
    reason: str | None = "starting"

    def ready(self) -> str | None:
        return self.reason


@pytest.fixture
def registry() -> CollectorRegistry:
    return new_registry()


@pytest.fixture
def role() -> Role:
    return Role()


@pytest.fixture
def server(registry, role) -> Iterator[MetricsServer]:
    server = MetricsServer(registry=registry, ready=role.ready, host="127.0.0.1", port=0)
    yield server
    server.close()


def get(server, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_metrics_show_the_registry_and_the_process(server, registry):
    Counter("shoal_things_total", "Things.", registry=registry).inc(3)
    status, text = get(server, "/metrics")
    assert status == 200
    assert "shoal_things_total 3.0" in text
    assert "process_resident_memory_bytes" in text


def test_liveness_is_the_process_and_readiness_is_the_role(server, role):
    assert get(server, "/livez") == (200, "ok\n")
    assert get(server, "/readyz") == (503, "starting\n")
    role.reason = None
    assert get(server, "/readyz") == (200, "ok\n")


def test_a_client_that_does_not_wait_for_its_answer_is_no_error(server, capfd):
    asked, gone = threading.Event(), threading.Event()

    def reason():
        asked.set()
        gone.wait(10)
        return "x" * 1_000_000

    server._server.ready = reason
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
        assert asked.wait(10)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close by a reset
    gone.set()
    for thread in threading.enumerate():
        if "process_request_thread" in thread.name:
            thread.join(10)
    assert "Traceback" not in capfd.readouterr().err


def test_other_paths_are_not_found(server):
    assert get(server, "/")[0] == 404


def test_a_port_in_use_is_one_clear_error(server, registry):
    with pytest.raises(InvalidInput, match=f"metrics port {server.port} on 127.0.0.1: Address already in use"):
        MetricsServer(registry=registry, ready=lambda: None, host="127.0.0.1", port=server.port)
