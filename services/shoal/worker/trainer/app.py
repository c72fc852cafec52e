"""The composition root of a trainer."""

import fcntl
import math
import os
import select
import sys
import termios
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import structlog
import torch

from shoal.core.errors import (
    Corrupt,
    FencedOff,
    Forbidden,
    InvalidInput,
    NotFound,
    ShoalError,
    Stale,
    TrainingFailed,
)
from shoal.core.job import Grant, Results
from shoal.core.layout import flatten, partition
from shoal.data.catalog import open_dataset
from shoal.jobspec.reading import load_spec
from shoal.models.catalog import build_model
from shoal.models.state import layers_of
from shoal.optim.catalog import needs_whole_layers
from shoal.process.clock import awake_or_asleep_seconds
from shoal.process.logs import configure_logs
from shoal.worker.control import (
    DATA_ROOTS_VARIABLE,
    REPORT_FD_VARIABLE,
    Advanced,
    Assignment,
    Beat,
    Failed,
    Fenced,
    Finished,
    Message,
    Pushed,
    Ready,
    from_line,
    to_line,
)
from shoal.worker.trainer.attach import attach
from shoal.worker.trainer.gradients import Gradients
from shoal.worker.trainer.loop import TrainingLoop
from shoal.worker.trainer.parameters import Parameters
from shoal.worker.trainer.replica import Replica

_REPORT_SECONDS = 0.2  # at most this often
_TIMES_TOLD = 1000  # of each kind in one report: with the last words, less than the 64 KiB that a pipe holds
_HOLD = 0.75  # of a lease without a beat of the agent's: then a trainer holds still


class Control:
    """Both pipes to the agent. An agent that is gone takes its trainer along."""

    def __init__(self, inbound: int, outbound: int) -> None:
        self.inbound = inbound
        self._outbound = outbound
        self._rest = b""
        self._heard_at = awake_or_asleep_seconds()
        self._lease_seconds = math.inf  # until the agent has said it
        os.set_blocking(inbound, False)

    def tell(self, message: Message) -> None:
        """Waits for room in the pipe. What may be told later is told once `has_been_read`."""
        os.write(self._outbound, to_line(message))

    @property
    def has_been_read(self) -> bool:
        """Has the agent taken all that it was told? One that is frozen does not, and a full pipe stops who writes."""
        unread = array("i", [0])
        fcntl.ioctl(self._outbound, termios.FIONREAD, unread)
        return unread[0] == 0

    def assignments(self) -> list[Assignment]:
        """Those that have come; never waits. Exits when the agent has closed the pipe."""
        lines: list[bytes] = []
        while True:
            try:
                data = os.read(self.inbound, 1 << 16)
            except BlockingIOError:
                break
            if not data:
                raise SystemExit(0)
            *complete, self._rest = (self._rest + data).split(b"\n")
            lines += complete
        messages = [from_line(line) for line in lines]
        for message in messages:
            self._heard_at = awake_or_asleep_seconds()
            if isinstance(message, Beat):
                self._lease_seconds = message.lease_seconds
        return [message for message in messages if isinstance(message, Assignment)]

    @property
    def attended(self) -> bool:
        """Has the agent been heard lately? If not, it may be frozen, and this worker's ranks be given away."""
        return awake_or_asleep_seconds() - self._heard_at < _HOLD * self._lease_seconds

    def first_assignment(self) -> Assignment:
        while True:
            select.select([self.inbound], [], [])
            if assignments := self.assignments():
                return assignments[-1]


class _Ranks:
    """The ranks of the newest grant."""

    def __init__(self, control: Control, grant: Grant) -> None:
        self._control = control
        self._grant = grant

    def may_work(self) -> bool:
        """Not while the agent is silent; the shards are still heard, which say whether this worker counts as dead."""
        self._renew()
        return self._control.attended

    def take(self) -> range:
        self._renew()
        return self._grant.ranks

    def _renew(self) -> None:
        for assignment in self._control.assignments():
            if assignment.grant.attempt != self._grant.attempt:
                raise Stale(f"attempt {assignment.grant.attempt} has begun")
            if assignment.grant.revision > self._grant.revision:
                self._grant = assignment.grant


def run(inbound: int) -> int:
    """Trains one job; the exit code is 0 whenever the agent was told how it ended."""
    control = Control(inbound, int(os.environ[REPORT_FD_VARIABLE]))
    roots = tuple(Path(part) for part in os.environ.get(DATA_ROOTS_VARIABLE, "").split(os.pathsep) if part)
    control.tell(Ready())
    assignment = control.first_assignment()
    grant = assignment.grant
    configure_logs(
        log_format="console", level="info", role="trainer", job_id=grant.job_id, worker_id=assignment.worker_id
    )
    try:
        ranks = _Ranks(control, grant)
        training = Training(assignment, roots=roots, take_ranks=ranks.take, may_work=ranks.may_work)
        reporter = Reporter(control, training)
        training.parameters.watch(control.inbound)
        training.loop.on_turn = reporter.turned
        results = training.run()
        reporter.tell_all(results.steps)
        control.tell(Finished(results=results))
    except Stale as error:
        control.tell(Fenced(reason=str(error), incarnation=isinstance(error, FencedOff)))
    except (InvalidInput, NotFound, Forbidden, Corrupt, TrainingFailed) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  # the job's log
        control.tell(Failed(error=str(error), fatal=isinstance(error, InvalidInput | Forbidden)))
    except ShoalError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        control.tell(Failed(error=str(error), fatal=False))
    return 0


