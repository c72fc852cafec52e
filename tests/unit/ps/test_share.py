"""A job's share: the step's arithmetic against independent references, and what fences, polls and failures do."""

import gc
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import lr_scheduler

from shoal.core.errors import InvalidInput, NotFound, Refused, ShoalError, Stale, TrainingFailed
from shoal.core.facts import DatasetFacts
from shoal.core.layout import LayerKind
from shoal.core.tree import Block, root
from shoal.metrics.registry import new_registry
from shoal.models.catalog import build_model
from shoal.models.integers import IntegerLayout
from shoal.ps.share import Share, ShareProgress
from shoal.wire.exchange.frames import Frame, Kind
from tests.shards import FACTS, shared_memories, spec_of
from tests.unit.ps.by_hand import ByHand, WrittenSession, random_tensors, shares_at, tree_total

RATE = 0.1
PLAIN_SGD = {"name": "sgd", "learning_rate": RATE}
IMAGES = DatasetFacts(train_samples=22, heldout_samples=0, input_shape=(1, 8, 8), classes=10, fingerprint="f")


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return {name: t.numpy().tobytes() for name, t in one.items()} == {
        name: t.numpy().tobytes() for name, t in other.items()
    }


# -- the step's arithmetic -------------------------------------------------------------------------------------------


def clipped_steps(shards: int, *, clip_norm: float, steps: int = 3) -> tuple[ByHand, list[dict[str, Tensor]]]:
    """Steps of four ranks each; returns the weights after each step."""
    spec = spec_of(
        training={"world_size": 4, "batch_size": 4, "steps": 50, "clip_norm": clip_norm}, optimizer=PLAIN_SGD
    )
    job = ByHand(spec, FACTS, count=shards)
    seen = [job.weights()]
    for step in range(steps):
        for rank in range(4):
            flat = job.flat(random_tensors(job.layout, 100 * step + rank))
            job.push(flat, step=step, block=Block(start=rank, size=1))
        job.exchange_norms(step)
        seen.append(job.weights())
    assert job.versions() == [steps] * len(job.active)
    return job, seen


@pytest.mark.parametrize("clip_norm", [0.5, 1e6], ids=["clips", "leaves alone"])
def test_clipping_is_that_of_a_float64_reference(clip_norm: float) -> None:
    job, seen = clipped_steps(2, clip_norm=clip_norm)
    for step in range(3):
        grads = [random_tensors(job.layout, 100 * step + rank) for rank in range(4)]
        total = {name: tree_total([rank[name] for rank in grads]).double() for name in seen[0]}
        norm = math.sqrt(sum(float(tensor.square().sum()) for tensor in total.values()))
        assert norm > 10  # so that 0.5 clips
        scale = min(1.0, clip_norm / (norm + 1e-6))
        for name, before in seen[step].items():
            expected = before.double() - RATE * scale * total[name]
            torch.testing.assert_close(seen[step + 1][name].double(), expected, rtol=1e-6, atol=1e-7)


def test_clipping_does_not_depend_on_the_number_of_shards() -> None:
    _, alone = clipped_steps(1, clip_norm=0.5)
    for shards in (2, 3, 7):
        _, spread = clipped_steps(shards, clip_norm=0.5)
        assert same_bits(spread[-1], alone[-1]), shards


def test_the_sum_of_squares_is_that_of_the_whole_model_and_of_nothing_but_parameters() -> None:
    spec = spec_of(
        model={"type": "cnn", "channels": [4, 8], "hidden": 16},
        training={"world_size": 1, "batch_size": 4, "steps": 50, "clip_norm": 1.0},
        optimizer=PLAIN_SGD,
    )
    job = ByHand(spec, IMAGES, count=3)
    tensors = random_tensors(job.layout, 5)
    counters = IntegerLayout(build_model(spec.model, input_shape=(1, 8, 8), classes=10, seed=0))
    job.push(job.flat(tensors), step=0, block=root(1), integers=bytes(counters.size))
    total = job.exchange_norms(0)
    parameters = [tensors[layer.name] for layer in job.layout.layers if layer.kind is LayerKind.PARAMETER]
    assert total == pytest.approx(sum(float(tensor.double().square().sum()) for tensor in parameters), rel=1e-14)


