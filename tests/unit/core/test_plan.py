"""The plan: every sample due once per epoch, units as even as can be."""

import hypothesis
import hypothesis.strategies as st
import pytest

from shoal.core.errors import InvalidInput
from shoal.core.plan import Plan, split_evenly


def plan_of(**changes: int | None) -> Plan:
    values: dict[str, int | None] = {
        "world_size": 4,
        "batch_size": 3,
        "accumulation": 2,
        "train_samples": 50,
        "heldout_samples": 10,
        "epochs": 2,
        "steps": None,
        "evaluate_every": None,
    }
    return Plan(**{**values, **changes})  # type: ignore[arg-type]


plans = st.builds(
    plan_of,
    world_size=st.integers(1, 17),
    batch_size=st.integers(1, 9),
    accumulation=st.integers(1, 4),
    train_samples=st.integers(1, 400),
    heldout_samples=st.integers(0, 100),
    epochs=st.integers(1, 3),
)


@hypothesis.given(length=st.integers(0, 300), parts=st.integers(1, 40))
def test_parts_are_contiguous_and_differ_by_at_most_one(length: int, parts: int) -> None:
    ranges = [split_evenly(length, parts, index) for index in range(parts)]
    assert [i for part in ranges for i in part] == list(range(length))
    sizes = [len(part) for part in ranges]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(plan=plans)
def test_every_position_is_due_once_per_epoch(plan: Plan) -> None:
    for epoch in range(plan.epochs or 0):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        units = [plan.unit(step, rank) for step in steps for rank in range(plan.world_size)]
        assert {unit.epoch for unit in units} == {epoch}
        assert [i for unit in units for i in range(unit.first, unit.last)] == list(range(plan.train_samples))


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(plan=plans)
def test_the_units_of_a_step_add_up_to_its_total(plan: Plan) -> None:
    before = 0
    for step in range(plan.total_steps):
        units = [plan.unit(step, rank) for rank in range(plan.world_size)]
        sizes = [unit.samples for unit in units]
        assert {unit.total for unit in units} == {sum(sizes)} == {plan.samples_of(step)}
        assert 1 <= sum(sizes) <= plan.global_batch
        assert max(sizes) <= plan.batch_size * plan.accumulation
        assert max(sizes) - min(sizes) <= 1
        assert plan.samples_before(step) == before
        before += sum(sizes)
    assert before == (plan.epochs or 0) * plan.train_samples


def test_the_last_step_of_an_epoch_is_what_is_left() -> None:
    plan = plan_of()
    assert (plan.global_batch, plan.steps_per_epoch, plan.total_steps) == (24, 3, 6)
    assert [plan.samples_of(step) for step in range(6)] == [24, 24, 2, 24, 24, 2]
    assert [plan.unit(2, rank).samples for rank in range(4)] == [1, 1, 0, 0]


def test_steps_count_across_epochs() -> None:
    plan = plan_of(epochs=None, steps=7)
    assert plan.total_steps == 7
    assert plan.unit(6, 0).epoch == 2
    assert plan.samples_before(7) == 50 + 50 + 24


@hypothesis.given(plan=plans)
def test_every_held_out_sample_is_evaluated_once(plan: Plan) -> None:
    seen = [i for rank in range(plan.world_size) for i in plan.heldout(rank)]
    assert seen == list(range(plan.heldout_samples))


def test_evaluation_is_at_each_epochs_end_or_as_asked() -> None:
    def versions(plan: Plan) -> list[int]:
        return [version for version in range(plan.total_steps + 1) if plan.evaluates_at(version)]

    assert versions(plan_of()) == [3, 6]
    assert versions(plan_of(evaluate_every=4)) == [4, 6]
    assert versions(plan_of(epochs=None, steps=2)) == [2]
    assert versions(plan_of(heldout_samples=0)) == []


@pytest.mark.parametrize("changes", [{"train_samples": 0}, {"steps": 3}, {"epochs": None}])
def test_plans_without_data_or_length_are_refused(changes: dict[str, int | None]) -> None:
    with pytest.raises(InvalidInput):
        plan_of(**changes)