class Training:
    """One job's objects, built and joined. Raises what reading data, building the model or attaching raises."""

    def __init__(
        self,
        assignment: Assignment,
        *,
        roots: tuple[Path, ...],
        take_ranks: Callable[[], range],
        may_work: Callable[[], bool] = lambda: True,
    ) -> None:
        grant = assignment.grant
        spec = load_spec(grant.spec_json)
        torch.set_num_threads(spec.training.num_threads)
        torch.set_deterministic_debug_mode("error")  # as use_deterministic_algorithms, which imports torch's compiler
        # Nothing here reads memory before it is written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        if spec.resources.gpu and not torch.cuda.is_available():
            raise TrainingFailed("resources.gpu: torch on this worker sees no GPU; install its CUDA build there")
        device = torch.device("cuda" if spec.resources.gpu else "cpu")
        try:
            dataset = open_dataset(
                source=spec.data.source,
                label=spec.data.label,
                heldout_fraction=spec.data.heldout_fraction,
                split_seed=spec.data.split_seed,
                roots=roots,
            )
        except (NotFound, Corrupt) as error:  # the next attempt would find the same: no reason to try again
            raise InvalidInput(str(error), field="data.source") from error
        facts = dataset.facts
        model = build_model(spec.model, input_shape=facts.input_shape, classes=facts.classes, seed=spec.training.seed)
        parameter_layers, buffer_layers = layers_of(model)
        assert spec.optimizer is not None
        layout = partition(
            flatten(parameters=parameter_layers, buffers=buffer_layers),
            shards=len(grant.shards),
            whole=needs_whole_layers(spec.optimizer),
        )
        links = attach(
            grant=grant,
            worker_id=assignment.worker_id,
            incarnation=assignment.incarnation,
            facts=facts,
            layout=layout,
            transport=spec.resources.transport,
        )
        plan = spec.plan(facts)
        replica = Replica(model, layout, device=device)
        self.parameters = Parameters(layout=layout, links=links, attempt=grant.attempt)
        self.gradients = Gradients(
            replica=replica,
            plan=plan,
            seed=spec.training.seed,
            train=dataset.train,
            heldout=dataset.heldout,
            length=layout.length,
        )
        self.loop = TrainingLoop(
            plan=plan,
            parameters=self.parameters,
            gradients=self.gradients,
            replica=replica,
            target_accuracy=spec.training.target_accuracy,
            take_ranks=take_ranks,
            may_work=may_work,
        )
        structlog.get_logger().info(
            "training", ranks=f"{grant.first_rank}..{grant.last_rank - 1}", steps=plan.total_steps, shards=len(links)
        )

    def run(self) -> Results:
        try:
            return self.loop.run()
        finally:
            self.parameters.close()


class Reporter:
    """Progress for the agent's heartbeats: not at every step, and never so much that the pipe is full."""

    def __init__(self, control: Control, training: Training) -> None:
        self._control = control
        self._training = training
        self._next = 0.0

    def turned(self, version: int) -> None:
        now = time.monotonic()
        if now < self._next or not self._control.has_been_read:
            return
        self._next = now if self._tell_some(version) else now + _REPORT_SECONDS

    def tell_all(self, version: int) -> None:
        while self._tell_some(version):
            pass

    def _tell_some(self, version: int) -> bool:
        """What has come since the last time; True if that is not all of it."""
        training = self._training
        parameters, gradients, loop = training.parameters, training.gradients, training.loop
        self._control.tell(
            Advanced(
                step=version,
                seconds_per_unit=gradients.seconds_per_unit,
                unit_seconds=tuple(gradients.unit_seconds[:_TIMES_TOLD]),
                wait_seconds=tuple(loop.wait_seconds[:_TIMES_TOLD]),
                pushed=tuple(
                    Pushed(transport=transport, blocks=blocks, size=parameters.pushed_bytes[transport])
                    for transport, blocks in parameters.pushed.items()
                ),
            )
        )
        for times in (gradients.unit_seconds, loop.wait_seconds):
            del times[:_TIMES_TOLD]
        for past in (parameters.pushed, parameters.pushed_bytes):
            past.clear()
        return bool(gradients.unit_seconds or loop.wait_seconds)
