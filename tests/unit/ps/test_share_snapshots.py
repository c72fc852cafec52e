"""A share that goes on from a snapshot has the bits of one that was never interrupted; what a copy waits for and
refuses; and jobs that begin with another job's weights.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from shoal.core.errors import Corrupt, InvalidInput, Missed, NotFound, ShoalError, Stale, TrainingFailed, Unavailable
from shoal.core.facts import DatasetFacts
from shoal.core.layout import LayerKind
from shoal.core.tree import Block, root
from shoal.jobspec.spec import JobSpec
from shoal.metrics.parameter_server import ParameterServerMetrics
from shoal.metrics.registry import new_registry
from shoal.models.catalog import build_model
from shoal.models.integers import IntegerLayout
from shoal.optim.catalog import OptimizerSpec
from shoal.ps.initial import InitialWeights, Source
from shoal.ps.share import Share
from shoal.ps.snapshot import Capture, Restore, Snapshots, model_name, snapshot_name
from shoal.ps.targets.local import LocalFolder
from shoal.wire.exchange.frames import Frame, Kind
from tests.shards import FACTS, spec_of
from tests.unit.ps.by_hand import ByHand, random_tensors, shares_at

IMAGES = DatasetFacts(train_samples=64, heldout_samples=8, input_shape=(1, 8, 8), classes=10, fingerprint="f")
CNN = {"type": "cnn", "channels": [4, 8], "hidden": 16}
OPTIMIZERS = [rule.model_fields["name"].default for rule in get_args(get_args(OptimizerSpec)[0])]
STEPS, AT = 9, 4


def optimizer_of(name: str) -> dict[str, Any]:
    more = {"sgd": {"momentum": 0.9}, "rmsprop": {"momentum": 0.5, "centered": True}, "adam": {"amsgrad": True}}
    return {"name": name, "learning_rate": 0.05, **more.get(name, {})}


def job_spec(optimizer: Mapping[str, Any], **training: Any) -> JobSpec:
    return spec_of(
        model=CNN,
        training={"world_size": 2, "batch_size": 8, "steps": STEPS, **training},
        optimizer=dict(optimizer),
        schedule={"name": "cosine", "warmup_steps": 2},
    )


def step(job: ByHand, number: int) -> None:
    """Both ranks' pushes, with a loss and counters of their own, and the norms if the job clips."""
    size = IntegerLayout(build_model(job.spec.model, input_shape=(1, 8, 8), classes=10, seed=0)).size
    integers = np.arange(number, number + size // 8, dtype="<i8").tobytes()
    for rank in range(2):
        gradient = job.flat(random_tensors(job.layout, 10 * number + rank))
        job.push(gradient, step=number, block=Block(start=rank, size=1), loss=1 / (number + 3), integers=integers)
    if job.spec.training.clip_norm:
        job.exchange_norms(number)


def evaluate(job: ByHand, version: int) -> None:
    frame = Frame(Kind.EVALUATED, attempt=job.attempt, step=version, start=0, size=2, value=0.1, correct=7, samples=8)
    job.shares[0].receive(job.sessions[0], frame)


class Copying(threading.Thread):
    """A snapshot's call: waits until the share comes to the version, and keeps what it got."""

    def __init__(self, share: Share, version: int, *, attempt: int = 1) -> None:
        super().__init__(daemon=True)
        self.share, self.version, self.attempt = share, version, attempt
        self.given_up = False
        self.outcome: Capture | ShoalError | None = None
        self.start()
        deadline = time.monotonic() + 10
        while share._due is None and self.outcome is None:
            assert time.monotonic() < deadline, "the share does not know of the copy"

    def run(self) -> None:
        try:
            with self.share.snapshot_turn(lambda: self.given_up):
                self.outcome = self.share.capture_at(self.version, attempt=self.attempt, gone=lambda: self.given_up)
        except ShoalError as error:
            self.outcome = error

    def give_up(self) -> None:
        self.given_up = True
        self.share.wake()

    def result(self) -> Capture | ShoalError:
        self.join(timeout=10)
        assert self.outcome is not None, "the copy still waits"
        return self.outcome

    def capture(self) -> Capture:
        result = self.result()
        assert isinstance(result, Capture), result
        return result


def state_of(job: ByHand) -> dict[str, Any]:
    """Everything that may be seen of a job from outside, bit for bit."""
    progress = job.shares[0].progress(from_version=0, known_evaluations=99, wait_seconds=0)
    frames = [share.version_frame() for share in job.active]
    return {
        "weights": {name: tensor.numpy().tobytes() for name, tensor in job.weights().items()},
        "statistics": {name: tensor.numpy().tobytes() for name, tensor in job.weights(LayerKind.BUFFER).items()},
        "progress": replace(progress, attempt=0),
        "frames": [(frame.step, frame.value, bytes(frame.payload)) for frame in frames],
    }


def interrupted(spec: JobSpec, folder: Path, *, count: int, at: int = AT) -> ByHand:
    """A run that was copied at a step, went on for another, and was lost; it has come back as attempt 2."""
    snapshots = Snapshots(LocalFolder(folder), metrics=ParameterServerMetrics(new_registry()))
    job = ByHand(spec, IMAGES, count=count)
    for number in range(at - 1):
        step(job, number)
        if number == 1:
            evaluate(job, 2)
    copies = [Copying(share, at) for share in job.active]
    step(job, at - 1)
    step(job, at)
    restore: dict[int, Restore] = {}
    for copy in copies:
        file = snapshots.write("job", snapshot_name(copy.share.index, at, 1), copy.capture())
        restore[copy.share.index] = Restore(name=file.name, size=file.size, sha256=file.sha256, version=at)
    return ByHand(spec, IMAGES, count=count, attempt=2, folder=folder, restore=restore)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restored_run_ends_with_the_bits_of_an_undisturbed_one(name: str, shards: int, tmp_path: Path) -> None:
    spec = job_spec(optimizer_of(name), clip_norm=1.0)
    undisturbed = ByHand(spec, IMAGES, count=shards)
    for number in range(STEPS):
        step(undisturbed, number)
        if number == 1:
            evaluate(undisturbed, 2)
    back = interrupted(spec, tmp_path, count=shards)
    assert back.versions() == [AT] * len(back.active)
    for number in range(AT, STEPS):
        step(back, number)
    assert state_of(back) == state_of(undisturbed)


def test_all_of_torchs_rules_are_tried() -> None:
    assert len(OPTIMIZERS) == 13


def test_the_test_can_fail_a_run_without_its_momentum_has_other_bits(tmp_path: Path) -> None:
    spec = job_spec(optimizer_of("sgd"))
    back = interrupted(spec, tmp_path, count=1)
    undisturbed = ByHand(spec, IMAGES)
    for number in range(AT):
        step(undisturbed, number)
    assert state_of(back)["weights"] == state_of(undisturbed)["weights"]
    back.shares[0]._weights.load_optimizer({}, fresh=undisturbed.layout.shares[0].by_name)
    for job in (back, undisturbed):
        step(job, AT)
    assert state_of(back)["weights"] != state_of(undisturbed)["weights"]


def test_a_copy_is_of_the_version_asked_for_whatever_comes_after(tmp_path: Path) -> None:
    spec = job_spec(optimizer_of("adamw"))
    undisturbed = ByHand(spec, IMAGES)
    for number in range(AT):
        step(undisturbed, number)
    back = interrupted(spec, tmp_path, count=1)
    assert state_of(back)["weights"] == state_of(undisturbed)["weights"]
    assert state_of(back)["progress"].evaluations[0].version == 2


def test_a_restored_share_can_be_asked_for_both_versions_of_its_replay_window(tmp_path: Path) -> None:
    back = interrupted(job_spec(optimizer_of("sgd")), tmp_path, count=1)
    (share,) = back.shares
    assert share.touched == AT
    assert np.array_equal(share.weights(AT), share.weights(AT - 1))


def test_a_version_that_has_passed_cannot_be_copied(tmp_path: Path) -> None:
    job = ByHand(job_spec(optimizer_of("sgd")), IMAGES)
    for number in range(3):
        step(job, number)
    for passed in (1, 3):
        outcome = Copying(job.shares[0], passed).result()
        assert isinstance(outcome, Missed)
        assert "has come to version 3 already" in str(outcome)


def push_nan(job: ByHand) -> None:
    """So often that the attempt ends."""
    for _ in range(3):
        job.push(torch.full((job.layout.length,), torch.nan), step=0, block=root(2))


ENDINGS: dict[str, tuple[Callable[[ByHand, Copying], object], type[ShoalError]]] = {
    "a fence": (lambda job, _: job.shares[0].fence(2), Stale),
    "a drop": (lambda job, _: job.holders[0].drop("job", "gone"), NotFound),
    "a failure": (lambda job, _: push_nan(job), TrainingFailed),
    "a caller that is gone": (lambda _, copy: copy.give_up(), Unavailable),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_copy_that_is_waited_for_ends_with(name: str) -> None:
    end, error = ENDINGS[name]
    job = ByHand(job_spec(optimizer_of("sgd")), IMAGES)
    copy = Copying(job.shares[0], 5)
    end(job, copy)
    assert type(copy.result()) is error
    assert job.shares[0]._due is None


def test_one_copy_at_a_time_the_next_one_waits_for_its_turn() -> None:
    job = ByHand(job_spec(optimizer_of("sgd")), IMAGES)
    (share,) = job.shares
    order: list[str] = []
    with share.snapshot_turn(lambda: False):
        waiting = threading.Thread(target=lambda: _take_turn(share, order))
        waiting.start()
        step(job, 0)  # training goes on
        order.append("first")
    waiting.join(timeout=10)
    assert order == ["first", "second"]


def _take_turn(share: Share, order: list[str]) -> None:
    with share.snapshot_turn(lambda: False):
        order.append("second")


def test_a_copy_for_another_attempt_is_stale() -> None:
    job = ByHand(job_spec(optimizer_of("sgd")), IMAGES)
    assert isinstance(Copying(job.shares[0], 5, attempt=7).result(), Stale)


# -- which share is made of what -------------------------------------------------------------------------------------


def written(job: ByHand, folder: Path, version: int) -> dict[int, Restore]:
    snapshots = Snapshots(LocalFolder(folder), metrics=ParameterServerMetrics(new_registry()))
    copies = [Copying(share, version) for share in job.active]
    step(job, version - 1)
    files: dict[int, Restore] = {}
    for copy in copies:
        file = snapshots.write("job", snapshot_name(copy.share.index, version, 1), copy.capture())
        files[copy.share.index] = Restore(name=file.name, size=file.size, sha256=file.sha256, version=version)
    return files


def test_start_over_takes_a_share_of_an_earlier_attempt_back_and_leaves_one_of_this_attempt(tmp_path: Path) -> None:
    spec = job_spec(optimizer_of("sgd"))
    job = ByHand(spec, IMAGES, folder=tmp_path)
    (holder,), (share,) = job.holders, job.shares
    step(job, 0)
    (restore,) = written(job, tmp_path, 2).values()
    step(job, 2)
    arguments: dict[str, Any] = {"job_id": "job", "spec_json": spec.model_dump_json(), "index": 0, "shards": 1}
    kept = holder.create(attempt=2, restore=restore, **arguments)
    assert kept is share
    assert (kept.version, kept.made_in_attempt) == (3, 1)
    anew = holder.create(attempt=2, restore=restore, start_over=True, **arguments)
    assert anew is not share
    assert (anew.version, anew.made_in_attempt, anew.attempt) == (2, 2, 2)
    assert job.sessions[0].of_kind(Kind.FENCED)
    assert holder.create(attempt=2, restore=restore, start_over=True, **arguments) is anew
    from_zero = holder.create(attempt=2, start_over=True, **arguments)
    assert (from_zero.version, from_zero.started) == (0, False)
    with pytest.raises(Stale, match="attempt 1 of job job is over"):
        holder.create(attempt=1, start_over=True, **arguments)


def test_a_call_to_start_over_that_comes_late_or_twice_leaves_the_share_as_it_is(tmp_path: Path) -> None:
    """Trainers may have made steps since."""
    spec = job_spec(optimizer_of("sgd"))
    job = ByHand(spec, IMAGES, folder=tmp_path)
    (holder,) = job.holders
    step(job, 0)
    (restore,) = written(job, tmp_path, 2).values()
    arguments: dict[str, Any] = {"job_id": "job", "spec_json": spec.model_dump_json(), "index": 0, "shards": 1}
    restored = holder.create(attempt=2, restore=restore, start_over=True, call=(3, 7), **arguments)
    assert (restored.version, restored.made_in_attempt) == (2, 2)
    for late in ((3, 7), (3, 6), (2, 9)):
        assert holder.create(attempt=2, start_over=True, call=late, **arguments) is restored
    asked = holder.create(attempt=2, call=(3, 8), **arguments)
    assert asked is restored
    assert holder.create(attempt=2, start_over=True, call=(3, 8), **arguments) is restored
    anew = holder.create(attempt=2, start_over=True, call=(3, 9), **arguments)
    assert anew is not restored
    assert (anew.version, anew.started) == (0, False)


def test_a_snapshot_of_another_shard_or_model_is_corrupt_and_leaves_no_trace(tmp_path: Path) -> None:
    spec = job_spec(optimizer_of("sgd"))
    job = ByHand(spec, IMAGES, count=2, folder=tmp_path)
    files = written(job, tmp_path, 1)
    (holder, _) = ByHand(spec, IMAGES, count=2, folder=tmp_path).holders
    holder.drop("job", "gone")
    other = job_spec(optimizer_of("sgd")).model_copy(update={"model": replace_hidden(spec)})
    for index, shards, made_of, text in ((0, 2, files[1], spec), (0, 1, files[0], spec), (0, 2, files[0], other)):
        with pytest.raises(Corrupt, match="of another model"):
            holder.create(
                job_id="job",
                attempt=2,
                spec_json=text.model_dump_json(),
                index=index,
                shards=shards,
                restore=made_of,
            )
    assert holder.job_ids() == ()
    assert holder._metrics.weight_bytes._value.get() == 0


def replace_hidden(spec: JobSpec) -> Any:
    return spec.model.model_copy(update={"hidden": 32})


def test_an_external_jobs_layers_are_copied_one_by_one_as_each_comes_to_the_version(tmp_path: Path) -> None:
    spec = spec_of(
        model={"type": "mlp", "hidden": [4], "input_shape": [8], "classes": 3},
        training={"world_size": 1, "batch_size": 1, "steps": 50},
        optimizer={"name": "adam", "learning_rate": 0.1},
        trainers="external",
    )

    def shares(attempt: int, restore: Restore | None = None) -> Share:
        return shares_at(new_registry(), tmp_path).create(
            job_id="job", attempt=attempt, spec_json=spec.model_dump_json(), index=0, shards=1, restore=restore
        )

    def push(share: Share, name: str, version: int) -> None:
        piece = share.held.by_name[name]
        data = (np.arange(piece.elements, dtype="<f4") + version).tobytes()
        assert share.push_slice(layer_name=name, data=data, dtype="", version=version).applied

    def tensors(share: Share) -> dict[str, bytes]:
        return {name: share.pull_slice(name)[0] for name in share.held.by_name}

    share = shares(1)
    first, *others = share.held.by_name
    for version in range(2):
        for name in share.held.by_name:
            push(share, name, version)
    at_2 = tensors(share)
    push(share, first, 2)
    assert isinstance(Copying(share, 3).result(), Missed)  # one layer is there already
    copy = Copying(share, 4)
    push(share, first, 3)
    push(share, first, 4)  # the first is ahead of the copy by now
    for name in others:
        push(share, name, 2)
        push(share, name, 3)
    snapshots = Snapshots(LocalFolder(tmp_path), metrics=ParameterServerMetrics(new_registry()))
    file = snapshots.write("job", "file", copy.capture())
    back = shares(2, Restore(name="file", size=file.size, sha256=file.sha256, version=4))
    assert back.layer_versions == dict.fromkeys(share.held.by_name, 4)
    push(back, first, 4)
    assert tensors(back) == tensors(share)
    assert tensors(back) != at_2


# -- weights of another job ------------------------------------------------------------------------------------------


def initial_of(files: Mapping[int, Restore], folder: Path) -> InitialWeights:
    snapshots = Snapshots(LocalFolder(folder), metrics=ParameterServerMetrics(new_registry()))
    sources = [Source(file=file, host="127.0.0.1", port=1) for file in files.values()]
    return InitialWeights(job_id="job", sources=sources, snapshots=snapshots)


def warm(spec: JobSpec, files: Mapping[int, Restore], folder: Path, *, shards: int) -> list[Share]:
    made = [
        shares_at(new_registry(), folder).create(
            job_id="new",
            attempt=1,
            spec_json=spec.model_dump_json(),
            index=index,
            shards=shards,
            initial=initial_of(files, folder),
        )
        for index in range(shards)
    ]
    for share in made:
        share.register(IMAGES)
    return made


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 3), (3, 1), (3, 2), (2, 5)])
@pytest.mark.parametrize("kind", ["snapshot", "model"])
def test_a_job_begins_with_another_ones_weights_whatever_the_shards(
    kind: str, before: int, after: int, tmp_path: Path
) -> None:
    job = ByHand(job_spec(optimizer_of("adamw")), IMAGES, count=before)
    if kind == "snapshot":
        files = written(job, tmp_path, 1)
    else:
        step(job, 0)
        snapshots = Snapshots(LocalFolder(tmp_path), metrics=ParameterServerMetrics(new_registry()))
        files = {}
        for share in job.active:
            file = snapshots.write("job", model_name(share.index, 1), share.capture())
            files[share.index] = Restore(name=file.name, size=file.size, sha256=file.sha256, version=1)
    new = warm(job_spec(optimizer_of("sgd")), files, tmp_path, shards=after)
    flat = torch.cat([torch.from_numpy(np.array(share.weights(0))) for share in new if share.held.length])
    expected = {**job.weights(), **job.weights(LayerKind.BUFFER)}
    have: dict[str, Tensor] = {
        layer.name: flat[offset : offset + layer.elements].reshape(layer.shape)
        for layer, offset in zip(new[0].layout.layers, new[0].layout.offsets, strict=True)
    }
    assert {name: tensor.numpy().tobytes() for name, tensor in have.items()} == {
        name: tensor.numpy().tobytes() for name, tensor in expected.items()
    }
    assert all(share.version == 0 for share in new)
    assert bytes(new[0].version_frame().payload) == bytes(job.shares[0].version_frame().payload)


