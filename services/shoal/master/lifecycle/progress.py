"""How far an attempt is: the committed steps' losses, evaluations and speed, from shard 0's answers. In memory."""

from array import array
from collections import deque
from dataclasses import dataclass, field

from shoal.master.clients.shards import ShardProgress
from shoal.master.store.base import Evaluation, Summary


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgressChange:
    """What one answer brought. `steps` and `samples` were committed since the answer before."""

    steps: int
    samples: int
    evaluations: bool
    any: bool


@dataclass(kw_only=True, slots=True)
class ProgressLog:
    """Of one attempt. `losses[i]` is step i's; NaN where none was told."""

    rate_window_seconds: float
    loss_steps_kept: int
    version: int = 0
    total_steps: int = 0
    samples: int = 0
    last_loss: float = 0.0
    started: bool = False
    from_zero: bool = True  # false: what the first answer tells was committed by others before
    evaluations: tuple[Evaluation, ...] = ()
    losses: "array[float]" = field(default_factory=lambda: array("d"))
    _marks: deque[tuple[float, int, int]] = field(default_factory=deque)  # (monotonic seconds, samples, version)

    def add(self, answer: ShardProgress, *, now: float) -> ProgressChange:
        """Takes in an answer. A version below the known one means that the job began again."""
        if answer.version < self.version:
            del self.losses[answer.version :]
            self._marks.clear()
            self.from_zero = True
        counts = self.from_zero or bool(self._marks)
        other_evaluations = answer.evaluations != self.evaluations
        change = ProgressChange(
            steps=max(0, answer.version - self.version) if counts else 0,
            samples=max(0, answer.samples - self.samples) if counts else 0,
            evaluations=other_evaluations,
            any=(answer.version, answer.samples) != (self.version, self.samples) or other_evaluations,
        )
        self.version = answer.version
        self.total_steps = answer.total_steps
        self.samples = answer.samples
        self.started = answer.started
        self.evaluations = answer.evaluations
        for step, loss in answer.losses:
            self.last_loss = loss
            if step >= self.loss_steps_kept:
                continue
            if step >= len(self.losses):
                self.losses.extend([float("nan")] * (step + 1 - len(self.losses)))
            self.losses[step] = loss
        self._marks.append((now, answer.samples, answer.version))
        while len(self._marks) > 2 and self._marks[1][0] <= now - self.rate_window_seconds:
            self._marks.popleft()
        return change

    def samples_per_second(self, *, now: float) -> float:
        """Over the last window; 0 when nothing came in it."""
        return self._rate(1, now)

    def steps_per_second(self, *, now: float) -> float:
        """Over the last window; 0 when nothing came in it."""
        return self._rate(2, now)

    def measured_seconds(self, *, now: float) -> float:
        """How much of the past the rates are of."""
        return max(now, self._marks[-1][0]) - self._marks[0][0] if self._marks else 0.0

    def _rate(self, what: int, now: float) -> float:
        if len(self._marks) < 2 or now - self._marks[-1][0] > 2 * self.rate_window_seconds:
            return 0.0
        seconds = self.measured_seconds(now=now)
        return (self._marks[-1][what] - self._marks[0][what]) / seconds if seconds > 0 else 0.0

    @property
    def summary(self) -> Summary:
        return Summary(step=self.version, total_steps=self.total_steps, samples=self.samples, loss=self.last_loss)
