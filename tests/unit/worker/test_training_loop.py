"""The training loop against real parameter servers in this process; the weights' reference is a loop of plain PyTorch.

The trainers are threads, so the model has no dropout: torch's default generator is the process'.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn.functional import cross_entropy

from shoal.core.job import Results
from shoal.core.seeds import derive_seed
from shoal.core.tree import Block
from shoal.data.sampler import permutation
from shoal.data.split import FloatSplit, Split
from shoal.jobspec.spec import JobSpec
from shoal.models.catalog import build_model
from shoal.models.folder import weights_sha256
from shoal.wire.exchange.frames import Frame, Kind
from shoal.worker.trainer.gradients import Gradients
from shoal.worker.trainer.loop import TrainingLoop
from shoal.worker.trainer.replica import Replica
from tests.shards import FACTS, Shards, await_version, running_shards, spec_of
from tests.unit.worker.plain import added_like_a_tree, split_of

TRAIN = split_of(FACTS.train_samples, seed=1, shape=FACTS.input_shape)
HELDOUT = split_of(FACTS.heldout_samples, seed=2, shape=FACTS.input_shape)
SECONDS = 60.0
STEPS = 12


def spec(transport: str = "auto", *, target: float | None = None, **training: Any) -> JobSpec:
    return spec_of(
        transport,
        model={"type": "mlp", "hidden": [40]},
        training={"world_size": 4, "batch_size": 4, "steps": STEPS, "evaluate_every": 4, "seed": 9}
        | ({"target_accuracy": target} if target else {})
        | training,
    )


class Trainer:
    """A trainer's objects, as `shoal.worker.trainer.app.Training` joins them, in a thread of its own."""

    def __init__(self, shards: Shards, name: str, take_ranks: Callable[[], range], *, train: Split = TRAIN) -> None:
        training = shards.spec.training
        plan = shards.spec.plan(FACTS)
        model = build_model(shards.spec.model, input_shape=FACTS.input_shape, classes=FACTS.classes, seed=training.seed)
        replica = Replica(model, shards.layout, device=torch.device("cpu"))
        self.parameters = shards.attach(name)
        self.gradients = Gradients(
            replica=replica,
            plan=plan,
            seed=training.seed,
            train=train,
            heldout=HELDOUT,
            length=shards.layout.length,
        )
        self.loop = TrainingLoop(
            plan=plan,
            parameters=self.parameters,
            gradients=self.gradients,
            replica=replica,
            target_accuracy=training.target_accuracy,
            take_ranks=take_ranks,
        )
        self.results: Results | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def units(self) -> int:
        return len(self.gradients.unit_seconds)

    def start(self) -> "Trainer":
        self._thread.start()
        return self

    def finish(self) -> Results:
        self._thread.join(timeout=SECONDS)
        assert not self._thread.is_alive(), f"still at version {self.parameters.version}"
        self.parameters.close()
        if self.error is not None:
            raise self.error
        assert self.results is not None
        return self.results

    def _run(self) -> None:
        try:
            self.results = self.loop.run()
        except BaseException as error:  # noqa: BLE001  # the test raises it
            self.error = error


