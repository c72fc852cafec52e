"""What the API server says of the chart's pods and ServiceAccounts, without an image and without starting anything.

Plain functions over kubectl and Helm. Pods are tried by server-side dry runs, which pass every admission.
"""

import copy
import functools
import json
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.kube import CHART, ROOT, SECONDS, Kube, command

VALUES = {
    **{path.name.removesuffix("-values.yaml"): path for path in sorted(CHART.glob("ci/*-values.yaml"))},
    **{f"deploy-{path.parent.name}": path for path in sorted(ROOT.glob("deploy/*/values.yaml"))},
}
LABELS = ("pod-security.kubernetes.io/enforce=restricted", "pod-security.kubernetes.io/warn=restricted")
# Objects that pods name and that a cluster may lack. None of them plays a part in Pod Security.
_ELSEWHERE = ("serviceAccountName", "priorityClassName", "runtimeClassName")

Manifest = dict[str, Any]


@functools.cache
def cluster_version() -> str:
    """The API server's."""
    version: str = json.loads(command("kubectl", "version", "--output", "json"))["serverVersion"]["gitVersion"]
    return version


def rendered(values: Path, *, release: str, namespace: str) -> list[Manifest]:
    where = ("--namespace", namespace, "--kube-version", cluster_version())
    text = command("helm", "template", release, str(CHART), *where, "--values", str(values))
    return [document for document in yaml.safe_load_all(text) if document]


def objects_are_taken(kube: Kube, documents: Iterable[Manifest]) -> str:
    """A dry run of everything that needs no operator, but for the test's pod: see `refusals`.

    Fails if one is refused; returns what the API server warns of.
    """
    items = [
        document
        for document in documents
        if document["apiVersion"] != "monitoring.coreos.com/v1" and document["kind"] != "Pod"
    ]
    done = _dry_run(kube, "apply", items)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(server dry run)") == len(items)
    return done.stderr


def pods_of(documents: Iterable[Manifest]) -> Iterator[Manifest]:
    """The pods that the workloads and the test would make, each with a name of its own."""
    for document in documents:
        metadata, kind = document["metadata"], document["kind"]
        if kind == "Pod":
            spec, labels = document["spec"], metadata["labels"]
        elif kind in ("Deployment", "StatefulSet"):
            spec, labels = document["spec"]["template"]["spec"], document["spec"]["template"]["metadata"]["labels"]
        else:
            continue
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"{kind.lower()}-{metadata['name']}", "labels": labels},
            "spec": {field: value for field, value in copy.deepcopy(spec).items() if field not in _ELSEWHERE},
        }
        for claim in document["spec"].get("volumeClaimTemplates", []):
            name = claim["metadata"]["name"]
            pod["spec"]["volumes"].append({"name": name, "persistentVolumeClaim": {"claimName": name}})
        yield pod


def refusals(kube: Kube, pods: list[Manifest]) -> dict[str, str]:
    """Why the API server refuses pods, by their names; those that it admits are not in it."""
    done = _dry_run(kube, "create", pods)
    admitted = set(re.findall(r"^pod/(\S+) created \(server dry run\)$", done.stdout, re.MULTILINE))
    refused = dict(
        re.findall(r'^Error from server \(Forbidden\):.*pods "(\S+)" is forbidden: (.*)$', done.stderr, re.M)
    )
    names = {pod["metadata"]["name"] for pod in pods}
    assert admitted | refused.keys() == names, done.stderr
    assert not admitted & refused.keys()
    return refused


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutation:
    """One hardening field taken away from one pod."""

    pod: Manifest
    field: str
    told: str  # what the API server's refusal says of it


def mutations(pod: Manifest) -> Iterator[Mutation]:
    """Every single removal: pod-wide fields, and those of each container."""

    def without(field: str, told: str, remove: Callable[[Manifest], object]) -> Mutation:
        changed = copy.deepcopy(pod)
        changed["metadata"]["name"] += f"-{field.lower().replace('.', '-')}"
        remove(changed["spec"])
        return Mutation(pod=changed, field=field, told=told)

    yield without("runAsNonRoot", "runAsNonRoot != true", lambda spec: spec["securityContext"].pop("runAsNonRoot"))
    yield without("seccompProfile", "seccompProfile", lambda spec: spec["securityContext"].pop("seccompProfile"))
    for group in ("containers", "initContainers"):
        for index, container in enumerate(pod["spec"].get(group, [])):

            def of_container(spec: Manifest, group: str = group, index: int = index) -> Manifest:
                context: Manifest = spec[group][index]["securityContext"]
                return context

            yield without(
                f"{container['name']}.allowPrivilegeEscalation",
                "allowPrivilegeEscalation != false",
                lambda spec, of=of_container: of(spec).pop("allowPrivilegeEscalation"),
            )
            yield without(
                f"{container['name']}.capabilities.drop",
                "unrestricted capabilities",
                lambda spec, of=of_container: of(spec)["capabilities"].pop("drop"),
            )


def apply_accounts(kube: Kube, documents: Iterable[Manifest]) -> list[str]:
    """Makes the chart's ServiceAccounts and their rights; the accounts' names."""
    kinds = ("ServiceAccount", "Role", "RoleBinding")
    chosen = [document for document in documents if document["kind"] in kinds]
    kube.apply(*chosen)
    return sorted(document["metadata"]["name"] for document in chosen if document["kind"] == "ServiceAccount")


def rights(kube: Kube, account: str) -> str:
    """What an account may beyond what every account of the namespace may, a line for each rule."""
    own = _rules(kube, account) - _rules(kube, "nobody-has-made-this-account")
    return "".join(f"{line}\n" for line in sorted(own)) or "nothing\n"


def _rules(kube: Kube, account: str) -> set[str]:
    user = f"system:serviceaccount:{kube.namespace}:{account}"
    told = kube.kubectl("auth", "can-i", "--list", "--no-headers", f"--as={user}")
    return {" ".join(line.split()) for line in told.splitlines()}


def _dry_run(kube: Kube, verb: str, items: list[Manifest]) -> subprocess.CompletedProcess[str]:
    everything = {"apiVersion": "v1", "kind": "List", "items": items}
    return subprocess.run(
        ["kubectl", "--namespace", kube.namespace, verb, "--dry-run=server", "--filename", "-"],
        input=json.dumps(everything),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
