"""A job's share on this shard: its slices of the weights, and the one place where they change."""

import math
import struct
import threading
import time
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import structlog
import torch
from torch import Tensor

from shoal.consistency import single_writer, sync
from shoal.consistency.verdict import Outcome
from shoal.core.errors import (
    Corrupt,
    FencedOff,
    InvalidInput,
    Missed,
    NotFound,
    Refused,
    Stale,
    TrainingFailed,
    Unavailable,
)
from shoal.core.facts import DatasetFacts
from shoal.core.layout import Layout, Slice, flatten, partition
from shoal.core.plan import Plan
from shoal.core.tree import Block
from shoal.jobspec.reading import load_spec
from shoal.jobspec.spec import JobSpec
from shoal.metrics.parameter_server import ParameterServerMetrics
from shoal.models.catalog import build_model
from shoal.models.integers import IntegerLayout
from shoal.models.state import layers_of
from shoal.optim.catalog import needs_whole_layers, slots_of
from shoal.optim.clipping import clip_scale
from shoal.optim.schedules import factor
from shoal.process.crashing import crash_point
from shoal.ps.initial import InitialWeights
from shoal.ps.reduction import Reduction
from shoal.ps.snapshot import Capture, Continuation, EvaluationResult, Part
from shoal.ps.weights import Room, Weights, is_finite
from shoal.wire.exchange.base import Session
from shoal.wire.exchange.frames import Frame, Kind
from shoal.wire.exchange.memory import ELEMENT_BYTES, FloatArray

NON_FINITE_LIMIT = 3  # refused pushes in a row that end the attempt: units are pure, a fourth would be the same
LOSSES_TOLD = 100_000  # steps in one progress report: far below a message's limit; the next report goes on
_MISSING_SHOWN = 4096  # ranks named in one MISSING frame


class _Contribution(NamedTuple):
    """A block's sum: the gradient (a session's buffer), the loss, and rank 0's integer buffers."""

    gradient: Tensor
    loss: float
    integers: bytes


def _add_contributions(left: _Contribution, right: _Contribution) -> _Contribution:
    left.gradient.add_(right.gradient)
    return _Contribution(left.gradient, left.loss + right.loss, left.integers)  # rank 0 is on the left


class _HeldOut(NamedTuple):
    correct: int
    samples: int
    loss: float  # sum


def _add_heldout(left: _HeldOut, right: _HeldOut) -> _HeldOut:
    return _HeldOut(left.correct + right.correct, left.samples + right.samples, left.loss + right.loss)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShareProgress:
    attempt: int
    version: int  # up to which this report tells
    total_steps: int  # 0: not known
    samples: int
    first_step: int  # of `losses`
    losses: tuple[float, ...]
    evaluations: tuple[EvaluationResult, ...]
    started: bool
    failure: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SlicePush:
    """What became of a unary push."""

    applied: bool
    reason: str
    version: int


@dataclass(kw_only=True, slots=True)
class _Due:
    """A copy that is to be taken when the share has committed `version`."""

    version: int
    room: Room
    missing: set[str]  # layers that have not come there
    integers: bytes = b""
    last_loss: float = math.nan
    evaluations: tuple[EvaluationResult, ...] = ()


