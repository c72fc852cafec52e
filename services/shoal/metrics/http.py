"""A role's small HTTP endpoint: /metrics, /livez, /readyz."""

import contextlib
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from shoal.core.errors import InvalidInput
from shoal.process.threads import start_thread

_TEXT = "text/plain; charset=utf-8"
_IDLE_SECONDS = 30  # a client that says nothing for so long is cut off, so that it cannot hold a thread for ever


class MetricsServer:
    """Serves until `close`. `ready` says None, or why the role is not ready (HTTP 503 with that text).

    Raises InvalidInput if the port cannot be had.
    """

    def __init__(self, *, registry: CollectorRegistry, ready: Callable[[], str | None], host: str, port: int) -> None:
        try:
            self._server = _Server((host, port), registry=registry, ready=ready)
        except OSError as error:
            raise InvalidInput(
                f"metrics port {port} on {host}: {error.strerror}; choose another with --metrics-port",
                field="metrics_port",
            ) from error
        self.port: int = self._server.server_address[1]
        self._thread = start_thread("metrics-http", lambda: self._server.serve_forever(poll_interval=0.05))

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(
        self, address: tuple[str, int], *, registry: CollectorRegistry, ready: Callable[[], str | None]
    ) -> None:
        self.registry = registry
        self.ready = ready
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _IDLE_SECONDS

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # who asked did not wait for the answer: no error of this role
            super().handle()

    def do_GET(self) -> None:
        match self.path.split("?", 1)[0]:
            case "/metrics":
                self._answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(self.server.registry))
            case "/livez":
                self._answer(HTTPStatus.OK, _TEXT, b"ok\n")
            case "/readyz":
                reason = self.server.ready()
                status = HTTPStatus.OK if reason is None else HTTPStatus.SERVICE_UNAVAILABLE
                self._answer(status, _TEXT, f"{reason or 'ok'}\n".encode())
            case _:
                self._answer(HTTPStatus.NOT_FOUND, _TEXT, b"/metrics, /livez or /readyz\n")

    def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Probes come every few seconds: no line for each."""
