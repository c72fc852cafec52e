"""No pod may more than it needs, whatever the values say."""

from typing import Any

import pytest

from tests.chart.rendering import VALUES, Pod, objects, of_kind, pods

# What a container may write to, by where it is mounted. The root file system is read-only.
WRITABLE = {
    "master": {"/tmp", "/var/lib/shoal"},
    "parameter-server": {"/tmp", "/var/lib/shoal", "/dev/shm"},
    "worker": {"/tmp", "/dev/shm"},
    "test": {"/tmp"},
}
# Of the restricted Pod Security Standard, and the claim that stands for all of a cluster's kinds of storage.
VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}


def every_pod() -> Any:
    return pytest.mark.parametrize("values", VALUES)


@every_pod()
def test_every_pod_meets_the_restricted_standard(values: str) -> None:
    for pod in pods(objects(values)):
        context = pod.spec["securityContext"]
        assert context["runAsNonRoot"] is True, pod.owner
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, pod.owner
        assert context.get("runAsUser", 10001) != 0, pod.owner
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & pod.spec.keys(), pod.owner
        for volume in pod.spec["volumes"]:
            assert volume.keys() - {"name"} <= VOLUMES, (pod.owner, volume)
        for container in pod.containers:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            }, pod.owner
            assert all("hostPort" not in port for port in container.get("ports", []))


@every_pod()
def test_each_hardening_field_is_set_in_one_place(values: str) -> None:
    """So that its removal cannot be made up for by the other, and the cluster's refusal proves something."""
    for pod in pods(objects(values)):
        assert not {"allowPrivilegeEscalation", "capabilities"} & pod.spec["securityContext"].keys()
        for container in pod.containers:
            assert not {"runAsNonRoot", "seccompProfile"} & container["securityContext"].keys()


@every_pod()
def test_what_can_be_written_is_known(values: str) -> None:
    given = {"/etc/certificates", "/datasets"} if values == "everything" else set()  # by that values file itself
    for pod in pods(objects(values)):
        for container in pod.containers:
            written = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
            assert written - given == WRITABLE[pod.component], pod.owner


@every_pod()
def test_memory_volumes_and_scratch_space_are_limited(values: str) -> None:
    for pod in pods(objects(values)):
        for volume in pod.spec["volumes"]:
            if volume["name"] in ("tmp", "shared-memory"):
                assert volume["emptyDir"]["sizeLimit"], (pod.owner, volume)


@every_pod()
def test_only_a_master_that_watches_has_a_token(values: str) -> None:
    documents = objects(values)
    watches = bool(of_kind(documents, "Role"))
    assert watches == (values != "restricted")
    for pod in pods(documents):
        assert pod.spec["automountServiceAccountToken"] is (watches and pod.component == "master"), pod.owner
    for account in of_kind(documents, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
    for role in of_kind(documents, "Role"):
        assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]
    assert not of_kind(documents, "ClusterRole", "ClusterRoleBinding")


@every_pod()
def test_the_default_policy_covers_every_pod(values: str) -> None:
    documents = objects(values)
    policies = of_kind(documents, "NetworkPolicy")
    default = next(policy for policy in policies if policy["metadata"]["name"].endswith("-default-deny"))
    assert default["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in default["spec"]
    assert [{port["port"] for port in rule["ports"]} for rule in default["spec"]["egress"]] in ([{53}], [{53, 5353}])
    for pod in pods(documents):
        assert pod.matches(default["spec"]["podSelector"]), pod.owner
        own = [policy for policy in policies if policy is not default and pod.matches(policy["spec"]["podSelector"])]
        assert len(own) == 1, pod.owner


@every_pod()
def test_containers_have_requests_a_memory_limit_and_an_image_that_does_not_move(values: str) -> None:
    for pod in pods(objects(values)):
        for container in pod.containers:
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), pod.owner
            assert "memory" in container["resources"]["limits"], pod.owner
            name = container["image"].rsplit("/", 1)[-1]
            assert ":" in name, pod.owner
            assert not name.endswith(":latest"), pod.owner


def test_the_pods_are_those_that_are_meant() -> None:
    components = {pod.component for pod in pods(objects("default"))}
    assert components == set(WRITABLE)
    assert all(isinstance(pod, Pod) for pod in pods(objects("default")))
