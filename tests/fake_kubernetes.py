"""As much of a Kubernetes API server as `shoal connect` asks: Services, pods, and port-forwards by WebSocket.

A fake, because most of what is tested is what a real one does only now and then: refuse, disappear, break connections,
replace a pod at a chosen moment. The real one is met in tests/cluster/test_connect.py. It has its own WebSocket code.
"""

import base64
import contextlib
import hashlib
import json
import select
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import yaml

TOKEN = "secret"
_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455


def service(name: str = "shoal-master", *, release: str = "shoal", **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": _labels(release)},
        "spec": {
            "selector": {"app.kubernetes.io/instance": release, "app.kubernetes.io/component": "master"},
            "ports": [
                {"name": "http", "port": 7071, "targetPort": "http"},
                {"name": "grpc", "port": 7070, "targetPort": "grpc"},
            ],
            **spec,
        },
    }


def pod(
    name: str = "shoal-master-a", *, release: str = "shoal", ready: bool = True, port: int = 7070
) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "uid": f"uid-of-{name}",
            "labels": _labels(release),
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"containers": [{"name": "master", "ports": [{"name": "grpc", "containerPort": port}]}]},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": str(ready)}],
        },
    }


def _labels(release: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/part-of": "shoal",
        "app.kubernetes.io/component": "master",
        "app.kubernetes.io/instance": release,
    }


class FakeKubernetes:
    """Serves while it is entered. A pod's port is one of this machine, where the real thing behind it serves."""

    def __init__(self) -> None:
        self.services: list[dict[str, Any]] = []
        self.pods: list[dict[str, Any]] = []
        self.namespace = "default"
        self.token = TOKEN
        self.refused: dict[str, int] = {}  # last part of a path -> HTTP status
        self.kubelet_says = ""  # instead of connecting to a pod
        self.asked: list[str] = []
        self.tunnels = 0  # opened so far
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="fake-kubernetes")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.break_tunnels()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def kubeconfig(self, path: Path, *, namespace: str | None = None) -> Path:
        context = {"cluster": "c", "user": "u"} | ({"namespace": namespace} if namespace else {})
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {"token": TOKEN}}],
            "contexts": [{"name": "fake", "context": context}],
        }
        path.write_text(yaml.safe_dump(document))
        return path

    def break_tunnels(self) -> int:
        """Without a word, as when a node dies. Returns how many there were."""
        with self._lock:
            tunnels = list(self._open)
        broken = 0
        for tunnel in tunnels:
            with contextlib.suppress(OSError):  # it has ended by itself
                tunnel.shutdown(socket.SHUT_RDWR)
                broken += 1
        return broken

    def await_tunnels(self, open_: int, *, seconds: float = 20.0) -> None:
        """Waits until so many are open."""
        deadline = time.monotonic() + seconds
        while len(self._open) != open_:
            assert time.monotonic() < deadline, f"{len(self._open)} tunnels are open"
            time.sleep(0.005)

    # What the server asks.

    def answer(self, path: str, query: dict[str, list[str]]) -> tuple[int, dict[str, Any]]:
        *_, namespace, kind = path.split("/")[:6]
        name = path.split("/")[6] if path.count("/") > 5 else ""
        if status := self.refused.get(path.rsplit("/", 1)[-1]):
            verb = "list" if not name else "get"
            return status, {
                "kind": "Status",
                "message": f'{kind} is forbidden: User "u" cannot {verb} resource "{kind}"',
            }
        objects = self.services if kind == "services" else self.pods
        if namespace != self.namespace:
            objects = []
        if not name:
            return 200, {"items": [entry for entry in objects if _selected(entry, query.get("labelSelector", [""])[0])]}
        found = next((entry for entry in objects if entry["metadata"]["name"] == name), None)
        if found is None:
            return 404, {"kind": "Status", "message": f'{kind} "{name}" not found'}
        return 200, found

    def serve_tunnel(self, client: socket.socket, port: int) -> None:
        with self._lock:
            self._open.add(client)
            self.tunnels += 1
        try:
            for channel in (0, 1):
                client.sendall(_frame(bytes([channel]) + struct.pack("<H", port)))
            if self.kubelet_says:
                client.sendall(_frame(b"\1" + self.kubelet_says.encode()))
                return
            try:
                server = socket.create_connection(("127.0.0.1", port), timeout=5)
            except OSError as error:
                client.sendall(_frame(b"\1" + f"error forwarding port {port}: {error.strerror}".encode()))
                return
            with server:
                server.settimeout(None)
                _relay(client, server)
        except OSError:
            return
        finally:
            with self._lock:
                self._open.discard(client)


