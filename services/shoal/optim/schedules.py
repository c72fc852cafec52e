"""Learning-rate schedules: pure functions of the step.

Each begins with `warmup_steps` steps of linear warm-up: step s has the factor (s + 1) / (warmup_steps + 1), so that
the first step is not lost to a factor of 0 and step `warmup_steps` is the first with the full rate. The schedule
itself counts from there. In torch: SequentialLR of LinearLR(start_factor=1 / (warmup_steps + 1)) and StepLR or
CosineAnnealingLR.
"""

import abc
import math
from typing import Annotated, Literal

import pydantic


class _Schedule(pydantic.BaseModel, abc.ABC):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str
    warmup_steps: int = pydantic.Field(0, ge=0, description="steps of linear warm-up in front")

    @abc.abstractmethod
    def after_warmup(self, position: int, length: int) -> float:
        """The factor `position` steps after warm-up, of `length` steps that are left after it."""


class ConstantSchedule(_Schedule):
    """The base learning rate throughout."""

    name: Literal["constant"] = "constant"

    def after_warmup(self, position: int, length: int) -> float:  # noqa: ARG002
        return 1.0


class StepSchedule(_Schedule):
    """The learning rate times `gamma` after every `step_size` steps."""

    name: Literal["step"] = "step"
    step_size: int = pydantic.Field(ge=1, description="steps between two decays")
    gamma: float = pydantic.Field(0.1, gt=0, le=1, description="factor of one decay")

    def after_warmup(self, position: int, length: int) -> float:  # noqa: ARG002
        return self.gamma ** (position // self.step_size)


class CosineSchedule(_Schedule):
    """Half a cosine from the base learning rate down to `final` of it at the end of the job.

    Loshchilov and Hutter 2016, arXiv:1608.03983, equation 5, without restarts.
    """

    name: Literal["cosine"] = "cosine"
    final: float = pydantic.Field(0.0, ge=0, le=1, description="fraction of the base learning rate at the end")

    def after_warmup(self, position: int, length: int) -> float:
        done = min(position / length, 1.0)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * done)) / 2


ScheduleSpec = Annotated[ConstantSchedule | StepSchedule | CosineSchedule, pydantic.Field(discriminator="name")]


def factor(schedule: ScheduleSpec, *, step: int, total_steps: int) -> float:
    """By what to multiply the base learning rate in the update from version `step` to `step` + 1."""
    if step < schedule.warmup_steps:
        return (step + 1) / (schedule.warmup_steps + 1)
    return schedule.after_warmup(step - schedule.warmup_steps, max(total_steps - schedule.warmup_steps, 1))