class Share:
    """Decides who may change the weights and when, and tells everybody. Thread-safe.

    Frames come in through `receive` (see `wire.exchange.base.ShareEndpoint`), unary calls through `push_slice` and
    `pull_slice`. The lock is held while a step is applied: nothing else may happen to the weights then.
    """

    def __init__(
        self,
        *,
        job_id: str,
        attempt: int,
        spec_json: str,
        index: int,
        shards: int,
        metrics: ParameterServerMetrics,
        restored: Capture | None = None,
        initial: InitialWeights | None = None,
        reserve: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Begins at version 0, with `initial` weights if given, or goes on from `restored`. Raises InvalidInput for a
        spec that makes no model, Corrupt for a snapshot of another model. `reserve` is told how many bytes the weights
        and the optimizer's state will take, before they do, and may refuse.
        """
        self._reserve = reserve
        self.job_id = job_id
        self.attempt = attempt
        self.made_in_attempt = attempt
        self.newest_call = (0, 0)  # of the master that asked for this share: its epoch, its count
        self.spec_json = spec_json
        self.index = index
        self.shards = shards
        self.spec: JobSpec = load_spec(spec_json)
        self.facts: DatasetFacts | None = None
        self._metrics = metrics
        self._figures = {name: metrics.of_transport(name) for name in ("shared_memory", "grpc", "unary")}
        self._log = structlog.get_logger().bind(job_id=job_id)
        self._changed = threading.Condition(threading.RLock())
        self._sessions: set[Session] = set()
        self._fenced: set[str] = set()  # incarnations that the master has counted as dead
        self._dropped = ""
        self._failure = ""
        # Known once the model is (`_build`):
        self._layout: Layout | None = None
        self._plan: Plan | None = None
        self._losses = array("d")  # of every step; on the lead shard only
        self._last_loss = math.nan
        self._evaluations: dict[int, EvaluationResult] = {}
        self._heldout: dict[int, Reduction[_HeldOut]] = {}
        self.version = 0
        self.touched = 0
        self._initial = initial
        self._snapshot_runs = False
        self._due: _Due | None = None
        if restored is not None:
            with self._changed:
                self._build(restored.facts, has_weights=True)
                try:
                    self._continue(restored)
                except Corrupt:
                    self._metrics.weight_bytes.dec(self._weights.size)
                    self._metrics.forget_job(job_id)
                    raise
        elif self.spec.trainers == "external":
            self.register(None)

    # -- the model ------------------------------------------------------------------------------------------------

    def register(self, facts: DatasetFacts | None) -> None:
        """The first trainer says what the dataset is, and the share comes into being; the others must agree.

        Raises InvalidInput, Exhausted if there is no memory for it, or NotFound if it has been dropped meanwhile.
        """
        with self._changed:
            self.check_attempt(0)
            if self._layout is None:
                self._build(facts, has_weights=self._initial is not None)
            elif facts is not None and facts != self.facts:
                raise InvalidInput(
                    "this worker's dataset is not the one that the job's other workers see:"
                    f" {_difference(facts, self.facts)}",
                    field="data.source",
                )

    def _build(self, facts: DatasetFacts | None, *, has_weights: bool) -> None:
        spec = self.spec
        input_shape = facts.input_shape if facts else spec.model.input_shape
        classes = facts.classes if facts else spec.model.classes
        if input_shape is None or classes is None:
            raise InvalidInput(
                "a job with external trainers has no dataset here: give model.input_shape and model.classes",
                field="model.input_shape",
            )
        model = build_model(
            spec.model, input_shape=input_shape, classes=classes, seed=spec.training.seed, outline=has_weights
        )
        parameters, buffers = layers_of(model)
        assert spec.optimizer is not None
        layers = flatten(parameters=parameters, buffers=buffers)
        layout = partition(layers, shards=self.shards, whole=needs_whole_layers(spec.optimizer))
        self.held = layout.shares[self.index]
        self.length = self.held.length
        self.is_lead = bool(layout.active) and layout.active[0].index == self.index
        self._reserve(ELEMENT_BYTES * self.length * (2 + slots_of(spec.optimizer)))
        self._weights = Weights(model=model, held=self.held, optimizer=spec.optimizer)
        self._integer_layout = IntegerLayout(model)
        self._integers = bytes(self._integer_layout.size) if has_weights else self._integer_layout.capture(model)
        if facts is not None:
            self._plan = spec.plan(facts)
        self._total_steps = self._plan.total_steps if self._plan else (spec.training.steps or 0)
        if self._total_steps == 0 and spec.schedule.name == "cosine":
            raise InvalidInput("a cosine schedule needs training.steps where there is no dataset", field="schedule")
        self.layer_versions = dict.fromkeys(self.held.by_name, 0)
        self.facts = facts
        self._start_reduction()
        self._non_finite = 0
        self._awaiting_norm: _Contribution | None = None
        self._squares: tuple[int, bytes] | None = None  # of the last step that was complete here: it, and its SQUARES
        if self._initial is not None:
            values, self._integers = self._initial.read(
                pieces=self.held.slices, layers=layout.layers, integers=self._integer_layout
            )
            self._weights.load(values)
        self._layout = layout
        self._metrics.weight_bytes.inc(self._weights.size)
        self._version_metric = self._metrics.version.labels(self.job_id)
        self._version_metric.set(0)
        self._log.info("share_built", shard=self.index, elements=self.length, layers=len(self.held.slices))
        self._changed.notify_all()

    @property
    def layout(self) -> Layout:
        if self._layout is None:
            raise Refused(f"job {self.job_id}: no worker has registered here yet")
        return self._layout

    @property
    def started(self) -> bool:
        """Is the model built?"""
        return self._layout is not None

    @property
    def weight_bytes(self) -> int:
        """Of both versions; 0 before the model is known."""
        return self._weights.size if self._layout is not None else 0

    def _start_reduction(self) -> None:
        self._reduction: Reduction[_Contribution] = Reduction(
            world_size=self.spec.training.world_size, add=_add_contributions
        )

    # -- trainers: ShareEndpoint ----------------------------------------------------------------------------------

    def attach(self, session: Session) -> None:
        with self._changed:
            self.check_attempt(session.hello.attempt)
            self.check_incarnation(session.hello.incarnation)
            if self.spec.trainers == "external":
                raise Refused(f"job {self.job_id} is trained by an external client: use the unary calls")
            self._sessions.add(session)
            self._metrics.trainers.labels(session.transport).inc()
            self._tell_state(session)

    def _tell_state(self, session: Session) -> None:
        """Where the share is; with the evaluation of this version, which decides whether training goes on."""
        session.version_changed()
        if result := self._evaluations.get(self.version):
            session.send(_evaluation_frame(self.attempt, result))

    def detach(self, session: Session) -> None:
        with self._changed:
            if session in self._sessions:
                self._sessions.discard(session)
                self._metrics.trainers.labels(session.transport).dec()
                self._weights.forget_buffers()

    def wants(self, step: int, block: Block) -> bool:
        with self._changed:
            return step == self.version and not self._awaiting_norm and not self._reduction.cover.covers(block)

    def weights(self, version: int) -> FloatArray:
        return self._weights.arrays[version % 2]

    def weights_descriptor(self, parity: int) -> int:
        return self._weights.descriptors[parity]

    def weights_sent(self, session: Session, seconds: float) -> None:
        sent = 0 if session.transport == "shared_memory" else self.length * ELEMENT_BYTES
        self._figures[session.transport].pulled(sent, seconds)

    def version_frame(self) -> Frame:
        with self._changed:
            return Frame(
                Kind.VERSION, attempt=self.attempt, step=self.version, value=self._last_loss, payload=self._integers
            )

    def receive(self, session: Session, frame: Frame) -> None:
        with self._changed:
            self.check_attempt(frame.attempt)
            self.check_incarnation(session.hello.incarnation)
            match frame.kind:
                case Kind.PUSHED:
                    self._receive_push(session, frame)
                case Kind.EVALUATED:
                    self._receive_evaluation(session, frame)
                case Kind.ASK_MISSING:
                    self._answer_missing(session, frame)
                case Kind.NORM:
                    self._receive_norm(frame)
                case Kind.PULL:
                    if self.version - 1 <= frame.step <= self.version:
                        session.send(frame)
                    else:
                        session.version_changed()
                case _:
                    raise Corrupt(f"a trainer does not send {frame.kind.name}")

    def _receive_push(self, session: Session, frame: Frame) -> None:
        block = frame.block
        verdict = sync.judge_push(step=frame.step, block=block, version=self.version, cover=self._reduction.cover)
        if verdict.outcome is Outcome.DUPLICATE:
            self._metrics.pushes.labels(session.transport, "duplicate").inc()
            if frame.step < self.version:
                session.version_changed()
            return
        if verdict.outcome is Outcome.REJECT:
            self._refuse(session, frame, verdict.reason, again=False)
            return
        began = time.perf_counter()
        gradient = torch.from_numpy(session.slot(frame.slot))
        if not is_finite(gradient) or not math.isfinite(frame.value):
            self._non_finite += 1
            reason = f"block {block} of step {frame.step} has values that are not finite (loss {frame.value})"
            if self._non_finite >= NON_FINITE_LIMIT:
                self._fail(f"{reason}; {self._non_finite} times in a row: lower the learning rate or check the data")
            self._refuse(session, frame, reason, again=True)
            return
        if len(frame.payload) != (len(self._integers) if block.start == 0 else 0):
            raise Corrupt(f"{len(frame.payload)} bytes of integer buffers, not {len(self._integers)}")
        self._non_finite = 0
        total = self._reduction.insert(block, _Contribution(gradient, frame.value, bytes(frame.payload)))
        self._figures[session.transport].pushed(self.length * ELEMENT_BYTES, time.perf_counter() - began)
        if total is not None:
            self._step_complete(total)

    def _count_refusal(self, transport: str, reason: str) -> None:
        self._metrics.pushes.labels(transport, "refused").inc()
        self._metrics.pushes_refused.labels(reason).inc()

    def _refuse(self, session: Session, frame: Frame, reason: str, *, again: bool) -> None:
        self._count_refusal(session.transport, "not_finite" if again else "not_due")
        self._log.warning("push_refused", reason=reason, worker_id=session.hello.worker_id)
        session.send(
            Frame(
                Kind.REFUSED,
                attempt=self.attempt,
                step=frame.step,
                start=frame.start,
                size=frame.size,
                correct=int(again),
                payload=reason.encode(),
            )
        )

    def _step_complete(self, total: _Contribution) -> None:
        if self.spec.training.clip_norm is None:
            self._apply(total)
            return
        self._awaiting_norm = total
        squares = self._weights.squares(total.gradient)
        self._squares = (self.version, struct.pack(f"<{len(squares)}d", *squares))
        for session in list(self._sessions):
            self._send_squares(session, self.version)

    def _send_squares(self, session: Session, of_step: int) -> None:
        """Also those of the step before this version: another shard may still wait for its norm."""
        if self._squares is not None and self._squares[0] == of_step:
            session.send(Frame(Kind.SQUARES, attempt=self.attempt, step=of_step, payload=self._squares[1]))

    def _receive_norm(self, frame: Frame) -> None:
        """Every trainer that has all shards' squares sends the whole model's; they are equal, the first one counts."""
        clip_norm = self.spec.training.clip_norm
        if self._awaiting_norm is None or frame.step != self.version or clip_norm is None:
            return
        total, self._awaiting_norm = self._awaiting_norm, None
        scale = clip_scale(frame.value, clip_norm)
        if scale < 1.0:
            self._weights.scale(total.gradient, scale)
        self._apply(total)

    def _apply(self, total: _Contribution) -> None:
        crash_point("update.before_apply")
        began = time.perf_counter()
        version = self.version
        self.touched = version + 1
        self._weights.advance(version, total.gradient, self._learning_rate(version))
        self._integers = total.integers
        self._last_loss = total.loss
        if self.is_lead:
            self._losses.append(total.loss)
        self.version = version + 1
        self._start_reduction()
        self._heldout = {at: sums for at, sums in self._heldout.items() if at > version}
        crash_point("update.applied")
        for session in list(self._sessions):
            session.version_changed()
        crash_point("update.acknowledged")
        self._count_update(time.perf_counter() - began)
        if self._due is not None:
            self._copy_what_is_due()
        self._changed.notify_all()

    def _count_update(self, seconds: float) -> None:
        self._metrics.updates.inc()
        self._metrics.update_seconds.observe(seconds)
        self._version_metric.set(self.version)

    def _learning_rate(self, step: int) -> float:
        assert self.spec.optimizer is not None
        assert self.spec.optimizer.learning_rate is not None
        return self.spec.optimizer.learning_rate * factor(self.spec.schedule, step=step, total_steps=self._total_steps)

    def _receive_evaluation(self, session: Session, frame: Frame) -> None:
        if frame.step in self._evaluations:
            session.send(_evaluation_frame(self.attempt, self._evaluations[frame.step]))
            return
        if frame.step != self.version:
            session.version_changed()
            return
        sums = self._heldout.setdefault(
            frame.step, Reduction(world_size=self.spec.training.world_size, add=_add_heldout)
        )
        verdict = sync.judge_evaluation(version=frame.step, block=frame.block, cover=sums.cover)
        if verdict.outcome is not Outcome.TAKE:
            return
        total = sums.insert(frame.block, _HeldOut(frame.correct, frame.samples, frame.value))
        if total is None:
            return
        mean = total.loss / total.samples if total.samples else math.nan
        result = EvaluationResult(version=frame.step, correct=total.correct, samples=total.samples, loss=mean)
        self._evaluations[frame.step] = result
        for other in list(self._sessions):
            other.send(_evaluation_frame(self.attempt, result))
        self._changed.notify_all()

    def _answer_missing(self, session: Session, frame: Frame) -> None:
        """What a trainer that waits for `step` needs to know: the state, or whose work is missing."""
        evaluation = bool(frame.correct)
        has_gone_on = frame.step < self.version or (evaluation and frame.step in self._evaluations)
        if has_gone_on:
            self._tell_state(session)
        if has_gone_on or self._awaiting_norm is not None:
            self._send_squares(session, frame.step)
            return
        if evaluation:
            sums = self._heldout.get(frame.step)
            missing: Sequence[int] = sums.cover.missing() if sums else range(self.spec.training.world_size)
        else:
            missing = self._reduction.cover.missing()
        payload = np.array(missing[:_MISSING_SHOWN], dtype="<u4").tobytes()
        session.send(Frame(Kind.MISSING, attempt=self.attempt, step=frame.step, correct=frame.correct, payload=payload))

    # -- unary calls: a single writer -------------------------------------------------------------------------------

    def push_slice(self, *, layer_name: str, data: bytes, dtype: str, version: int) -> SlicePush:
        """Applies one layer's gradient from an external client. Raises NotFound, InvalidInput or Refused; a push at
        the wrong version is answered, not raised.
        """
        with self._changed:
            self.check_attempt(0)
            piece = self._slice(layer_name)
            if self.spec.trainers != "external":
                raise Refused(
                    f"job {self.job_id} is trained by workers: only a job with 'trainers: external' takes pushes"
                )
            if dtype not in ("", "float32"):
                self._count_refusal("unary", "malformed")
                raise InvalidInput(f"dtype '{dtype}' is not taken; use float32", field="dtype")
            began = time.perf_counter()
            if len(data) != piece.elements * ELEMENT_BYTES:
                self._count_refusal("unary", "malformed")
                raise InvalidInput(
                    f"gradient_data of layer {layer_name} has {len(data)} bytes; this shard's part is elements"
                    f" [{piece.first}, {piece.last}) = {piece.elements * ELEMENT_BYTES} bytes of float32",
                    field="gradient_data",
                )
            held = self.layer_versions[layer_name]
            verdict = single_writer.judge_push(pushed=version, version=held)
            if verdict.outcome is not Outcome.TAKE:
                self._count_refusal("unary", "wrong_version")
                return SlicePush(applied=False, reason=verdict.reason, version=held)
            gradient = torch.from_numpy(np.frombuffer(data, dtype="<f4").copy())
            if not is_finite(gradient):
                self._count_refusal("unary", "not_finite")
                raise InvalidInput(
                    f"gradient_data of layer {layer_name} has values that are not finite", field="gradient_data"
                )
            updating = time.perf_counter()
            self._weights.advance_slice(piece, held, gradient, self._learning_rate(held))
            self.layer_versions[layer_name] = held + 1
            self.version = self.touched = min(self.layer_versions.values())
            self._count_update(time.perf_counter() - updating)
            if self._due is not None:
                self._copy_what_is_due(piece)
            self._changed.notify_all()
            self._figures["unary"].pushed(len(data), time.perf_counter() - began)
            return SlicePush(applied=True, reason="applied", version=held + 1)

    def pull_slice(self, layer_name: str) -> tuple[bytes, int]:
        """This shard's part of a layer, little-endian float32, and its version."""
        began = time.perf_counter()
        with self._changed:
            piece = self._slice(layer_name)
            version = self.layer_version(layer_name)
            data = self._weights.slice_at(piece, version).numpy().astype("<f4", copy=False).tobytes()
        self._figures["unary"].pulled(len(data), time.perf_counter() - began)
        return data, version

    def count_current_pull(self) -> None:
        """A caller asked for what it held already."""
        self._metrics.pulls.labels("unary", "current").inc()

    def layer_version(self, layer_name: str) -> int:
        with self._changed:
            self._slice(layer_name)
            return self.layer_versions[layer_name] if self.spec.trainers == "external" else self.version

    def _slice(self, layer_name: str) -> Slice:
        piece = self.layout.shares[self.index].by_name.get(layer_name)
        if piece is None:
            names = [layer.name for layer in self.layout.layers]
            where = "lies on another shard" if layer_name in names else f"is unknown; the job has {', '.join(names)}"
            raise NotFound(f"layer '{layer_name}' of job {self.job_id} {where}")
        return piece

    # -- the master -------------------------------------------------------------------------------------------------

    def fence(self, attempt: int) -> None:
        """A higher attempt takes over: the trainers of lower ones are told to stop, and their sums are forgotten."""
        with self._changed:
            if attempt < self.attempt:
                raise Stale(f"attempt {attempt} of job {self.job_id} is over: {self.attempt} runs")
            if attempt == self.attempt:
                return
            self.attempt = attempt
            self._failure = ""
            if self._layout is not None:
                self._non_finite = 0
                self._awaiting_norm = None
                self._heldout.clear()
                self._start_reduction()
            self._due = None
            self._end_sessions(f"attempt {attempt} of job {self.job_id} has begun")
            self._changed.notify_all()

    def fence_off(self, *, attempt: int, incarnations: Collection[str], worker_ids: Collection[str]) -> int:
        """Lets nothing of these incarnations count any more; returns how many of their links have been cut.

        What they have pushed stays: a unit is the same, whoever computed it. `worker_ids` stand for the incarnations
        that are attached under these names.
        """
        with self._changed:
            self.check_attempt(attempt)
            named = {session.hello.incarnation for session in self._sessions if session.hello.worker_id in worker_ids}
            self._fenced |= (named | set(incarnations)) - {""}
            cut = [session for session in self._sessions if session.hello.incarnation in self._fenced]
            for session in cut:
                reason = _fenced_off(session.hello.incarnation, self.job_id)
                session.send(Frame(Kind.FENCED, attempt=self.attempt, correct=1, payload=reason.encode()))
                self.detach(session)
                session.end()
            return len(cut)

    def check_incarnation(self, incarnation: str) -> None:
        """Raises FencedOff."""
        if incarnation in self._fenced:
            self._metrics.stale.labels("incarnation").inc()
            raise FencedOff(_fenced_off(incarnation, self.job_id))

    def drop(self, reason: str) -> None:
        with self._changed:
            self._dropped = reason
            self._due = None
            self._end_sessions(reason)
            self._changed.notify_all()

    def _end_sessions(self, reason: str) -> None:
        for session in list(self._sessions):
            session.send(Frame(Kind.FENCED, attempt=self.attempt, payload=reason.encode()))
            self.detach(session)

    def progress(self, *, from_version: int, known_evaluations: int, wait_seconds: float) -> ShareProgress:
        """Waits until there is something newer than the caller knows, at most `wait_seconds`."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self.version > from_version
                    or len(self._evaluations) > known_evaluations
                    or self._failure
                    or self._dropped
                ),
                timeout=wait_seconds,
            )
            if self._dropped:
                raise NotFound(f"job {self.job_id} is no longer here: {self._dropped}")
            plan = self._plan
            version = min(self.version, from_version + LOSSES_TOLD)
            return ShareProgress(
                attempt=self.attempt,
                version=version,
                total_steps=self._total_steps if self._layout else 0,
                samples=plan.samples_before(version) if plan else 0,
                first_step=from_version,
                losses=tuple(self._losses[from_version:version]),
                evaluations=tuple(self._evaluations.values()),
                started=self._layout is not None,
                failure=self._failure,
            )

    # -- snapshots ------------------------------------------------------------------------------------------------

    @contextmanager
    def snapshot_turn(self, gone: Callable[[], bool]) -> Iterator[None]:
        """Around the taking and writing of one snapshot: the next one waits, so that there is one copy at a time.

        `gone` says that nobody waits for it any more; whoever makes it true calls `wake`. Raises Unavailable then.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._snapshot_runs or self._dropped or gone())
            self._check_waiter(gone)
            self._snapshot_runs = True
        try:
            yield
        finally:
            with self._changed:
                self._snapshot_runs = False
                self._changed.notify_all()

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    @property
    def active_shards(self) -> int:
        """How many hold a part of the model; 0 before it is known."""
        return len(self._layout.active) if self._layout is not None else 0

    @property
    def holds_nothing(self) -> bool:
        """More shards than pages: no trainer ever registers with the last ones. Or none has yet."""
        return self._layout is None or self.length == 0

    def capture(self) -> Capture:
        """The model's part at the current version, with what is needed to put the model together."""
        with self._changed:
            flat = torch.cat([self._weights.slice_at(p, self.layer_version(p.layer.name)) for p in self.held.slices])
            return self._model_part(flat, [0, *np.cumsum([p.elements for p in self.held.slices])], self.version)

    def capture_at(self, version: int, *, attempt: int, gone: Callable[[], bool]) -> Capture:
        """A copy of everything that the future depends on at exactly this version, taken as soon as it is committed:
        training stands still for one memcpy, and no longer. To be called in a `snapshot_turn`.

        Raises Missed if the share has come there before the copy was prepared, Stale or NotFound if the attempt or
        the share ends meanwhile, Unavailable if the caller is gone.
        """
        with self._changed:
            self.check_attempt(attempt)
            self._check_not_passed(version)
            make_room = self._weights.room()
        room = make_room()
        with self._changed:
            self.check_attempt(attempt)
            self._check_not_passed(version)
            due = self._due = _Due(version=version, room=room, missing=set(self.layer_versions))
            try:
                self._changed.wait_for(lambda: self._due is not due or self._failure or gone())
                if due.missing:
                    self.check_attempt(attempt)
                    self._check_waiter(gone)
            finally:
                if self._due is due:
                    self._due = None
        return self._captured(due)

    def _check_not_passed(self, version: int) -> None:
        reached = max(self.layer_versions.values()) if self.spec.trainers == "external" else self.version
        if reached >= version:
            raise Missed(f"job {self.job_id} has come to version {reached} already: {version} cannot be copied")

    def _check_waiter(self, gone: Callable[[], bool]) -> None:
        if self._dropped:
            raise NotFound(f"job {self.job_id} is no longer here: {self._dropped}")
        if gone():
            raise Unavailable(f"the master that asked for a snapshot of job {self.job_id} is gone")

    def _copy_what_is_due(self, piece: Slice | None = None) -> None:
        """After a commit: of the whole share, or of one slice where clients push layer by layer."""
        due = self._due
        assert due is not None
        began = time.perf_counter()
        if piece is None:
            if self.version != due.version:
                return
            self._weights.copy_into(due.room, due.version)
            due.missing.clear()
        elif self.layer_versions[piece.layer.name] == due.version:
            self._weights.copy_slice_into(due.room, piece, due.version)
            due.missing.discard(piece.layer.name)
        if not due.missing:
            due.integers, due.last_loss = self._integers, self._last_loss
            due.evaluations = tuple(self._evaluations.values())
            self._due = None
        self._metrics.snapshot_stall_seconds.observe(time.perf_counter() - began)

    def _captured(self, due: _Due) -> Capture:
        model = self._model_part(due.room.flat, [piece.offset for piece in self.held.slices], due.version, due.integers)
        return Capture(
            tensors=model.tensors,
            parts=model.parts,
            facts=model.facts,
            version=due.version,
            continuation=Continuation(
                shard=self.index,
                shards=self.shards,
                optimizer=self._weights.optimizer_of(due.room),
                integers=due.integers,
                last_loss=due.last_loss,
                losses=self._losses[: due.version],  # what has been appended stays as it is
                evaluations=due.evaluations,
            ),
        )

    def _model_part(self, flat: Tensor, offsets: Sequence[int], version: int, integers: bytes | None = None) -> Capture:
        """`offsets[i]` is where slice i lies in `flat`."""
        tensors: dict[str, Tensor] = {}
        parts: list[Part] = []
        for piece, offset in zip(self.held.slices, offsets, strict=False):
            name = piece.layer.name
            tensors[name] = flat[offset : offset + piece.elements]
            parts.append(Part(name=name, shape=piece.layer.shape, first=piece.first, last=piece.last))
        if self.is_lead:
            for name, tensor in self._integer_layout.tensors(self._integers if integers is None else integers).items():
                tensors[name] = tensor
                parts.append(Part(name=name, shape=tuple(tensor.shape)))
        return Capture(tensors=tensors, parts=tuple(parts), facts=self.facts, version=version)

    def _continue(self, restored: Capture) -> None:
        """Takes a snapshot's state. Raises Corrupt for one of another share or model."""
        own = restored.continuation
        assert own is not None
        what = f"the snapshot at version {restored.version} of job {self.job_id}"
        expected = {(piece.layer.name, piece.layer.shape, piece.first, piece.last) for piece in self.held.slices}
        have = {(part.name, part.shape, part.first, part.last) for part in restored.parts if part.last is not None}
        if (own.shard, own.shards) != (self.index, self.shards) or have != expected:
            raise Corrupt(f"{what} is that of shard {own.shard} of {own.shards}, or of another model")
        if len(own.integers) != len(self._integers):
            raise Corrupt(f"{what} has {len(own.integers)} bytes of integer buffers, not {len(self._integers)}")
        if self.is_lead and self.spec.trainers == "internal" and len(own.losses) != restored.version:
            raise Corrupt(f"{what} tells of {len(own.losses)} losses")
        self._weights.load(restored.tensors)
        fresh = self.layer_versions if restored.version == 0 else ()
        self._weights.load_optimizer(own.optimizer, fresh=fresh)
        self._integers = own.integers
        self._losses, self._last_loss = own.losses, own.last_loss
        self._evaluations = {result.version: result for result in own.evaluations}
        self.layer_versions = dict.fromkeys(self.held.by_name, restored.version)
        self.version = self.touched = restored.version
        self._version_metric.set(self.version)
        self._log.info("share_restored", shard=self.index, version=self.version)

    def check_attempt(self, attempt: int) -> None:
        """0 is a client without attempts. Raises NotFound, Stale or TrainingFailed."""
        if self._dropped:
            raise NotFound(f"job {self.job_id} is no longer here: {self._dropped}")
        if attempt not in (0, self.attempt):
            self._metrics.stale.labels("attempt").inc()
            raise Stale(f"attempt {attempt} of job {self.job_id} is over: {self.attempt} runs")
        if self._failure:
            raise TrainingFailed(self._failure)

    def _fail(self, reason: str) -> None:
        self._failure = reason
        self._log.error("attempt_failed", reason=reason)
        self._end_sessions(reason)
        self._changed.notify_all()


def _evaluation_frame(attempt: int, result: EvaluationResult) -> Frame:
    return Frame(
        Kind.EVALUATION,
        attempt=attempt,
        step=result.version,
        value=result.loss,
        correct=result.correct,
        samples=result.samples,
    )


def _fenced_off(incarnation: str, job_id: str) -> str:
    return f"incarnation {incarnation} has been counted as dead: nothing of it counts for job {job_id} any more"


def _difference(one: DatasetFacts, other: DatasetFacts | None) -> str:
    if other is None:
        return "the others have none"
    for name in ("train_samples", "heldout_samples", "input_shape", "classes", "fingerprint"):
        if getattr(one, name) != getattr(other, name):
            return f"{name} {getattr(one, name)} here, {getattr(other, name)} there"
    return "equal"
