"""What belongs together finds each other: selectors, names, ports, and the settings that the roles read."""

import os
from typing import Any
from unittest import mock

import pytest

from shoal.master.settings import MasterSettings
from shoal.process.settings import RoleSettings
from shoal.ps.settings import PsSettings
from shoal.worker.settings import WorkerSettings
from tests.chart.rendering import (
    NAMESPACE,
    ROLES,
    VALUES,
    WORKLOADS,
    Manifest,
    Pod,
    any_helm,
    manifests,
    objects,
    of_kind,
    pods,
    template,
)

SETTINGS: dict[str, type[RoleSettings]] = {
    "master": MasterSettings,
    "parameter-server": PsSettings,
    "worker": WorkerSettings,
}
LONGEST_LABEL = 63  # of DNS, and of Kubernetes' labels
LONGEST_STATEFULSET = 52  # its pods get a label with its name and a hash of ten characters


def fields(name: str) -> str:
    """What the downward API would say."""
    said = {"metadata.name": "a-pod", "metadata.namespace": NAMESPACE, "status.podIP": "10.1.2.3"}
    return {**said, "spec.nodeName": "a-node"}[name]


def environment(pod: Pod) -> dict[str, str]:
    """The container's variables as the kubelet would set them."""
    known: dict[str, str] = {}
    for variable in pod.spec["containers"][0]["env"]:
        if "value" in variable:
            value = variable["value"]
            for other, text in known.items():
                value = value.replace(f"$({other})", text)
        elif "fieldRef" in variable["valueFrom"]:
            value = fields(variable["valueFrom"]["fieldRef"]["fieldPath"])
        else:
            value = "postgresql://from-a-secret/shoal"
        known[variable["name"]] = value
    return known


def loaded(pod: Pod, documents: tuple[Manifest, ...], tmp_path: Any) -> RoleSettings:
    """The settings that the role gets from its pod's variables and file, by its own reader."""
    variables = {name: value for name, value in environment(pod).items() if name.startswith("SHOAL_")}
    file = tmp_path / "shoal.yaml"
    config = next(config for config in of_kind(documents, "ConfigMap") if "shoal.yaml" in config["data"])
    file.write_text(config["data"]["shoal.yaml"])
    assert variables["SHOAL_CONFIG"] == "/etc/shoal/shoal.yaml"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    with mock.patch.dict(os.environ, {**clean, **variables, "SHOAL_CONFIG": str(file)}, clear=True):
        return SETTINGS[pod.component].load([])


@pytest.mark.parametrize("values", [values for values in VALUES if values != "everything"])
def test_the_roles_take_their_settings(values: str, tmp_path: Any) -> None:
    documents = objects(values)
    for pod in pods(documents):
        if pod.component not in ROLES:
            continue
        settings: Any = loaded(pod, documents, tmp_path)
        ports = {port["name"]: port["containerPort"] for port in pod.spec["containers"][0]["ports"]}
        assert (settings.host, settings.log_format) == ("0.0.0.0", "json")
        assert (settings.port, settings.metrics_port) == (ports["grpc"], ports["http"])
        if pod.component != "worker":
            mounts = {mount["mountPath"] for mount in pod.spec["containers"][0]["volumeMounts"]}
            assert str(settings.data_dir) in mounts
        if pod.component != "master":
            assert settings.master == "vision-shoal-master:7070"


def test_the_roles_take_settings_that_users_give(tmp_path: Any) -> None:
    documents = objects("everything")
    settings = {pod.component: loaded(pod, documents, tmp_path) for pod in pods(documents) if pod.component in ROLES}
    master, server, worker = (settings[component] for component in ("master", "parameter-server", "worker"))
    assert isinstance(master, MasterSettings)
    assert (master.log_format, master.lease_seconds, master.ended_jobs_kept) == ("console", 7.5, 1_000_000)
    assert isinstance(server, PsSettings)
    assert server.shared_memory is False
    assert server.advertise_host == f"a-pod.fishes-ps.{NAMESPACE}.svc"
    assert isinstance(worker, WorkerSettings)
    assert (worker.worker_id, worker.advertise_host) == ("a-pod", "10.1.2.3")
    assert (worker.max_concurrent_jobs, worker.warm_trainers, worker.supported_models) == (3, 2, ("cnn",))
    assert [str(root) for root in worker.data_roots] == ["/usr/share/datasets", "/etc/certificates", "/datasets"]
    assert worker.trainer_restarts == 0