@pytest.mark.parametrize("shards", [1, 3])
def test_batchnorm_statistics_are_the_sample_weighted_mean_over_uneven_ranks(shards: int) -> None:
    """Each rank's statistics come from a plain PyTorch model; rank 3 has no samples at all."""
    spec = spec_of(
        model={"type": "cnn", "channels": [4, 8], "hidden": 16, "dropout": 0},
        training={"world_size": 4, "batch_size": 8, "steps": 50},
        optimizer=PLAIN_SGD,
    )
    job = ByHand(spec, IMAGES, count=shards)
    counts = [9, 8, 5, 0]
    generator = torch.Generator().manual_seed(3)
    expected: dict[str, Tensor] = {}
    for rank, count in enumerate(counts):
        model = build_model(spec.model, input_shape=(1, 8, 8), classes=10, seed=spec.training.seed)
        if count:
            x = torch.randn((count, 1, 8, 8), generator=generator)
            cross_entropy(model(x), torch.arange(count) % 10).backward()  # type: ignore[no-untyped-call]
        parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
        tensors = {
            layer.name: (buffers[layer.name] if layer.kind is LayerKind.BUFFER else parameters[layer.name].grad)
            if count
            else torch.zeros(layer.shape)
            for layer in job.layout.layers
        }
        weight = count / sum(counts)
        for layer in job.layout.layers:
            if layer.kind is LayerKind.BUFFER:
                share = buffers[layer.name].double() * weight
                expected[layer.name] = expected.get(layer.name, torch.zeros(layer.shape).double()) + share
        job.push(
            job.flat(tensors, weight),
            step=0,
            block=Block(start=rank, size=1),
            integers=IntegerLayout(model).capture(model),
        )
    assert len(expected) == 4  # mean and variance of two BatchNorms
    averaged = job.weights(LayerKind.BUFFER)
    assert averaged.keys() == expected.keys()
    for name, tensor in averaged.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-6, atol=1e-8)


def test_integer_buffers_are_rank_0s_whoever_comes_last() -> None:
    spec = spec_of(
        model={"type": "cnn", "channels": [4, 8], "hidden": 16},
        training={"world_size": 2, "batch_size": 4, "steps": 50},
        optimizer=PLAIN_SGD,
    )
    for order in ((0, 1), (1, 0)):
        job = ByHand(spec, IMAGES)
        model = build_model(spec.model, input_shape=(1, 8, 8), classes=10, seed=0)
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for number, norm in enumerate(norms):
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked.fill_(41 + number)
        integers = IntegerLayout(model).capture(model)
        for rank in order:
            job.push(
                job.flat(random_tensors(job.layout, rank)), step=0, block=Block(start=rank, size=1), integers=integers
            )
        told = job.sessions[0].of_kind(Kind.VERSION)[-1]
        assert told.step == 1
        assert np.frombuffer(bytes(told.payload), dtype=np.int64).tolist() == [41, 42]
        capture = job.shares[0].capture()
        counters = [int(tensor) for name, tensor in capture.tensors.items() if name.endswith("num_batches_tracked")]
        assert counters == [41, 42]


SCHEDULES: dict[str, tuple[dict[str, Any], Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]]] = {
    "step": (
        {"name": "step", "step_size": 3, "gamma": 0.5},
        lambda optimizer: lr_scheduler.StepLR(optimizer, 3, 0.5),
    ),
    "cosine": (
        {"name": "cosine", "final": 0.1},
        lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=10, eta_min=0.1 * RATE),
    ),
    "warm-up": (
        {"name": "constant", "warmup_steps": 4},
        lambda optimizer: lr_scheduler.LinearLR(optimizer, start_factor=1 / 5, total_iters=4),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_learning_rate_follows_the_schedule_step_by_step(name: str) -> None:
    schedule, by_torch = SCHEDULES[name]
    spec = spec_of(training={"world_size": 1, "batch_size": 4, "steps": 10}, optimizer=PLAIN_SGD, schedule=schedule)
    job = ByHand(spec, FACTS, count=2)
    gradient = {layer.name: torch.ones(layer.shape) for layer in job.layout.layers}
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=RATE)
    scheduler = by_torch(optimizer)
    for step in range(10):
        before = job.weights()
        job.push(job.flat(gradient), step=step, block=root(1))
        for weights, earlier in zip(job.weights().values(), before.values(), strict=True):
            rate = torch.full_like(weights, optimizer.param_groups[0]["lr"])
            torch.testing.assert_close(earlier - weights, rate, rtol=0, atol=1e-6)  # weights are below 1
        optimizer.step()
        scheduler.step()


