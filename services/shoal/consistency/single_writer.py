"""One client trains alone (`trainers: external`): each push stands for all ranks and is applied at once.

A push computed at another version than the layer's is a lost update or a repetition, never an answer.
"""

from shoal.consistency.verdict import TAKE, Outcome, Verdict


def judge_push(*, pushed: int, version: int) -> Verdict:
    if pushed < version:
        return Verdict(
            outcome=Outcome.REJECT, reason=f"computed at version {pushed}, the layer is at {version}: pull it first"
        )
    if pushed > version:
        return Verdict(outcome=Outcome.REJECT, reason=f"version {pushed} does not exist, the layer is at {version}")
    return TAKE