@pytest.mark.parametrize("values", VALUES)
def test_a_worker_has_time_to_leave_twice_before_it_is_killed(values: str, tmp_path: Any) -> None:
    """Once in the preStop hook, once at SIGTERM, if the hook did not succeed."""
    documents = objects(values)
    for pod in pods(documents):
        if pod.component == "worker":
            settings = loaded(pod, documents, tmp_path)
            assert isinstance(settings, WorkerSettings)
            assert 2 * settings.leave_seconds < pod.spec["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("values", VALUES)
def test_selectors_find_their_pods_and_no_others(values: str) -> None:
    documents = objects(values)
    everyone = list(pods(documents))
    found: dict[str, list[str]] = {}
    for document in of_kind(documents, *WORKLOADS, "PodDisruptionBudget"):
        name = f"{document['kind']}/{document['metadata']['name']}"
        found[name] = [pod.owner for pod in everyone if pod.matches(document["spec"]["selector"])]
        assert len(found[name]) == 1, name
        assert found[name][0].rsplit("/", 1)[-1] == document["metadata"]["name"]
    for service in of_kind(documents, "Service"):
        chosen = [pod for pod in everyone if pod.matches({"matchLabels": service["spec"]["selector"]})]
        assert chosen, service["metadata"]["name"]
        assert len({pod.component for pod in chosen}) == 1
        for pod in chosen:
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= {
                port["name"] for port in pod.spec["containers"][0]["ports"]
            }
    for document in of_kind(documents, "StatefulSet"):
        service = next(
            s for s in of_kind(documents, "Service") if s["metadata"]["name"] == document["spec"]["serviceName"]
        )
        assert service["spec"]["clusterIP"] == "None"


@pytest.mark.parametrize("values", VALUES)
def test_what_pods_refer_to_is_there(values: str) -> None:
    documents = objects(values)
    configs = {config["metadata"]["name"] for config in of_kind(documents, "ConfigMap")}
    claims = {claim["metadata"]["name"] for claim in of_kind(documents, "PersistentVolumeClaim")}
    accounts = {account["metadata"]["name"] for account in of_kind(documents, "ServiceAccount")}
    given = {"restricted": {"default", "nobody"}}.get(values, set()) | {"default"}
    for pod in pods(documents):
        assert pod.spec.get("serviceAccountName", "default") in accounts | given, pod.owner
        volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
        templates = {"data"} if pod.component == "parameter-server" else set()
        for container in pod.containers:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes.keys() | templates, pod.owner
        for volume in volumes.values():
            if "configMap" in volume:
                assert volume["configMap"]["name"] in configs, pod.owner
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims | {"datasets"}, pod.owner


@pytest.mark.parametrize("release", ["s", "7", "a.b-c", "shoal", "x" * 53, "a-shoal-" + "y" * 45])
def test_names_are_fit_for_kubernetes_and_differ(release: str) -> None:
    pools = "workers.pools[0].name=on,workers.pools[1].name=" + "p" * 40 + ",workers.pools[2].name=" + "p" * 39
    switches = "priorityClass.create=true,monitoring.podMonitor.enabled=true,master.podDisruptionBudget.enabled=true"
    documents = manifests(template(any_helm(), "--set", f"{pools},{switches}", release=release))
    names = [(document["kind"], document["metadata"]["name"]) for document in documents]
    assert len(set(names)) == len(names)
    for kind, name in names:
        longest = LONGEST_STATEFULSET if kind == "StatefulSet" else LONGEST_LABEL
        assert len(name) <= longest, (kind, name)
        assert name[0].isalpha(), (kind, name)
        assert all(character.isalnum() or character == "-" for character in name), (kind, name)
        assert not name.endswith("-"), (kind, name)
    for document in documents:
        for value in document["metadata"]["labels"].values():
            assert len(value) <= LONGEST_LABEL


def test_manifests_have_no_lines_of_blanks() -> None:
    """They are read by people who want to know what is about to be applied."""
    for values in VALUES:
        text = template(any_helm(), "--values", VALUES[values])
        assert "\t" not in text
        for document in text.split("\n---\n"):
            if "shoal/templates/tests/" not in document:  # whose program has blank lines
                assert not [line for line in document.splitlines() if line != line.rstrip()], document
