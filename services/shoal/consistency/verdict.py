"""What is to be done with a push."""

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    TAKE = "take"  # its gradient counts
    DUPLICATE = "duplicate"  # counted already: acknowledge and drop
    REJECT = "reject"  # it must not count: say why


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    outcome: Outcome
    reason: str


TAKE = Verdict(outcome=Outcome.TAKE, reason="due")