# -- fences, failures, drops -----------------------------------------------------------------------------------------


def two_ranks() -> ByHand:
    return ByHand(spec_of(training={"world_size": 2, "batch_size": 4, "steps": 50}, optimizer=PLAIN_SGD), FACTS)


def test_a_fence_keeps_the_weights_and_forgets_pending_sums() -> None:
    job = two_ranks()
    (share,) = job.shares
    (before_fence,) = job.sessions
    job.push(job.flat(random_tensors(job.layout, 1)), step=0, block=root(2))
    weights = job.weights()
    poison = job.flat(random_tensors(job.layout, 666))
    job.push(poison, step=1, block=Block(start=0, size=1))
    share.fence(2)
    assert before_fence.of_kind(Kind.FENCED)
    assert share.version == 1
    assert same_bits(job.weights(), weights)

    with pytest.raises(Stale, match="attempt 1 of job job is over: 2 runs"):
        job.push(poison, step=1, block=Block(start=1, size=1))
    assert share.version == 1

    share.attach(session := WrittenSession(share, attempt=2))
    share.receive(session, Frame(Kind.ASK_MISSING, attempt=2, step=1))
    (missing,) = session.of_kind(Kind.MISSING)
    assert np.frombuffer(bytes(missing.payload), dtype="<u4").tolist() == [0, 1]
    job.sessions[:] = [session]
    right, left = random_tensors(job.layout, 8), random_tensors(job.layout, 7)
    job.push(job.flat(right), step=1, block=Block(start=1, size=1), attempt=2)
    job.push(job.flat(left), step=1, block=Block(start=0, size=1), attempt=2)
    for name, tensor in job.weights().items():
        expected = weights[name].double() - RATE * (left[name].double() + right[name].double())
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_lower_attempt_cannot_fence_and_the_same_one_changes_nothing() -> None:
    job = two_ranks()
    (holder,) = job.holders
    (share,) = job.shares
    arguments: dict[str, Any] = {"job_id": "job", "spec_json": job.spec.model_dump_json(), "index": 0, "shards": 1}
    job.push(job.flat(random_tensors(job.layout, 1)), step=0, block=Block(start=0, size=1))
    assert holder.create(attempt=1, **arguments) is share
    assert not share.wants(0, Block(start=0, size=1))  # its sum is still there
    assert holder.create(attempt=3, **arguments) is share
    assert share.wants(0, Block(start=0, size=1))
    with pytest.raises(Stale, match="attempt 2 of job job is over: 3 runs"):
        holder.create(attempt=2, **arguments)
    with pytest.raises(Stale, match="another share here"):
        holder.create(attempt=4, **{**arguments, "shards": 2})
    assert share.attempt == 3


@pytest.fixture
def waiting() -> Iterator[Callable[..., tuple[list[ShareProgress | ShoalError], threading.Thread]]]:
    """Long polls in threads of their own, with far more patience than a test has."""
    threads: list[threading.Thread] = []

    def start(
        share: Share, *, from_version: int, known: int = 0
    ) -> tuple[list[ShareProgress | ShoalError], threading.Thread]:
        answers: list[ShareProgress | ShoalError] = []

        def poll() -> None:
            try:
                answers.append(share.progress(from_version=from_version, known_evaluations=known, wait_seconds=600))
            except ShoalError as error:
                answers.append(error)

        thread = threading.Thread(target=poll, daemon=True)
        threads.append(thread)
        thread.start()
        deadline = time.monotonic() + 10
        while not share._changed._waiters:  # type: ignore[attr-defined]
            assert time.monotonic() < deadline, f"the poll does not wait: {answers}"
        return answers, thread

    yield start
    for thread in threads:
        thread.join(timeout=10)
        assert not thread.is_alive(), "the poll was not woken"