def _selected(entry: dict[str, Any], selector: str) -> bool:
    labels = entry["metadata"]["labels"]
    pairs = [part.split("=") for part in selector.split(",") if part]
    return all(labels.get(key) == value for key, value in pairs)


def _relay(client: socket.socket, server: socket.socket) -> None:
    """Until one of them ends; the pod's end is told by a close frame."""
    buffer = bytearray()
    while True:
        ready, _, _ = select.select([client, server], [], [])
        if server in ready:
            if not (data := server.recv(32 << 10)):
                client.sendall(struct.pack(">BBH", 0x88, 2, 1000))
                return
            client.sendall(_frame(b"\0" + data))
        if client in ready:
            if not (data := client.recv(64 << 10)):
                return
            buffer += data
            while (unmasked := _next(buffer)) is not None:
                opcode, payload = unmasked
                if opcode == 8:
                    return
                assert payload[:1] == b"\0", "clients write to the data channel only"
                server.sendall(payload[1:])


def _frame(payload: bytes) -> bytes:
    size = len(payload)
    head = bytes([size]) if size < 126 else struct.pack(">BH", 126, size)
    return b"\x82" + head + payload


def _next(buffer: bytearray) -> tuple[int, bytes] | None:
    if len(buffer) < 6:
        return None
    assert buffer[1] & 0x80, "a client's frame is masked"
    size, head = buffer[1] & 0x7F, 2
    if size == 126:
        (size,), head = struct.unpack_from(">H", buffer, 2), 4
    if len(buffer) < head + 4 + size:
        return None
    mask = bytes(buffer[head : head + 4])
    masked = buffer[head + 4 : head + 4 + size]
    pad = mask * (size // 4 + 1)
    payload = (int.from_bytes(masked, "big") ^ int.from_bytes(pad[:size], "big")).to_bytes(size, "big")
    opcode = buffer[0] & 0x0F
    del buffer[: head + 4 + size]
    return opcode, payload


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, fake: FakeKubernetes) -> None:
        self.fake = fake
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        fake, url = self.server.fake, urlsplit(self.path)
        query = parse_qs(url.query)
        fake.asked.append(url.path)
        if self.headers.get("authorization") != f"Bearer {fake.token}":
            self._json(401, {"kind": "Status", "message": "Unauthorized"})
            return
        status, document = fake.answer(url.path.removesuffix("/portforward"), query)
        if url.path.endswith("/portforward") and (refused := fake.refused.get("portforward")):
            message = 'User "u" cannot create resource "pods/portforward" in API group ""'
            status, document = refused, {"kind": "Status", "message": message}
        if status == 200 and url.path.endswith("/portforward"):
            self._upgrade(int(query["ports"][0]))
        else:
            self._json(status, document)

    def _json(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _upgrade(self, port: int) -> None:
        assert self.headers["Sec-WebSocket-Protocol"] == "v4.channel.k8s.io"
        digest = hashlib.sha1(self.headers["Sec-WebSocket-Key"].encode() + _MAGIC).digest()
        self.send_response(101, "Switching Protocols")
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(digest).decode())
        self.send_header("Sec-WebSocket-Protocol", "v4.channel.k8s.io")
        self.end_headers()
        self.wfile.flush()
        self.close_connection = True
        self.server.fake.serve_tunnel(self.connection, port)

    def log_message(self, format: str, *args: Any) -> None:
        return
