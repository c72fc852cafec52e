"""The pods of a release, watched, so that a job's events tell what Kubernetes did to them.

Observed only: nothing is decided by it. Liveness comes from heartbeats, whether there is a Kubernetes or not.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import httpx2
import lightkube
from lightkube.core.client import LabelSelector
from lightkube.models.core_v1 import ContainerStateTerminated, ContainerStatus
from lightkube.resources.core_v1 import Pod

from shoal.core.errors import InvalidInput
from shoal.master import reasons
from shoal.master.coordination.incidents import Incidents
from shoal.process.logs import get_logger

_RETRY_SECONDS = 5.0  # after an API server that does not answer
_WATCH_SECONDS = 300  # the server ends a watch after this; the list is then read anew
_DISRUPTION = "DisruptionTarget"  # condition of a pod that Kubernetes is about to end


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """One end of a container."""

    container_id: str
    reason: str  # Kubernetes' own: OOMKilled, Error, Completed
    exit_code: int
    memory_limit: str  # as the pod's spec says it; '' without one


@dataclass(frozen=True, kw_only=True, slots=True)
class PodFacts:
    """What of a pod can become news."""

    name: str
    address: str = ""
    node: str = ""
    deleting: bool = False
    disruption: str = ""  # why Kubernetes ends it: eviction, taint, preemption
    ended: dict[str, Ended] = field(default_factory=dict)  # the last end of each container


@dataclass(frozen=True, kw_only=True, slots=True)
class News:
    reason: str
    message: str


def facts_of(pod: Pod) -> PodFacts:
    assert pod.metadata is not None
    status, spec = pod.status, pod.spec
    limits: dict[str, str] = {}
    for container in spec.containers if spec is not None else ():
        resources = container.resources
        limits[container.name] = str((resources.limits or {}).get("memory", "")) if resources is not None else ""
    disruption = ""
    for condition in (status.conditions or []) if status is not None else []:
        if condition.type == _DISRUPTION and condition.status == "True":
            disruption = f"{condition.reason}: {condition.message}"
    if status is not None and status.reason == "Evicted":
        disruption = f"Evicted: {status.message}"
    return PodFacts(
        name=pod.metadata.name or "",
        address=(status.podIP or "") if status is not None else "",
        node=(spec.nodeName or "") if spec is not None else "",
        deleting=pod.metadata.deletionTimestamp is not None,
        disruption=disruption,
        ended={
            container.name: Ended(
                container_id=ended.containerID or "",
                reason=ended.reason or "",
                exit_code=ended.exitCode,
                memory_limit=limits.get(container.name, ""),
            )
            for container in ((status.containerStatuses or []) if status is not None else [])
            if (ended := _end_of(container)) is not None
        },
    )


def news(before: PodFacts, now: PodFacts) -> Iterator[News]:
    """What has happened to a pod between two looks at it. Pure."""
    where = f"pod {now.name}" + (f" on {now.node}" if now.node else "")
    for name, ended in now.ended.items():
        known = before.ended.get(name)
        if known is not None and known.container_id == ended.container_id:
            continue
        if ended.reason == "OOMKilled":
            limit = f" (its limit is {ended.memory_limit})" if ended.memory_limit else ""
            yield News(
                reason=reasons.POD_OOM_KILLED, message=f"{where}: container {name} was OOM-killed: out of memory{limit}"
            )
        elif not (now.deleting or now.disruption):
            yield News(
                reason=reasons.POD_CONTAINER_ENDED,
                message=f"{where}: container {name} ended with exit code {ended.exit_code} ({ended.reason})",
            )
    if now.disruption and not before.disruption:
        yield News(reason=reasons.POD_EVICTED, message=f"{where} is being ended by Kubernetes: {now.disruption}")
    elif now.deleting and not before.deleting and not now.disruption:
        yield News(reason=reasons.POD_DELETED, message=f"{where} was deleted")


def _end_of(container: ContainerStatus) -> ContainerStateTerminated | None:
    """How it ended last, if it ever has."""
    for state in (container.state, container.lastState):
        if state is not None and state.terminated is not None:
            return state.terminated
    return None


class PodWatch:
    """Runs for ever; an API server that does not answer is asked again."""

    def __init__(self, *, namespace: str, selector: str, incidents: Incidents) -> None:
        """`selector` as Kubernetes writes it: key=value,key=value. Raises InvalidInput for anything else."""
        self._namespace = namespace
        self._labels = _labels_of(selector)
        self._incidents = incidents
        self._known: dict[str, PodFacts] = {}
        self._log = get_logger()

    async def run(self) -> None:
        told = ""
        while True:
            try:
                async for pod in self._looks():
                    told = ""
                    await self._see(facts_of(pod))
            except (httpx2.HTTPError, lightkube.ApiError, lightkube.ConfigError) as error:
                text = f"{type(error).__name__}: {error}"
                if text != told:
                    self._log.warning("pods_not_watched", namespace=self._namespace, error=text)
                    told = text
                await asyncio.sleep(_RETRY_SECONDS)

    async def _looks(self) -> AsyncIterator[Pod]:
        """Every pod as it is, then each one that changes."""
        client = lightkube.AsyncClient()
        try:
            found = client.list(Pod, namespace=self._namespace, labels=self._labels)
            async for pod in found:
                yield pod
            async for what, pod in client.watch(
                Pod,
                namespace=self._namespace,
                labels=self._labels,
                resource_version=found.resourceVersion,
                server_timeout=_WATCH_SECONDS,
            ):
                if what == "DELETED":
                    self._known.pop((pod.metadata.name if pod.metadata else None) or "", None)
                else:
                    yield pod
        finally:
            await client.close()

    async def _see(self, now: PodFacts) -> None:
        before = self._known.get(now.name)
        self._known[now.name] = now
        if before is None:  # what happened before the first look is not this master's news
            return
        for what in news(before, now):
            self._log.info("pod_news", pod=now.name, reason=what.reason, detail=what.message)
            await self._incidents.pod(now.name, now.address, reason=what.reason, message=what.message)


def _labels_of(selector: str) -> LabelSelector:
    pairs = [part.partition("=") for part in selector.split(",") if part]
    if not pairs or not all(name and equals and value for name, equals, value in pairs):
        raise InvalidInput(
            f"kubernetes_selector '{selector}': key=value pairs with commas between them are expected",
            field="kubernetes_selector",
        )
    return {name.strip(): value.strip() for name, _, value in pairs}