def woken(answers: list[ShareProgress | ShoalError], thread: threading.Thread) -> ShareProgress | ShoalError:
    thread.join(timeout=10)
    (answer,) = answers
    return answer


Waiting = Callable[..., tuple[list[ShareProgress | ShoalError], threading.Thread]]


def test_a_poll_for_progress_wakes_when_a_step_is_committed(waiting: Waiting) -> None:
    job = two_ranks()
    job.push(job.flat(random_tensors(job.layout, 1)), step=0, block=root(2), loss=2.5)
    poll = waiting(job.shares[0], from_version=1)
    job.push(job.flat(random_tensors(job.layout, 2)), step=1, block=root(2), loss=1.5)
    answer = woken(*poll)
    assert isinstance(answer, ShareProgress)
    assert (answer.version, answer.first_step, answer.losses) == (2, 1, (1.5,))
    assert (answer.samples, answer.total_steps, answer.started, answer.failure) == (16, 50, True, "")


def test_a_poll_for_progress_wakes_when_an_evaluation_is_complete(waiting: Waiting) -> None:
    job = two_ranks()
    poll = waiting(job.shares[0], from_version=0)
    for rank, (correct, samples, loss) in enumerate([(30, 50, 10.0), (41, 50, 15.0)]):
        frame = Frame(
            Kind.EVALUATED, attempt=1, start=rank, size=1, value=loss, correct=correct, samples=samples, step=0
        )
        assert poll[1].is_alive()
        job.shares[0].receive(job.sessions[0], frame)
    answer = woken(*poll)
    assert isinstance(answer, ShareProgress)
    (result,) = answer.evaluations
    assert (result.version, result.correct, result.samples, result.loss) == (0, 71, 100, 0.25)


def test_a_poll_for_progress_wakes_when_the_attempt_fails(waiting: Waiting) -> None:
    job = two_ranks()
    poll = waiting(job.shares[0], from_version=0)
    nan = job.flat(random_tensors(job.layout, 1))
    nan[0] = math.nan
    for _ in range(3):
        job.push(nan, step=0, block=root(2))
    answer = woken(*poll)
    assert isinstance(answer, ShareProgress)
    assert answer.version == 0
    assert "3 times in a row" in answer.failure
    with pytest.raises(TrainingFailed, match="not finite"):
        job.push(nan, step=0, block=root(2))


def test_a_finite_push_in_between_lets_the_attempt_live() -> None:
    job = two_ranks()
    good, nan = job.flat(random_tensors(job.layout, 1)), job.flat(random_tensors(job.layout, 1))
    nan[0] = math.nan
    for rank in (0, 1):
        block = Block(start=rank, size=1)
        for _ in range(2):
            job.push(nan, step=0, block=block)
        job.push(good, step=0, block=block)
    refusals = job.sessions[0].of_kind(Kind.REFUSED)
    assert [(frame.start, frame.correct) for frame in refusals] == [(0, 1), (0, 1), (1, 1), (1, 1)]
    assert job.versions() == [1]


def test_a_poll_for_progress_wakes_when_the_share_is_dropped(waiting: Waiting) -> None:
    job = two_ranks()
    poll = waiting(job.shares[0], from_version=0)
    assert job.holders[0].drop("job", "the job has ended")
    answer = woken(*poll)
    assert isinstance(answer, NotFound)
    assert str(answer) == "job job is no longer here: the job has ended"
    assert job.sessions[0].of_kind(Kind.FENCED)


def test_a_dropped_share_gives_its_memory_back() -> None:
    gc.collect()
    before = len(shared_memories())
    job = two_ranks()
    (registry,) = job.registries
    assert len(shared_memories()) == before + 2
    assert registry.get_sample_value("shoal_ps_weight_bytes") == 2 * 4 * job.layout.length
    assert job.holders[0].drop("job", "the job has ended")
    assert not job.holders[0].drop("job", "the job has ended")
    assert registry.get_sample_value("shoal_ps_weight_bytes") == 0
    assert registry.get_sample_value("shoal_ps_shares") == 0
    del job
    gc.collect()
    assert len(shared_memories()) == before


