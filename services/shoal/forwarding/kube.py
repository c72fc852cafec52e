"""The Kubernetes side: which Service and pod is a release's master, and a port-forward to it.

By the official client, of which the configuration (kubeconfig, credentials, TLS, proxies) and the calls for Services
and pods are used. Not its `stream.portforward`: that reads as fast as the API server sends and keeps what the local
side does not take, ends with an exception in its own thread when the connection breaks, and replaces a method of the
shared client while it connects.
"""

import json
import os
import re
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import urllib3
import websocket
import yaml
from kubernetes import client, config
from kubernetes.stream import ws_client

from shoal.core.errors import Forbidden, InvalidInput, NotFound, Unavailable
from shoal.forwarding.frames import SUBPROTOCOL
from shoal.forwarding.target import Pod

GRPC_PORT = 7070
GRPC_PORT_NAME = "grpc"
CALL_SECONDS = (3.0, 10.0)  # to connect to the API server, and to have its answer
TUNNEL_SECONDS = 5.0  # as long as a gRPC client waits for its connection

_PART_OF, _COMPONENT, _INSTANCE = (f"app.kubernetes.io/{name}" for name in ("part-of", "component", "instance"))
_UNREADABLE = (  # what the client raises for a kubeconfig, depending on what is wrong with it
    config.ConfigException,
    OSError,
    yaml.YAMLError,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
)

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What a user asks for; an empty text leaves it to the kubeconfig, or to there being just one."""

    kubeconfig: str = ""
    kube_context: str = ""
    namespace: str = ""
    release: str = ""
    service: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Master:
    """A release's master: a Service, and where behind it the gRPC port is."""

    namespace: str
    release: str  # '' if its Service does not say
    service: str
    selector: str  # of its pods
    target_port: int | str  # a number, or a container port's name


