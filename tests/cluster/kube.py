"""A namespace of a real Kubernetes, by kubectl and helm: what the cluster tests stand on.

Nothing here knows which cluster it is: KUBECONFIG says it. What only the cluster's owner can do (cut a node off, take
its power away) is done by commands that the environment names; see `node_command`.
"""

import contextlib
import json
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "shoal"
SECONDS = 180.0  # for anything that is waited for here
_PAUSE_SECONDS = 0.2

Found = TypeVar("Found")


class CommandFailed(AssertionError):
    """kubectl or helm did not do what it was told; the text is its own."""


def until(look: Callable[[], Found | None], what: str, *, seconds: float = SECONDS) -> Found:
    """Polls until `look` finds something; its answer."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"after {seconds:g} s: {what}"
        time.sleep(_PAUSE_SECONDS)
    return found


def command(*arguments: str, stdin: bytes | None = None, seconds: float = SECONDS) -> str:
    done = subprocess.run(arguments, input=stdin, capture_output=True, timeout=seconds, check=False)
    if done.returncode:
        raise CommandFailed(f"{shlex.join(arguments)}: {done.stderr.decode()}{done.stdout.decode()}")
    return done.stdout.decode()


def node_command(variable: str, node: str) -> str | None:
    """The owner's command for a node, such as SHOAL_TEST_NODE_KILL='my-cloud stop {node}'. None: there is none."""
    text = os.environ.get(variable)
    return text.replace("{node}", node) if text else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Kube:
    namespace: str

    def kubectl(self, *arguments: str, stdin: bytes | None = None, seconds: float = SECONDS) -> str:
        return command("kubectl", "--namespace", self.namespace, *arguments, stdin=stdin, seconds=seconds)

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "--output", "json"))

    def items(self, kind: str, *arguments: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get(kind, *arguments)["items"]
        return found

    def apply(self, *documents: dict[str, Any]) -> None:
        everything = {"apiVersion": "v1", "kind": "List", "items": list(documents)}
        self.kubectl("apply", "--filename", "-", stdin=json.dumps(everything).encode())

    def helm(self, *arguments: str, seconds: float = SECONDS) -> str:
        return command("helm", "--namespace", self.namespace, *arguments, seconds=seconds)

    def pods(self, selector: str) -> list[dict[str, Any]]:
        return self.items("pods", "--selector", selector)

    def ready(self, selector: str, count: int) -> None:
        """Waits until exactly `count` pods are there, and all are ready."""
        until(
            lambda: len(pods := self.pods(selector)) == count and all(map(is_ready, pods)),
            f"{count} ready pods of {selector}",
        )

    def node_of(self, pod: str) -> str:
        node: str = self.get("pod", pod)["spec"]["nodeName"]
        return node

    @contextlib.contextmanager
    def forwarded(self, target: str, port: int) -> Iterator[str]:
        """`kubectl port-forward`: HOST:PORT on this machine."""
        forward = subprocess.Popen(
            ["kubectl", "--namespace", self.namespace, "port-forward", target, f":{port}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            assert forward.stdout is not None
            line = forward.stdout.readline()
            found = re.match(r"Forwarding from (\S+:\d+)", line)
            assert found, line + forward.stdout.read()
            yield found[1]
        finally:
            forward.terminate()
            forward.wait(timeout=SECONDS)
            assert forward.stdout is not None
            forward.stdout.close()


def is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod["status"].get("conditions", [])
    ready = any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


def nodes() -> list[str]:
    """That pods may be placed on, by name."""
    found = json.loads(command("kubectl", "get", "nodes", "--output", "json"))["items"]
    return sorted(node["metadata"]["name"] for node in found if not node["spec"].get("unschedulable"))