def test_a_dropped_share_does_not_come_into_being_by_a_late_registration() -> None:
    registry = new_registry()
    holder = shares_at(registry)
    share = holder.create(job_id="job", attempt=1, spec_json=spec_of().model_dump_json(), index=0, shards=1)
    holder.drop("job", "the job has ended")
    with pytest.raises(NotFound, match="the job has ended"):
        share.register(FACTS)
    assert share.weight_bytes == 0
    assert registry.get_sample_value("shoal_ps_weight_bytes") == 0


# -- jobs that cannot have a share -----------------------------------------------------------------------------------

EXTERNAL = {
    "model": {"type": "mlp", "hidden": [8], "input_shape": [4], "classes": 3},
    "trainers": "external",
    "training": {"steps": 10},
}


def external(**changes: Any) -> str:
    document = {**EXTERNAL, **changes}
    return spec_of(**document).model_dump_json()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": {"type": "mlp", "hidden": [8], "classes": 3}}, "model.input_shape"),
        ({"model": {"type": "mlp", "hidden": [8], "input_shape": [4]}}, "model.input_shape"),
        ({"training": {"epochs": 3}, "schedule": {"name": "cosine"}}, "schedule"),
    ],
    ids=["no input_shape", "no classes", "cosine without an end"],
)
def test_an_external_job_that_leaves_something_out_is_refused_by_its_field_and_leaves_nothing(
    changes: dict[str, Any], field: str
) -> None:
    gc.collect()
    before = len(shared_memories())
    registry = new_registry()
    holder = shares_at(registry)
    with pytest.raises(InvalidInput, match="needs|give") as refused:
        holder.create(job_id="job", attempt=1, spec_json=external(**changes), index=0, shards=1)
    assert refused.value.field == field
    assert "\n" not in str(refused.value)
    assert holder.job_ids() == ()
    with pytest.raises(NotFound, match="job 'job' has no share on this parameter server"):
        holder.get("job")
    assert registry.get_sample_value("shoal_ps_shares") == 0
    assert registry.get_sample_value("shoal_ps_weight_bytes") == 0
    refused = None  # type: ignore[assignment]  # its traceback holds the half-made share
    gc.collect()
    assert len(shared_memories()) == before
    assert holder.create(job_id="job", attempt=1, spec_json=external(), index=0, shards=1).version == 0


def test_a_share_index_beyond_the_shards_and_a_spec_that_is_none_are_refused() -> None:
    holder = shares_at(new_registry())
    with pytest.raises(InvalidInput, match="shard index 2 is not below 2") as refused:
        holder.create(job_id="job", attempt=1, spec_json=external(), index=2, shards=2)
    assert refused.value.field == "shard_index"
    for broken in ("", "{", '{"model": {"type": "nonesuch"}}'):
        with pytest.raises(ShoalError):
            holder.create(job_id="job", attempt=1, spec_json=broken, index=0, shards=1)
    assert holder.job_ids() == ()


def test_an_external_job_takes_no_trainers_and_an_internal_one_no_unary_pushes() -> None:
    holder = shares_at(new_registry())
    share = holder.create(job_id="job", attempt=1, spec_json=external(), index=0, shards=1)
    with pytest.raises(Refused, match="use the unary calls"):
        share.attach(WrittenSession(share))
    job = two_ranks()
    layer = job.layout.layers[0]
    with pytest.raises(Refused, match="trainers: external"):
        job.shares[0].push_slice(layer_name=layer.name, data=bytes(4 * layer.elements), dtype="", version=0)
    assert job.versions() == [0]


def test_a_datasets_facts_must_be_those_of_the_first_worker() -> None:
    job = two_ranks()
    job.shares[0].register(FACTS)
    other = DatasetFacts(train_samples=641, heldout_samples=100, input_shape=(64,), classes=10, fingerprint="f")
    with pytest.raises(InvalidInput, match="train_samples 641 here, 640 there") as refused:
        job.shares[0].register(other)
    assert refused.value.field == "data.source"