@cache
def plain_results(job: JobSpec) -> tuple[str, tuple[float, ...], dict[int, float]]:
    """(sha256 of the weights, losses, accuracy by version) of the job by torch alone: no shards, no blocks."""
    training = job.training
    assert training.batch_size is not None
    assert training.steps is not None
    model = build_model(job.model, input_shape=FACTS.input_shape, classes=FACTS.classes, seed=training.seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    batch = training.world_size * training.batch_size
    steps_per_epoch = -(-len(TRAIN) // batch)
    losses: list[float] = []
    accuracies: dict[int, float] = {}
    for step in range(training.steps):
        epoch, position = divmod(step, steps_per_epoch)
        order = permutation(len(TRAIN), derive_seed(training.seed, "epoch", epoch))
        mine = order[position * batch : (position + 1) * batch]
        grads, means = [], []
        for part in np.array_split(mine, training.world_size):
            weight = len(part) / len(mine)
            model.zero_grad()
            mean = 0.0
            if len(part):
                loss = cross_entropy(model(torch.from_numpy(TRAIN.x[part])), torch.from_numpy(TRAIN.y[part]))
                loss.backward()  # type: ignore[no-untyped-call]
                mean = loss.item()
            grads.append(
                [torch.zeros_like(p) if p.grad is None else p.grad.clone() * weight for p in model.parameters()]
            )
            means.append(mean * weight)
        size = 1 << (training.world_size - 1).bit_length()
        for index, parameter in enumerate(model.parameters()):
            parameter.grad = added_like_a_tree([rank[index] for rank in grads], 0, size)
        optimizer.step()
        losses.append(added_like_a_tree(means, 0, size))
        if (step + 1) % (training.evaluate_every or steps_per_epoch) == 0 or step + 1 == training.steps:
            with torch.no_grad():
                right = model(torch.from_numpy(HELDOUT.x)).argmax(1) == torch.from_numpy(HELDOUT.y)
            accuracies[step + 1] = float(right.double().mean())
            if training.target_accuracy and accuracies[step + 1] >= training.target_accuracy:
                break
    weights: dict[str, npt.NDArray[np.generic]] = {name: t.numpy().copy() for name, t in model.state_dict().items()}
    return weights_sha256(weights), tuple(losses), accuracies


def assert_plain(results: Results, shards: Shards) -> None:
    sha256, losses, accuracies = plain_results(shards.spec)
    assert results.weights_sha256 == sha256
    assert results.steps == len(losses)
    assert results.metrics["train_loss"] == losses[-1]
    assert results.accuracy == accuracies[results.steps]
    told = shards.servers[0].shares.get("job").progress(from_version=0, known_evaluations=0, wait_seconds=0)
    assert told.losses == losses
    assert {result.version: result.correct / result.samples for result in told.evaluations} == accuracies


@pytest.fixture(params=["auto", "grpc"])
def shards(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shards]:
    with running_shards(spec(str(request.param)), tmp_path) as running:
        yield running


def test_one_trainer_with_all_ranks_gives_the_plain_weights(shards: Shards) -> None:
    trainer = Trainer(shards, "one", lambda: range(4)).start()
    results = trainer.finish()
    assert_plain(results, shards)
    assert results.success
    assert results.samples == STEPS * 16
    assert trainer.units == STEPS * 4


def test_ranks_that_move_in_the_middle_of_steps_do_not_show(shards: Shards) -> None:
    """The boundary between two trainers moves after every third question, whatever they are doing."""
    lock = threading.Lock()
    asked, cut = 0, 2
    seen: Counter[tuple[int, int]] = Counter()

    def take(first: bool, version: Callable[[], int]) -> range:
        nonlocal asked, cut
        with lock:
            asked += 1
            if asked % 3 == 0:
                cut = (cut + 3) % 5
            seen[version(), cut] += 1
            return range(cut) if first else range(cut, 4)

    one = Trainer(shards, "one", lambda: take(True, lambda: one.parameters.version))
    two = Trainer(shards, "two", lambda: take(False, lambda: two.parameters.version))
    results = [trainer.finish() for trainer in (one.start(), two.start())]
    assert results[0] == results[1]
    assert_plain(results[0], shards)
    versions = Counter(version for version, _ in seen)
    assert sum(cuts > 1 for cuts in versions.values()) > STEPS // 2, "ranks moved within most steps"
    assert one.units
    assert two.units


def test_a_trainer_that_gives_all_its_ranks_away_follows_to_the_same_end(shards: Shards) -> None:
    def given_away() -> bool:
        return min(one.parameters.version, two.parameters.version) >= 3

    one = Trainer(shards, "one", lambda: range(0) if given_away() else range(2))
    two = Trainer(shards, "two", lambda: range(4) if given_away() else range(2, 4))
    results = [trainer.finish() for trainer in (one.start(), two.start())]
    assert results[0] == results[1]
    assert_plain(results[0], shards)
    assert one.units < STEPS * 2  # what it would have computed with its ranks
    assert one.units + two.units >= STEPS * 4


class OnceBroken:
    """A split whose sixth batch is not finite, once: memory that flipped."""

    def __init__(self, split: FloatSplit) -> None:
        self._split = split
        self.asked = 0

    def __len__(self) -> int:
        return len(self._split)

    def batch(self, indices: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        self.asked += 1
        x, y = self._split.batch(indices)
        return (x * np.float32("nan") if self.asked == 6 else x), y


def test_a_refused_push_is_made_again(shards: Shards) -> None:
    broken = OnceBroken(TRAIN)
    trainer = Trainer(shards, "one", lambda: range(4), train=broken).start()
    assert_plain(trainer.finish(), shards)
    # The block of four ranks of the second step twice, or once more, where one shard's refusal comes after the repeat.
    assert broken.asked in (STEPS * 4 + 4, STEPS * 4 + 8)
    assert trainer.parameters.pushed.total() > STEPS * 2  # to two shards


class Died(Exception):
    pass


@pytest.mark.parametrize("transport", ["auto", "grpc"])
def test_a_norm_that_came_to_one_shard_only_is_made_again_by_a_newcomer(
    transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that sent it died in between: the shard that has gone on must still tell what the other one needs."""
    never_reached = spec(transport, clip_norm=1e6)
    with running_shards(never_reached, tmp_path) as shards:
        first = Trainer(shards, "first", lambda: range(4))
        to_the_second = first.parameters._shards[1].link
        send = to_the_second.send

        def die_before_a_norm(frame: Frame) -> None:
            if frame.kind is Kind.NORM:
                raise Died
            send(frame)

        monkeypatch.setattr(to_the_second, "send", die_before_a_norm)
        shares = [server.shares.get("job") for server in shards.servers]
        first.start()
        shares[0].progress(from_version=0, known_evaluations=99, wait_seconds=SECONDS)
        with pytest.raises(Died):
            first.finish()
        assert [share.version for share in shares] == [1, 0]
        assert_plain(Trainer(shards, "second", lambda: range(4)).start().finish(), shards)


def test_a_target_accuracy_ends_all_trainers_at_the_same_version(tmp_path: Path) -> None:
    unlimited = spec(steps=200)
    _, _, accuracies = plain_results(unlimited)
    target = sorted(accuracies.values())[len(accuracies) // 2]
    first = min(version for version, accuracy in accuracies.items() if accuracy >= target)
    assert 4 < first < 200
    with running_shards(spec(steps=200, target=target), tmp_path) as shards:
        trainers = [
            Trainer(shards, "one", lambda: range(1)),
            Trainer(shards, "two", lambda: range(1, 4)),
            Trainer(shards, "idle", lambda: range(0)),
        ]
        results = [trainer.finish() for trainer in [trainer.start() for trainer in trainers]]
        assert [result.steps for result in results] == [first] * 3
        assert results[0] == results[1] == results[2]
        assert_plain(results[0], shards)


class Absent:
    """A trainer that has ranks and pushes only some: its work is done by the test, within the other one's thread."""

    def __init__(self, shards: Shards, pushes: range) -> None:
        self._shards = shards
        self._parts = Trainer(shards, "absent", lambda: range(0))
        self._pushes = pushes
        self.parameters = self._parts.parameters
        self._done = -1

    def catch_up(self, version: int) -> None:
        """Pushes its ranks of the step, and returns when both shards have them."""
        if version <= self._done or version >= STEPS:
            return
        self._done = version
        await_version(self.parameters, version)
        flat = self.parameters.flat(version)
        assert flat is not None
        self._parts.gradients.load(flat, b"")
        for slot, rank in enumerate(self._pushes):
            block = Block(start=rank, size=1)
            loss, _ = self._parts.gradients.of(block, version, self.parameters.slot(slot))
            self.parameters.push(step=version, block=block, slot=slot, loss=loss, integers=b"")
        for server in self._shards.servers:
            share = server.shares.get("job")
            deadline = time.monotonic() + SECONDS
            while any(share.wants(version, Block(start=rank, size=1)) for rank in self._pushes):
                assert time.monotonic() < deadline, "the push did not arrive"
                self.parameters.wait(0.001)


def test_helping_out_computes_only_what_is_missing(shards: Shards) -> None:
    """Rank 2 comes from the other trainer, rank 3 from nobody. Evaluations count no units."""
    absent = Absent(shards, range(2, 3))

    def take() -> range:
        absent.catch_up(trainer.parameters.version)
        return range(2)

    trainer = Trainer(shards, "one", take)
    assert_plain(trainer.start().finish(), shards)
    assert trainer.units == STEPS * 3
    absent.parameters.close()


def test_the_patience_with_a_trainer_that_is_gone_does_not_grow(tmp_path: Path) -> None:
    """Each step in which it helped must not make it wait longer in the next."""
    with running_shards(spec(evaluate_every=STEPS), tmp_path) as shards:
        trainer = Trainer(shards, "one", lambda: range(2))
        taken_up: list[float] = []
        trainer.loop.on_advance = lambda _: taken_up.append(time.monotonic())
        assert_plain(trainer.start().finish(), shards)
        steps = np.diff(taken_up)
        assert len(steps) >= STEPS - 1
        # Steps of 2 ms: the least patience, 0.25 s. Growing by a fifth each time, the last would take 1.5 s and more.
        assert np.median(steps[-3:]) < 2.5 * np.median(steps[:3]), steps


def test_a_helper_can_stand_in_for_any_number_of_ranks(tmp_path: Path) -> None:
    """More missing ranks than a link has gradient buffers."""
    wide = spec(world_size=600, batch_size=1, steps=2, evaluate_every=2)
    with running_shards(wide, tmp_path) as shards:
        trainer = Trainer(shards, "one", lambda: range(1)).start()
        assert_plain(trainer.finish(), shards)
        assert trainer.units == 2 * 600
