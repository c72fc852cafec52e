"""What of a pod is news, from objects as the API server sends them."""

import pytest
from lightkube.resources.core_v1 import Pod

from shoal.core.errors import InvalidInput
from shoal.master.coordination.incidents import Incidents
from shoal.master.coordination.pods import PodFacts, PodWatch, facts_of, news

CONTAINER = {"name": "worker", "image": "i", "imageID": "i", "ready": True, "restartCount": 0}


def pod(*, ended=None, restarted=False, deleting=False, conditions=(), status=()) -> PodFacts:
    state = {"terminated": {"containerID": "containerd://1", "exitCode": 137, **ended}} if ended else {}
    container = CONTAINER | ({"lastState": state, "state": {"running": {}}} if restarted else {"state": state})
    document = {
        "metadata": {"name": "w-0", **({"deletionTimestamp": "2026-11-24T23:00:00Z"} if deleting else {})},
        "spec": {
            "nodeName": "node-2",
            "containers": [{"name": "worker", "resources": {"limits": {"memory": "512Mi"}}}],
        },
        "status": {
            "podIP": "10.0.0.1",
            "conditions": list(conditions),
            "containerStatuses": [container],
            **dict(status),
        },
    }
    return facts_of(Pod.from_dict(document))


def told(before: PodFacts, now: PodFacts) -> list[tuple[str, str]]:
    return [(entry.reason, entry.message) for entry in news(before, now)]


def test_nothing_new_is_no_news():
    assert told(pod(), pod()) == []
    assert told(pod(deleting=True), pod(deleting=True)) == []


@pytest.mark.parametrize("restarted", [False, True])
def test_an_oom_kill_is_told_as_such_once_with_the_limit(restarted):
    killed = pod(ended={"reason": "OOMKilled"}, restarted=restarted)
    message = "pod w-0 on node-2: container worker was OOM-killed: out of memory (its limit is 512Mi)"
    assert told(pod(), killed) == [("PodOOMKilled", message)]
    assert told(killed, pod(ended={"reason": "OOMKilled"}, restarted=True)) == []


def test_another_end_is_told_with_its_exit_code():
    message = "pod w-0 on node-2: container worker ended with exit code 1 (Error)"
    assert told(pod(), pod(ended={"reason": "Error", "exitCode": 1})) == [("PodContainerEnded", message)]


def test_a_container_that_ends_because_its_pod_does_is_not_told_twice():
    deleting = pod(deleting=True)
    assert told(pod(), deleting) == [("PodDeleted", "pod w-0 on node-2 was deleted")]
    assert told(deleting, pod(deleting=True, ended={"reason": "Completed", "exitCode": 0})) == []


def test_a_drain_is_told_with_kubernetes_own_reason():
    evicted = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting",
    }
    message = "pod w-0 on node-2 is being ended by Kubernetes: EvictionByEvictionAPI: Eviction API: evicting"
    assert told(pod(), pod(deleting=True, conditions=[evicted])) == [("PodEvicted", message)]
    pressure = pod(status={"phase": "Failed", "reason": "Evicted", "message": "low on memory"}.items())
    assert told(pod(), pressure)[0][1].endswith("by Kubernetes: Evicted: low on memory")


def test_a_pod_that_is_not_placed_yet_can_be_read():
    bare = facts_of(Pod.from_dict({"metadata": {"name": "w-1"}, "spec": {"containers": [{"name": "worker"}]}}))
    assert bare == PodFacts(name="w-1")


@pytest.mark.parametrize("selector", ["", "a", "a=b,c", "=b", "a in (b)"])
def test_a_selector_of_another_form_is_refused(selector):
    incidents = Incidents(live=None, members=None, store=None, changes=None, clock=None)
    with pytest.raises(InvalidInput, match="key=value"):
        PodWatch(namespace="n", selector=selector, incidents=incidents)
