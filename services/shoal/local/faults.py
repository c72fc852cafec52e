"""Faults as values: what to do to which process at which step of a job, and whether it happened.

    plan = FaultPlan().kill_worker(1, at_step=40).add_worker(at_step=60)

Text, as for the command line's --fault: 'kill worker-1 at step 40', 'freeze worker-2 at step 60',
'freeze worker-2 at step 60 for 5 s', 'add worker at step 20'. The same is done to a parameter server by 'ps-1' for
'worker-1'; one that is killed starts again at once with its files, as its cluster would see to.
"""

import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol, Self

from shoal.core.errors import InvalidInput, NotFound

GRAMMAR = "'kill worker-N at step S', 'freeze worker-N at step S [for T s]' (or ps-N) or 'add worker at step S'"

_FORM = re.compile(
    r"(?:(?P<kind>kill|freeze)\s+(?P<role>worker|ps)-(?P<number>[1-9]\d*)|(?P<add>add)\s+worker)"
    r"\s+at\s+step\s+(?P<step>\d+)(?:\s+for\s+(?P<seconds>\d+(?:\.\d+)?)\s*s)?"
)


class FaultKind(StrEnum):
    KILL = "kill"
    FREEZE = "freeze"
    ADD = "add"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """`worker` or `server` is its number; `add` has neither. Without `for_seconds` a freeze lasts to the end."""

    kind: FaultKind
    at_step: int
    worker: int | None = None
    server: int | None = None
    for_seconds: float | None = None

    def __str__(self) -> str:
        who = self.member or "worker"
        duration = "" if self.for_seconds is None else f" for {self.for_seconds:g} s"
        return f"{self.kind} {who} at step {self.at_step}{duration}"

    @property
    def member(self) -> str:
        """The name of the process; '' for `add`."""
        if self.server is not None:
            return f"ps-{self.server}"
        return "" if self.worker is None else f"worker-{self.worker}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises InvalidInput with the grammar."""
        match = _FORM.fullmatch(" ".join(text.split()).lower())
        if match is None or (match["seconds"] and match["kind"] != "freeze"):
            raise InvalidInput(f"fault '{text}': {GRAMMAR} is expected", field="fault")
        return cls(
            kind=FaultKind(match["kind"] or match["add"]),
            at_step=int(match["step"]),
            worker=int(match["number"]) if match["role"] == "worker" else None,
            server=int(match["number"]) if match["role"] == "ps" else None,
            for_seconds=float(match["seconds"]) if match["seconds"] else None,
        )


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Faults in the order in which they were written."""

    faults: tuple[Fault, ...] = ()

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Self:
        return cls(tuple(map(Fault.parse, texts)))

    def kill_worker(self, worker: int, *, at_step: int) -> "FaultPlan":
        return self._with(Fault(kind=FaultKind.KILL, worker=worker, at_step=at_step))

    def freeze_worker(self, worker: int, *, at_step: int, for_seconds: float | None = None) -> "FaultPlan":
        return self._with(Fault(kind=FaultKind.FREEZE, worker=worker, at_step=at_step, for_seconds=for_seconds))

    def kill_server(self, server: int, *, at_step: int) -> "FaultPlan":
        """It starts again at once, with its files."""
        return self._with(Fault(kind=FaultKind.KILL, server=server, at_step=at_step))

    def freeze_server(self, server: int, *, at_step: int, for_seconds: float | None = None) -> "FaultPlan":
        return self._with(Fault(kind=FaultKind.FREEZE, server=server, at_step=at_step, for_seconds=for_seconds))

    def add_worker(self, *, at_step: int) -> "FaultPlan":
        return self._with(Fault(kind=FaultKind.ADD, at_step=at_step))

    def check(self, *, workers: int, shards: int) -> None:
        """Raises InvalidInput for a process that such a cluster, with the workers that the plan adds, will not have."""
        last_worker = workers + sum(fault.kind is FaultKind.ADD for fault in self.faults)
        for fault in self.faults:
            for role, number, last in (("worker", fault.worker, last_worker), ("ps", fault.server, shards)):
                if number is not None and number > last:
                    raise InvalidInput(
                        f"fault '{fault}': there will be no {role}-{number}; the last one is {role}-{last}",
                        field="fault",
                    )

    def _with(self, fault: Fault) -> "FaultPlan":
        return replace(self, faults=(*self.faults, fault))


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultReport:
    """`happened_at_step` is the job's step when it was done; None: it was not, and `why`."""

    fault: Fault
    happened_at_step: int | None
    why: str = ""

    @property
    def happened(self) -> bool:
        return self.happened_at_step is not None


class Disturbed(Protocol):
    """What faults are put on: `shoal.local.Cluster`."""

    def kill_worker(self, name: str) -> None: ...
    def freeze_worker(self, name: str) -> None: ...
    def thaw_worker(self, name: str) -> None: ...
    def add_worker(self, *, wait: bool = ...) -> str: ...
    def kill_server(self, name: str) -> None: ...
    def restart_server(self, name: str, *, wait: bool = ...) -> None: ...
    def freeze_server(self, name: str) -> None: ...
    def thaw_server(self, name: str) -> None: ...


class FaultRun:
    """Carries out a plan while a job runs: tell it of each step by `observe`, then ask `reports`.

    To be used from the thread that started the cluster.
    """

    def __init__(self, plan: FaultPlan, cluster: Disturbed) -> None:
        self._plan = plan
        self._cluster = cluster
        self._reports: dict[int, FaultReport] = {}
        self._thaws: list[threading.Timer] = []

    def observe(self, *, step: int, ended: bool) -> tuple[FaultReport, ...]:
        """Does what is due at this committed step; returns what has been done now."""
        if ended:
            return ()
        due = [
            (index, fault)
            for index, fault in enumerate(self._plan.faults)
            if index not in self._reports and step >= fault.at_step
        ]
        for index, fault in due:
            self._reports[index] = self._do(fault, step)
        return tuple(self._reports[index] for index, _ in due)

    def reports(self) -> tuple[FaultReport, ...]:
        """One for each fault of the plan. To be called at the end."""
        for timer in self._thaws:
            timer.cancel()
        never = "the job had ended before"
        return tuple(
            self._reports.get(index) or FaultReport(fault=fault, happened_at_step=None, why=never)
            for index, fault in enumerate(self._plan.faults)
        )

    def _do(self, fault: Fault, step: int) -> FaultReport:
        name, of_server = fault.member, fault.server is not None
        try:
            match fault.kind:
                case FaultKind.KILL if of_server:
                    self._cluster.kill_server(name)
                    self._cluster.restart_server(name, wait=False)
                case FaultKind.KILL:
                    self._cluster.kill_worker(name)
                case FaultKind.FREEZE:
                    (self._cluster.freeze_server if of_server else self._cluster.freeze_worker)(name)
                    if fault.for_seconds is not None:
                        self._thaw_later(name, fault.for_seconds, of_server=of_server)
                case FaultKind.ADD:
                    self._cluster.add_worker(wait=False)
        except NotFound as error:
            return FaultReport(fault=fault, happened_at_step=None, why=str(error))
        return FaultReport(fault=fault, happened_at_step=step)

    def _thaw_later(self, name: str, seconds: float, *, of_server: bool) -> None:
        def thaw() -> None:
            try:
                (self._cluster.thaw_server if of_server else self._cluster.thaw_worker)(name)
            except NotFound:
                return  # killed meanwhile

        timer = threading.Timer(seconds, thaw)
        timer.name = f"thaw-{name}"
        timer.daemon = True
        timer.start()
        self._thaws.append(timer)
