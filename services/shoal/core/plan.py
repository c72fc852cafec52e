"""The plan of a job: which samples each (step, rank) works on. A pure function of the spec and the data's size.

A step's global batch is world_size * batch_size * accumulation samples; the last one of an epoch is what is left.
It is split over the ranks as evenly as possible, so that in each epoch every sample is due exactly once: nothing is
dropped or repeated. What is left to `data` is only which sample stands at which position of an epoch's shuffle.
"""

from dataclasses import dataclass

from shoal.core.errors import InvalidInput


def split_evenly(length: int, parts: int, index: int) -> range:
    """Part `index` of 0..length-1 cut into `parts` contiguous parts whose sizes differ by at most one."""
    small, larger = divmod(length, parts)
    start = index * small + min(index, larger)
    return range(start, start + small + (1 if index < larger else 0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """The work of one rank in one step: positions [first, last) of the epoch's shuffle, of `total` in the step."""

    step: int
    rank: int
    epoch: int
    first: int
    last: int
    total: int  # samples of the whole step, N; at least 1

    @property
    def samples(self) -> int:
        return self.last - self.first


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    world_size: int
    batch_size: int  # samples of one micro-batch
    accumulation: int  # micro-batches of one unit
    train_samples: int
    heldout_samples: int
    epochs: int | None  # one of `epochs` and `steps` is set
    steps: int | None
    evaluate_every: int | None  # steps; None: at each epoch's end

    def __post_init__(self) -> None:
        if self.train_samples < 1:
            raise InvalidInput("the training split is empty", field="data")
        if (self.epochs is None) == (self.steps is None):
            raise InvalidInput("exactly one of training.epochs and training.steps must be set", field="training")

    @property
    def global_batch(self) -> int:
        return self.world_size * self.batch_size * self.accumulation

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.train_samples // self.global_batch)

    @property
    def total_steps(self) -> int:
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return self.epochs * self.steps_per_epoch

    def samples_of(self, step: int) -> int:
        """N of a step."""
        position = step % self.steps_per_epoch
        return min(self.global_batch, self.train_samples - position * self.global_batch)

    def samples_before(self, step: int) -> int:
        """Samples that contributed in steps 0..step-1."""
        epochs, position = divmod(step, self.steps_per_epoch)
        return epochs * self.train_samples + position * self.global_batch

    def unit(self, step: int, rank: int) -> Unit:
        epoch, position = divmod(step, self.steps_per_epoch)
        total = self.samples_of(step)
        part = split_evenly(total, self.world_size, rank)
        begin = position * self.global_batch
        return Unit(step=step, rank=rank, epoch=epoch, first=begin + part.start, last=begin + part.stop, total=total)

    def heldout(self, rank: int) -> range:
        """The held-out samples that a rank evaluates."""
        return split_evenly(self.heldout_samples, self.world_size, rank)

    def evaluates_at(self, version: int) -> bool:
        """Is there an evaluation of the weights at this version? Always of the last one."""
        if self.heldout_samples == 0 or version == 0:
            return False
        every = self.evaluate_every or self.steps_per_epoch
        return version % every == 0 or version == self.total_steps