def test_weights_of_another_model_are_refused_by_name(tmp_path: Path) -> None:
    job = ByHand(job_spec(optimizer_of("sgd")), IMAGES)
    files = written(job, tmp_path, 1)
    wider = spec_of(model={**CNN, "hidden": 32}, training={"world_size": 2, "batch_size": 8, "steps": STEPS})
    with pytest.raises(InvalidInput, match=r"job job do not fit: its layer .* has the shape .* this job's has") as told:
        warm(wider, files, tmp_path, shards=1)
    assert told.value.field == "initial_weights.job"
    flat = spec_of(model={"type": "mlp", "hidden": [8]}, training={"world_size": 2, "batch_size": 8, "steps": STEPS})
    with pytest.raises(InvalidInput, match="do not fit: it has a layer"):
        warm(flat, files, tmp_path, shards=1)


def test_weights_of_which_a_shard_is_missing_are_refused(tmp_path: Path) -> None:
    job = ByHand(job_spec(optimizer_of("sgd")), IMAGES, count=3)
    files = written(job, tmp_path, 1)
    del files[1]
    with pytest.raises(InvalidInput, match=r"it lacks \(a part of\) layer"):
        warm(job_spec(optimizer_of("sgd")), files, tmp_path, shards=1)


def test_damaged_weights_are_corrupt_and_missing_ones_not_to_be_had(tmp_path: Path) -> None:
    job = ByHand(job_spec(optimizer_of("sgd")), IMAGES)
    files = written(job, tmp_path, 1)
    with pytest.raises(Corrupt, match="sha256"):
        warm(job_spec(optimizer_of("sgd")), {0: replace(files[0], sha256="0" * 64)}, tmp_path, shards=1)
    with pytest.raises(Unavailable):  # neither here nor, at port 1, on another server
        warm(job_spec(optimizer_of("sgd")), {0: replace(files[0], name="another")}, tmp_path, shards=1)


def test_a_share_that_holds_nothing_says_so() -> None:
    tiny = spec_of(
        model={"type": "mlp", "hidden": [4]},
        training={"world_size": 1, "batch_size": 4, "steps": 5},
    )
    job = ByHand(tiny, FACTS, count=7)
    assert [share.holds_nothing for share in job.shares] == [False] * 3 + [True] * 4
    job.push(job.flat(random_tensors(job.layout, 1)), step=0, block=root(1))
    assert job.versions() == [1] * 3