class Kubernetes:
    """One cluster, as one context of a kubeconfig. Thread-safe. Raises InvalidInput for a kubeconfig that is none."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._load()

    def _load(self) -> None:
        """Credentials expire; a kubeconfig that is read again has new ones."""
        path = self._wanted.kubeconfig or os.environ.get("KUBECONFIG", "") or "~/.kube/config"
        if not any(Path(part).expanduser().is_file() for part in path.split(os.pathsep) if part):
            raise InvalidInput(f"no kubeconfig: {path} is not there; name one by --kubeconfig", field="kubeconfig")
        configuration = client.Configuration()
        try:
            contexts, active = config.list_kube_config_contexts(path)
            name = self._wanted.kube_context or str(active["name"])
            chosen = next((entry for entry in contexts if entry["name"] == name), None)
            if chosen is None:
                names = ", ".join(entry["name"] for entry in contexts)
                raise InvalidInput(f"no context '{name}' in {path}; there are {names}", field="kube_context")
            config.load_kube_config(path, context=name, client_configuration=configuration)
        except _UNREADABLE as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InvalidInput(f"kubeconfig {path} cannot be used: {reason}", field="kubeconfig") from error
        configuration.retries = False  # urllib3 would say each on stderr; who asks decides when to ask again
        self.context = name
        self.namespace = self._wanted.namespace or str(chosen["context"].get("namespace") or "default")
        self._configuration = configuration
        self._api = client.CoreV1Api(client.ApiClient(configuration))

    def find_master(self) -> Master:
        """The one that is wanted. Raises NotFound, InvalidInput (several), Forbidden, Unavailable."""
        return self._named_master() if self._wanted.service else self._labelled_master()

    def ready_pod(self, master: Master) -> Pod | None:
        """The newest one that is ready. Raises Forbidden, Unavailable."""
        pods = self._ask(
            ("list", "pods"),
            lambda api: api.list_namespaced_pod(
                master.namespace, label_selector=master.selector, _request_timeout=CALL_SECONDS
            ),
        ).items
        ready = [pod for pod in pods if _is_ready(pod)]
        ready.sort(key=lambda pod: pod.metadata.creation_timestamp, reverse=True)
        for pod in ready:
            if port := _port_of(pod, master.target_port):
                return Pod(name=pod.metadata.name, uid=pod.metadata.uid, port=port)
        return None

    def connect(self, master: Master, pod: Pod) -> socket.socket:
        """A WebSocket to the pod's port, its handshake done. Raises NotFound, Forbidden, Unavailable."""
        try:
            return self._tunnel(master.namespace, pod)
        except _Unauthorized:
            self._load()
        return self._tunnel(master.namespace, pod)

    def _named_master(self) -> Master:
        name = self._wanted.service
        service = self._ask(
            ("get", "services"),
            lambda api: api.read_namespaced_service(name, self.namespace, _request_timeout=CALL_SECONDS),
        )
        ports = service.spec.ports or []
        port = next(filter(_is_grpc, ports), ports[0] if len(ports) == 1 else None)
        if port is None:
            raise InvalidInput(
                f"service {name} has no port {GRPC_PORT} and none named {GRPC_PORT_NAME}", field="service"
            )
        return self._master(service, port)

    def _labelled_master(self) -> Master:
        labels = {_PART_OF: "shoal", _COMPONENT: "master"}
        if self._wanted.release:
            labels[_INSTANCE] = self._wanted.release
        services = self._ask(
            ("list", "services"),
            lambda api: api.list_namespaced_service(
                self.namespace, label_selector=_selector(labels), _request_timeout=CALL_SECONDS
            ),
        ).items
        found = [
            self._master(service, port) for service in services for port in service.spec.ports or [] if _is_grpc(port)
        ]
        place = f"namespace {self.namespace} (kube context {self.context})"
        releases = sorted({master.release for master in found})
        if not found and self._wanted.release:
            raise NotFound(f"no release '{self._wanted.release}' of Shoal in {place}; is --namespace right?")
        if not found:
            raise NotFound(f"no release of Shoal in {place}; name another one by --namespace")
        if len(releases) > 1:
            raise InvalidInput(f"several releases in {place}: {', '.join(releases)}; name one by --release")
        if len(found) > 1:
            names = ", ".join(sorted(master.service for master in found))
            raise InvalidInput(f"several services of the master in {place}: {names}; name one by --service")
        return found[0]

    def _master(self, service: Any, port: Any) -> Master:
        if not service.spec.selector:
            raise InvalidInput(f"service {service.metadata.name} selects no pods to forward to", field="service")
        return Master(
            namespace=self.namespace,
            release=(service.metadata.labels or {}).get(_INSTANCE, ""),
            service=service.metadata.name,
            selector=_selector(service.spec.selector),
            target_port=port.target_port or port.port,
        )

    def _ask(self, what: tuple[str, str], call: Callable[[client.CoreV1Api], Any]) -> Any:
        try:
            with self._explained(*what):
                return call(self._api)
        except _Unauthorized:
            self._load()
        with self._explained(*what):
            return call(self._api)

    @contextmanager
    def _explained(self, verb: str, resource: str) -> Iterator[None]:
        try:
            yield
        except client.ApiException as error:
            raise self._refusal(error.status or 0, _message_of(error.body), verb, resource) from error
        except websocket.WebSocketBadStatusException as error:
            raise self._refusal(error.status_code, _message_of(error.resp_body), verb, resource) from error
        except (urllib3.exceptions.HTTPError, websocket.WebSocketException, OSError) as error:
            raise Unavailable(
                f"the Kubernetes API at {self._configuration.host} cannot be reached: {_reason_of(error)}"
            ) from error

    def _refusal(
        self, status: int, message: str, verb: str, resource: str
    ) -> "_Unauthorized | Forbidden | NotFound | Unavailable":
        match status:
            case 401:
                return _Unauthorized(
                    f"the Kubernetes API at {self._configuration.host} does not accept the credentials of context "
                    f"{self.context}; log in again"
                )
            case 403:
                if told := re.search(r'cannot (\w+) resource "([^"]+)"', message):
                    verb, resource = told.groups()
                return Forbidden(
                    f"no right to {verb} {resource} in namespace {self.namespace} (kube context {self.context}); "
                    "ask an administrator of the cluster for it"
                )
            case 404:
                return NotFound(message or f"no such {resource} in namespace {self.namespace}")
            case _:
                host, words = self._configuration.host, message or "without a reason"
                return Unavailable(f"the Kubernetes API at {host} answered {status}: {words}")

    def _tunnel(self, namespace: str, pod: Pod) -> socket.socket:
        configuration = self._configuration
        base = re.sub("^http", "ws", configuration.host)
        query = urlencode({"ports": pod.port})
        settings: Iterable[Any] = configuration.auth_settings().values()
        headers = {setting["key"].lower(): setting["value"] for setting in settings if setting["value"]}
        options: dict[str, Any] = {"header": headers, "subprotocols": [SUBPROTOCOL], "timeout": TUNNEL_SECONDS}
        if configuration.proxy or configuration.proxy_headers:
            options = ws_client.websocket_proxycare(options, configuration, base, headers)
        tunnel = websocket.WebSocket(sslopt=_tls_options(configuration))
        with self._explained("get", "pods/portforward"):
            tunnel.connect(f"{base}/api/v1/namespaces/{namespace}/pods/{pod.name}/portforward?{query}", **options)
        assert tunnel.sock is not None
        return tunnel.sock


