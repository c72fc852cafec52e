import pytest

from shoal.consistency import single_writer, sync
from shoal.consistency.verdict import Outcome
from shoal.core.tree import Block, Cover


@pytest.mark.parametrize(
    ("step", "start", "size", "outcome", "reason"),
    [
        (7, 0, 1, Outcome.TAKE, "due"),
        (7, 4, 4, Outcome.TAKE, "due"),
        (6, 0, 1, Outcome.DUPLICATE, "step 6 is complete"),
        (8, 0, 1, Outcome.REJECT, "step 8 is not due"),
        (7, 2, 1, Outcome.DUPLICATE, "here already"),
        (7, 2, 2, Outcome.DUPLICATE, "here already"),
        (7, 0, 4, Outcome.TAKE, "due"),  # contains what is here
        (7, 8, 1, Outcome.REJECT, "beyond world size"),
    ],
)
def test_a_push_counts_once_and_only_when_due(step: int, start: int, size: int, outcome: Outcome, reason: str) -> None:
    cover = Cover(world_size=8, present={Block(start=2, size=2)})
    verdict = sync.judge_push(step=step, block=Block(start=start, size=size), version=7, cover=cover)
    assert verdict.outcome is outcome
    assert reason in verdict.reason


def test_an_evaluation_counts_once_per_rank() -> None:
    cover = Cover(world_size=2, present={Block(start=0, size=1)})
    assert sync.judge_evaluation(version=3, block=Block(start=0, size=1), cover=cover).outcome is Outcome.DUPLICATE
    assert sync.judge_evaluation(version=3, block=Block(start=1, size=1), cover=cover).outcome is Outcome.TAKE
    assert sync.judge_evaluation(version=3, block=Block(start=2, size=1), cover=cover).outcome is Outcome.REJECT


@pytest.mark.parametrize(("pushed", "outcome"), [(4, Outcome.REJECT), (5, Outcome.TAKE), (6, Outcome.REJECT)])
def test_a_single_writer_pushes_at_the_version_it_pulled(pushed: int, outcome: Outcome) -> None:
    verdict = single_writer.judge_push(pushed=pushed, version=5)
    assert verdict.outcome is outcome
    assert "5" in verdict.reason or outcome is Outcome.TAKE
