"""Schedules against closed forms and against torch.optim.lr_scheduler."""

import math

import pydantic
import pytest
import torch
from torch.optim import lr_scheduler

from shoal.optim.schedules import ConstantSchedule, CosineSchedule, ScheduleSpec, StepSchedule, factor

TOTAL = 60


def by_torch(schedule: ScheduleSpec) -> list[float]:
    """The factors that torch's schedulers apply, step by step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    warmup = schedule.warmup_steps
    after: lr_scheduler.LRScheduler
    if isinstance(schedule, StepSchedule):
        after = lr_scheduler.StepLR(optimizer, schedule.step_size, schedule.gamma)
    elif isinstance(schedule, CosineSchedule):
        after = lr_scheduler.CosineAnnealingLR(optimizer, T_max=TOTAL - warmup, eta_min=schedule.final)
    else:
        after = lr_scheduler.ConstantLR(optimizer, factor=1.0)
    scheduler = after
    if warmup:
        linear = lr_scheduler.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
        scheduler = lr_scheduler.SequentialLR(optimizer, [linear, after], milestones=[warmup])
    rates = []
    for _ in range(TOTAL):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")  # torch's own SequentialLR
@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize(
    "schedule",
    [
        ConstantSchedule(),
        StepSchedule(step_size=10, gamma=0.5),
        StepSchedule(step_size=1, gamma=0.97),
        CosineSchedule(),
        CosineSchedule(final=0.1),
    ],
    ids=str,
)
def test_factors_are_torchs(schedule: ScheduleSpec, warmup: int) -> None:
    schedule = schedule.model_copy(update={"warmup_steps": warmup})
    ours = [factor(schedule, step=step, total_steps=TOTAL) for step in range(TOTAL)]
    assert ours == pytest.approx(by_torch(schedule), rel=1e-12, abs=1e-12)


def test_warm_up_is_linear_and_ends_at_one() -> None:
    schedule = ConstantSchedule(warmup_steps=3)
    assert [factor(schedule, step=s, total_steps=9) for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_step_decays_after_every_step_size() -> None:
    schedule = StepSchedule(step_size=2, gamma=0.5, warmup_steps=1)
    assert [factor(schedule, step=s, total_steps=9) for s in range(6)] == [0.5, 1.0, 1.0, 0.5, 0.5, 0.25]


@pytest.mark.parametrize("step", range(11))
def test_cosine_has_its_closed_form(step: int) -> None:
    expected = 0.2 + 0.8 * (1 + math.cos(math.pi * step / 10)) / 2
    assert factor(CosineSchedule(final=0.2), step=step, total_steps=10) == expected


def test_cosine_ends_and_stays_at_its_final_fraction() -> None:
    for step in (10, 11, 1000):
        assert factor(CosineSchedule(final=0.2), step=step, total_steps=10) == pytest.approx(0.2)


@pytest.mark.parametrize("schedule", [StepSchedule(step_size=2, warmup_steps=9), CosineSchedule(warmup_steps=9)])
def test_a_job_that_ends_within_warm_up_is_fine(schedule: ScheduleSpec) -> None:
    assert [factor(schedule, step=s, total_steps=5) for s in range(5)] == [0.1, 0.2, 0.3, 0.4, 0.5]


@pytest.mark.parametrize(
    "values",
    [
        {"name": "step"},
        {"name": "step", "step_size": 0},
        {"name": "step", "step_size": 5, "gamma": 0.0},
        {"name": "cosine", "final": 1.5},
        {"name": "cosine", "warmup_steps": -1},
        {"name": "constant", "gamma": 0.5},
        {"name": "linear"},
    ],
    ids=str,
)
def test_wrong_schedules_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(pydantic.ValidationError):
        pydantic.TypeAdapter(ScheduleSpec).validate_python(values)