class Route:
    """The way to one master's pods."""

    def __init__(self, kubernetes: Kubernetes, master: Master) -> None:
        self._kubernetes = kubernetes
        self._master = master

    def ready_pod(self) -> Pod | None:
        return self._kubernetes.ready_pod(self._master)

    def connect(self, pod: Pod) -> socket.socket:
        return self._kubernetes.connect(self._master, pod)


class _Unauthorized(Forbidden):
    """The credentials are none, or none any more."""


def _is_grpc(port: Any) -> bool:
    return bool(port.name == GRPC_PORT_NAME or port.port == GRPC_PORT)


def _is_ready(pod: Any) -> bool:
    conditions = pod.status.conditions or []
    there = pod.status.phase == "Running" and pod.metadata.deletion_timestamp is None
    return there and any(condition.type == "Ready" and condition.status == "True" for condition in conditions)


def _port_of(pod: Any, target: int | str) -> int | None:
    """The number of the pod's port; None for a name that it does not have."""
    if isinstance(target, int) or target.isdigit():
        return int(target)
    ports = [port for container in pod.spec.containers for port in container.ports or []]
    return next((port.container_port for port in ports if port.name == target), None)


def _selector(labels: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _tls_options(configuration: client.Configuration) -> dict[str, Any]:
    """As the client's own WebSockets have them."""
    if not configuration.verify_ssl:
        options: dict[str, Any] = {"cert_reqs": ssl.CERT_NONE, "check_hostname": False}
    else:
        options = {"cert_reqs": ssl.CERT_REQUIRED, "ca_certs": configuration.ssl_ca_cert}
        if configuration.assert_hostname is not None:
            options["check_hostname"] = bool(configuration.assert_hostname)
    named = {
        "certfile": configuration.cert_file,
        "keyfile": configuration.key_file,
        "server_hostname": configuration.tls_server_name,
    }
    return options | {key: value for key, value in named.items() if value}


def _message_of(body: bytes | str | None) -> str:
    """The words of a Status object."""
    try:
        return " ".join(str(json.loads(body or "{}")["message"]).split())
    except (ValueError, KeyError, TypeError):
        return ""


def _reason_of(error: BaseException) -> str:
    """The innermost words: the outer ones are of the parts between."""
    inner = getattr(error, "reason", None) or error.__cause__ or error.__context__
    if isinstance(inner, BaseException) and inner is not error:
        return _reason_of(inner)
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split()) or type(error).__name__
