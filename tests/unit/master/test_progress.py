"""What is known of a running attempt, from the answers of its first shard."""

import math

import pytest

from shoal.master.clients.shards import ShardProgress
from shoal.master.lifecycle.progress import ProgressLog
from shoal.master.store.base import Evaluation


def answer(version, *, first=0, samples=None, evaluations=()):
    return ShardProgress(
        attempt=1,
        version=version,
        total_steps=100,
        samples=8 * version if samples is None else samples,
        losses=tuple((step, 1.0 / (step + 1)) for step in range(first, version)),
        evaluations=evaluations,
        started=True,
        failure="",
    )


@pytest.fixture
def log() -> ProgressLog:
    return ProgressLog(rate_window_seconds=5.0, loss_steps_kept=1_000)


def test_losses_add_up_to_the_whole_curve(log):
    assert log.add(answer(3), now=0.0).steps == 3
    assert log.add(answer(5, first=3), now=1.0).steps == 2
    assert list(log.losses) == [1.0 / (step + 1) for step in range(5)]
    assert (log.summary.step, log.summary.samples, log.summary.loss) == (5, 40, 0.2)


def test_a_loss_that_is_told_twice_counts_once(log):
    log.add(answer(3), now=0.0)
    assert log.add(answer(3), now=1.0).any is False
    assert len(log.losses) == 3


def test_steps_that_nobody_told_are_not_numbers(log):
    log.add(answer(5, first=3), now=0.0)
    assert [math.isnan(loss) for loss in log.losses] == [True, True, True, False, False]


def test_a_job_that_begins_again_forgets_what_comes_again(log):
    log.add(answer(5), now=0.0)
    change = log.add(answer(2, first=2), now=1.0)
    assert (change.steps, log.version, len(log.losses)) == (0, 2, 2)


def test_a_new_evaluation_is_a_change(log):
    evaluation = Evaluation(version=2, accuracy=0.5, loss=1.0)
    assert log.add(answer(2, evaluations=(evaluation,)), now=0.0).evaluations
    assert not log.add(answer(2, evaluations=(evaluation,)), now=0.1).evaluations


def test_losses_beyond_the_bound_are_not_kept_but_the_last_one_is_known(log):
    log.add(answer(1_200), now=0.0)
    assert len(log.losses) == 1_000
    assert log.last_loss == 1.0 / 1_200


def test_the_speed_is_that_of_the_last_seconds(log):
    assert log.samples_per_second(now=0.0) == 0.0
    for second in range(20):
        log.add(answer(second if second < 10 else 10 + (second - 10) * 5), now=float(second))
    assert log.samples_per_second(now=19.0) == pytest.approx(40.0)


def test_the_speed_of_a_job_that_stands_still_falls_to_zero(log):
    log.add(answer(1), now=0.0)
    log.add(answer(2), now=1.0)
    assert log.samples_per_second(now=1.0) == 8.0
    assert log.samples_per_second(now=4.0) == 2.0
    assert log.samples_per_second(now=12.0) == 0.0


def test_steps_of_an_attempt_that_goes_on_from_kept_weights_are_not_counted_twice():
    log = ProgressLog(rate_window_seconds=5.0, loss_steps_kept=1_000, from_zero=False)
    first = log.add(answer(4), now=0.0)
    assert (first.steps, first.samples, first.any) == (0, 0, True)
    assert log.add(answer(5, first=4), now=1.0).steps == 1
