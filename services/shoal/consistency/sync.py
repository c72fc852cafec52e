"""The synchronous mode: a step is applied when every rank's unit is in, each exactly once."""

from shoal.consistency.verdict import TAKE, Outcome, Verdict
from shoal.core.tree import Block, Cover


def judge_push(*, step: int, block: Block, version: int, cover: Cover) -> Verdict:
    """A block of ranks at a shard that has applied `version` steps and got `cover` of the next."""
    if block.start >= cover.world_size:
        return Verdict(outcome=Outcome.REJECT, reason=f"block {block} is beyond world size {cover.world_size}")
    if step < version:
        return Verdict(outcome=Outcome.DUPLICATE, reason=f"step {step} is complete, the shard is at {version}")
    if step > version:
        return Verdict(outcome=Outcome.REJECT, reason=f"step {step} is not due, the shard is at {version}")
    if cover.covers(block):
        return Verdict(outcome=Outcome.DUPLICATE, reason=f"block {block} of step {step} is here already")
    return TAKE


def judge_evaluation(*, version: int, block: Block, cover: Cover) -> Verdict:
    """A block's held-out sums for the weights of one version."""
    if block.start >= cover.world_size:
        return Verdict(outcome=Outcome.REJECT, reason=f"block {block} is beyond world size {cover.world_size}")
    if cover.covers(block):
        return Verdict(outcome=Outcome.DUPLICATE, reason=f"block {block} of evaluation {version} is here already")
    return TAKE
