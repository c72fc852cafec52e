import pytest

from shoal.process.clock import FakeClock
from shoal.sdk.retrying import LONGEST_SECONDS, TELL_AFTER_SECONDS, Patience


class Heard:
    def __init__(self) -> None:
        self.events: list[tuple[str, float] | str] = []

    def waiting(self, reason: str, seconds: float) -> None:
        self.events.append((reason, seconds))

    def answers(self) -> None:
        self.events.append("answers")


def pauses(patience: Patience, clock: FakeClock) -> list[float]:
    """All of an absence."""
    made = []
    while (pause := patience.pause_seconds("gone")) is not None:
        made.append(pause)
        clock.advance(pause)
    return made


def test_pauses_grow_and_end_with_the_budget():
    clock = FakeClock()
    made = pauses(Patience(clock, 60.0), clock)
    assert sum(made) == pytest.approx(60.0)
    assert max(made) <= LONGEST_SECONDS
    assert made[0] < 0.1
    assert 120 <= len(made) <= 260


def test_an_answer_makes_the_budget_whole_again():
    clock = FakeClock()
    patience = Patience(clock, 10.0)
    assert patience.pause_seconds("gone") is not None
    clock.advance(9)
    patience.answered()
    assert sum(pauses(patience, clock)) == pytest.approx(10.0)


def test_a_budget_may_run_from_the_question():
    clock = FakeClock()
    patience = Patience(clock, 10.0)
    patience.asked()
    clock.advance(11)  # the first try alone
    assert patience.pause_seconds("gone") is None


def test_a_short_absence_is_nobodys_business():
    clock, heard = FakeClock(), Heard()
    patience = Patience(clock, 60.0, heard)
    patience.pause_seconds("gone")
    clock.advance(TELL_AFTER_SECONDS / 2)
    patience.pause_seconds("gone")
    patience.answered()
    assert heard.events == []


def test_a_long_absence_is_told_once_and_so_is_its_end():
    clock, heard = FakeClock(), Heard()
    patience = Patience(clock, 60.0, heard)
    for _ in range(2):
        patience.pause_seconds("gone")
        clock.advance(TELL_AFTER_SECONDS)
        for _ in range(3):
            patience.pause_seconds("gone")
        patience.answered()
        patience.answered()
    assert heard.events == [("gone", 59.0), "answers"] * 2
