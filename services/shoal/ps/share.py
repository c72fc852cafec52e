"""A job's share on this shard: its slices of the weights, and the one place where they change."""

import math
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import structlog
import torch
from torch import Tensor

from shoal.consistency import single_writer, sync
from shoal.consistency.verdict import Outcome
from shoal.core.errors import Corrupt, InvalidInput, NotFound, Refused, Stale, TrainingFailed
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
from shoal.optim.catalog import needs_whole_layers
from shoal.optim.clipping import clip_scale
from shoal.optim.schedules import factor
from shoal.ps.reduction import Reduction
from shoal.ps.snapshot import Capture, Part
from shoal.ps.weights import Weights, is_finite
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
class EvaluationResult:
    version: int
    correct: int
    samples: int
    loss: float  # mean


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


class Share:
    """Decides who may change the weights and when, and tells everybody. Thread-safe.

    Frames come in through `receive` (see `wire.exchange.base.ShareEndpoint`), unary calls through `push_slice` and
    `pull_slice`. The lock is held while a step is applied: nothing else may happen to the weights then.
    """

    def __init__(
        self, *, job_id: str, attempt: int, spec_json: str, index: int, shards: int, metrics: ParameterServerMetrics
    ) -> None:
        self.job_id = job_id
        self.attempt = attempt
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
        self._dropped = ""
        self._failure = ""
        # Known once the model is (`_build`):
        self._layout: Layout | None = None
        self._plan: Plan | None = None
        self._losses: list[float] = []
        self._evaluations: dict[int, EvaluationResult] = {}
        self._heldout: dict[int, Reduction[_HeldOut]] = {}
        self.version = 0
        self.touched = 0
        if self.spec.trainers == "external":
            self.register(None)

    # -- the model ------------------------------------------------------------------------------------------------

    def register(self, facts: DatasetFacts | None) -> None:
        """The first trainer says what the dataset is, and the share comes into being; the others must agree.

        Raises InvalidInput, or NotFound if the share has been dropped meanwhile.
        """
        with self._changed:
            self.check_attempt(0)
            if self._layout is None:
                self._build(facts)
            elif facts is not None and facts != self.facts:
                raise InvalidInput(
                    "this worker's dataset is not the one that the job's other workers see:"
                    f" {_difference(facts, self.facts)}",
                    field="data.source",
                )

    def _build(self, facts: DatasetFacts | None) -> None:
        spec = self.spec
        input_shape = facts.input_shape if facts else spec.model.input_shape
        classes = facts.classes if facts else spec.model.classes
        if input_shape is None or classes is None:
            raise InvalidInput(
                "a job with external trainers has no dataset here: give model.input_shape and model.classes",
                field="model.input_shape",
            )
        model = build_model(spec.model, input_shape=input_shape, classes=classes, seed=spec.training.seed)
        parameters, buffers = layers_of(model)
        assert spec.optimizer is not None
        layers = flatten(parameters=parameters, buffers=buffers)
        layout = partition(layers, shards=self.shards, whole=needs_whole_layers(spec.optimizer))
        self.held = layout.shares[self.index]
        self.length = self.held.length
        self.is_lead = bool(layout.active) and layout.active[0].index == self.index
        self._weights = Weights(model=model, held=self.held, optimizer=spec.optimizer)
        self._integer_layout = IntegerLayout(model)
        self._integers = self._integer_layout.capture(model)
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
            loss = self._losses[-1] if self._losses else math.nan
            return Frame(Kind.VERSION, attempt=self.attempt, step=self.version, value=loss, payload=self._integers)

    def receive(self, session: Session, frame: Frame) -> None:
        with self._changed:
            self.check_attempt(frame.attempt)
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
        self._squares = self._weights.squares(total.gradient)
        for session in list(self._sessions):
            session.send(self._squares_frame())

    def _squares_frame(self) -> Frame:
        payload = struct.pack(f"<{len(self._squares)}d", *self._squares)
        return Frame(Kind.SQUARES, attempt=self.attempt, step=self.version, payload=payload)

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
        began = time.perf_counter()
        version = self.version
        self.touched = version + 1
        self._weights.advance(version, total.gradient, self._learning_rate(version))
        self._integers = total.integers
        self._losses.append(total.loss)
        self.version = version + 1
        self._start_reduction()
        self._heldout = {at: sums for at, sums in self._heldout.items() if at > version}
        for session in list(self._sessions):
            session.version_changed()
        self._count_update(time.perf_counter() - began)
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
        if frame.step < self.version or (evaluation and frame.step in self._evaluations):
            self._tell_state(session)
            return
        if self._awaiting_norm is not None:
            session.send(self._squares_frame())
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
            self._end_sessions(f"attempt {attempt} of job {self.job_id} has begun")

    def drop(self, reason: str) -> None:
        with self._changed:
            self._dropped = reason
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

    def capture(self) -> Capture:
        """A copy of the share's slices at the current version, with what is needed to put the model together."""
        with self._changed:
            tensors: dict[str, Tensor] = {}
            parts: list[Part] = []
            for piece in self.layout.shares[self.index].slices:
                name = piece.layer.name
                tensors[name] = self._weights.slice_at(piece, self.layer_version(name)).clone()
                parts.append(Part(name=name, shape=piece.layer.shape, first=piece.first, last=piece.last))
            if self.is_lead:
                for name, tensor in self._integer_layout.tensors(self._integers).items():
                    tensors[name] = tensor
                    parts.append(Part(name=name, shape=tuple(tensor.shape)))
            return Capture(tensors=tensors, parts=tuple(parts), facts=self.facts, version=self.version)

    def check_attempt(self, attempt: int) -> None:
        """0 is a client without attempts. Raises NotFound, Stale or TrainingFailed."""
        if self._dropped:
            raise NotFound(f"job {self.job_id} is no longer here: {self._dropped}")
        if attempt not in (0, self.attempt):
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


def _difference(one: DatasetFacts, other: DatasetFacts | None) -> str:
    if other is None:
        return "the others have none"
    for name in ("train_samples", "heldout_samples", "input_shape", "classes", "fingerprint"):
        if getattr(one, name) != getattr(other, name):
            return f"{name} {getattr(one, name)} here, {getattr(other, name)} there"
    return "equal"
