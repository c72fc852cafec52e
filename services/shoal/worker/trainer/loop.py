"""The training loop: what is due at this version, my ranks' part of it, then wait or help out."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from shoal.core.job import Results
from shoal.core.plan import Plan
from shoal.core.tree import Block, Cover, blocks_of
from shoal.models.folder import serialize
from shoal.worker.trainer.gradients import Gradients
from shoal.worker.trainer.parameters import Parameters
from shoal.worker.trainer.replica import Replica

LEAST_PATIENCE_SECONDS = 0.25  # before the work of others is done again: well above a healthy worker's jitter
PATIENCE_STEPS = 2.0  # ... or this many times what a step took lately
LONGEST_WAIT_SECONDS = 1.0  # then it looks around: the agent wants a sign of life
_SMOOTHING = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A training step, or the evaluation of a version."""

    version: int
    evaluation: bool


class TrainingLoop:
    """`take_ranks` returns the ranks that this worker hosts now; they may change between any two units.

    While `may_work` is false, the loop holds still: it listens to the shards and does nothing.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        parameters: Parameters,
        gradients: Gradients,
        replica: Replica,
        target_accuracy: float | None,
        take_ranks: Callable[[], range],
        may_work: Callable[[], bool] = lambda: True,
    ) -> None:
        self._plan = plan
        self._parameters = parameters
        self._gradients = gradients
        self._replica = replica
        self._target_accuracy = target_accuracy
        self._take_ranks = take_ranks
        self._may_work = may_work
        self.on_advance: Callable[[int], None] = lambda _: None  # told of each version that the loop takes up
        self.on_turn: Callable[[int], None] = lambda _: (
            None
        )  # told of the version at hand, again and again: a sign of life
        self.wait_seconds: list[float] = []  # for whoever reports them, and empties the list
        self._last_push = 0.0
        self._task: Task | None = None
        self._done = Cover(world_size=plan.world_size)  # blocks of the task that this trainer has handed in
        self._slots_used = 0
        self._helped = 0  # units or blocks of others that were computed in this task
        self._began = time.monotonic()
        self._own_done: float | None = None  # when this trainer's own part of the task was handed in
        self._step_seconds = 0.0

    def run(self) -> Results:
        """Trains to the end. Raises what `Parameters` raises."""
        while True:
            while not self._may_work():
                self._parameters.wait(LEAST_PATIENCE_SECONDS)
            task = self._next_task()
            if task is None:
                return self._results()
            if task != self._task and not self._begin(task):
                continue
            block = next(self._due(task, self._take_ranks()), None)
            if block is not None:
                self._do(task, block)
                self._parameters.wait(0)
                continue
            self._await_or_help(task)

    def _next_task(self) -> Task | None:
        """None when the job is done."""
        version = self._parameters.version
        while version < 0:
            self._take_ranks()
            self._parameters.wait(LEAST_PATIENCE_SECONDS)
            version = self._parameters.version
            self.on_turn(max(0, version))
        if self._plan.evaluates_at(version) and version not in self._parameters.evaluations:
            return Task(version=version, evaluation=True)
        if version >= self._plan.total_steps or self._reached_target(version):
            return None
        return Task(version=version, evaluation=False)

    def _reached_target(self, version: int) -> bool:
        evaluated = self._parameters.evaluations.get(version)
        return (
            evaluated is not None and self._target_accuracy is not None and evaluated.accuracy >= self._target_accuracy
        )

    def _begin(self, task: Task) -> bool:
        """Loads the version. False if the shards have gone on meanwhile."""
        flat = self._parameters.flat(task.version)
        if flat is None:
            self._parameters.wait(LEAST_PATIENCE_SECONDS)
            return False
        now = time.monotonic()
        if self._task is not None:
            self.wait_seconds.append(now - self._last_push)
            # A step in which it helped lasted as long as its patience: taken as it is, that would grow for ever.
            seconds = (self._own_done if self._helped and self._own_done else now) - self._began
            self._step_seconds = (
                seconds
                if not self._step_seconds
                else (self._step_seconds + _SMOOTHING * (seconds - self._step_seconds))
            )
        self._began = now
        self._helped, self._own_done = 0, None
        self._gradients.load(flat, self._parameters.integers)
        self._task = task
        self._done = Cover(world_size=self._plan.world_size)
        self._slots_used = 0
        self._parameters.refused.clear()
        self._parameters.missing = None
        self.on_advance(task.version)
        self.on_turn(task.version)
        return True

    def _due(self, task: Task, ranks: Iterable[int]) -> Iterator[Block]:
        """The blocks of `ranks` that this trainer has not handed in."""
        for step, block in self._parameters.refused:
            if step == task.version:
                self._done.present = {have for have in self._done.present if not block.contains(have)}
        self._parameters.refused.clear()
        have = {rank for block in self._done.present for rank in block.ranks(self._plan.world_size)}
        left = [rank for rank in ranks if rank not in have]
        while left:
            run = 1
            while run < len(left) and left[run] == left[0] + run:
                run += 1
            yield from blocks_of(range(left[0], left[0] + run), self._plan.world_size)
            left = left[run:]

    def _do(self, task: Task, block: Block) -> None:
        if task.evaluation:
            sums = self._gradients.heldout(block)
            self._parameters.push_evaluation(version=task.version, block=block, sums=sums)
        else:
            slot, self._slots_used = self._slots_used, self._slots_used + 1
            loss, integers = self._gradients.of(block, task.version, self._parameters.slot(slot))
            self._parameters.push(step=task.version, block=block, slot=slot, loss=loss, integers=integers)
        self._last_push = time.monotonic()
        if not self._done.covers(block):
            self._done.insert(block)
        self.on_turn(task.version)

    def _await_or_help(self, task: Task) -> None:
        """Waits for news. When others are late, does a part of their work: the first copy in counts.

        First one unit, then two, four, ...: each needs a gradient buffer of its own, and a shard has few for a link.
        """
        if self._own_done is None:
            self._own_done = time.monotonic()
        patience = max(LEAST_PATIENCE_SECONDS, PATIENCE_STEPS * self._step_seconds)
        waited = time.monotonic() - self._began
        self.on_turn(task.version)
        if waited < patience:
            self._parameters.wait(min(patience - waited, LONGEST_WAIT_SECONDS))
            return
        missing = self._parameters.missing
        if missing is None or (missing.step, missing.evaluation) != (task.version, task.evaluation):
            self._parameters.ask_missing(step=task.version, evaluation=task.evaluation)
            self._parameters.wait(LEAST_PATIENCE_SECONDS)
            return
        self._parameters.missing = None
        mine = self._take_ranks()
        late = list(self._due(task, missing.ranks))
        if late:  # helpers start at different places
            block = late[mine.start % len(late)]
            self._do(task, Block(start=block.start, size=min(block.size, 1 << self._helped)))
            self._helped += 1
        self._parameters.wait(0 if late else LEAST_PATIENCE_SECONDS)

    def _results(self) -> Results:
        version = self._parameters.version
        flat = self._parameters.flat(version)
        assert flat is not None, "the last version is not overwritten"
        self._replica.load(flat, self._parameters.integers)
        tensors = {name: tensor.numpy() for name, tensor in self._replica.tensors().items()}
        evaluated = self._parameters.evaluations.get(version)
        train_loss = self._parameters.loss
        return Results(
            success=True,
            accuracy=evaluated.accuracy if evaluated else 0.0,
            loss=evaluated.loss if evaluated else train_loss,
            metrics={"train_loss": train_loss} | ({"heldout_samples": float(evaluated.samples)} if evaluated else {}),
            weights_sha256=hashlib.sha256(serialize(tensors)).hexdigest(),
            steps=version,
            samples=self._plan.samples_before(version),
        )
