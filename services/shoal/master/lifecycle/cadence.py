"""When the next snapshot is due, and at which version. Pure.

A shard copies itself when it commits a version, so it must hear of the version before it comes there: the master asks
for one that lies ahead of what it knows, by as many steps as the shards take in `margin_seconds`.
"""

import math
from dataclasses import dataclass

from shoal.jobspec.spec import SnapshotsSpec

LONGEST_REST_SECONDS = 1.0  # between looks while nothing is due: speeds change


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """A running attempt as far as snapshots need to know."""

    version: int  # committed, when shard 0 last told
    steps_per_second: float  # 0: not known
    total_steps: int  # 0: not known
    seconds_since_last: float  # since the last snapshot was asked for, or the attempt began
    last_step: int  # of the last snapshot, or of one that was missed; 0: none yet
    margin_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Take:
    """Ask the shards for a snapshot at this version."""

    version: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Rest:
    """Look again after so long."""

    seconds: float


def never(policy: SnapshotsSpec) -> bool:
    """Of a policy with defaults: one of its two measures is set."""
    return not policy.every_steps and not policy.every_seconds


def due(policy: SnapshotsSpec, facts: Facts) -> Take | Rest:
    """For a policy that wants snapshots at all."""
    margin = max(1, math.ceil(facts.steps_per_second * facts.margin_seconds))
    if policy.every_steps:
        every = policy.every_steps
        version = (max(facts.version + margin - 1, facts.last_step) // every + 1) * every
        ahead = version - facts.version - 2 * margin
        if ahead > 0:  # nearer to it: a copy that is waited for holds memory
            wait = ahead / facts.steps_per_second if facts.steps_per_second else LONGEST_REST_SECONDS
            return Rest(seconds=min(wait, LONGEST_REST_SECONDS))
    else:
        assert policy.every_seconds
        left = policy.every_seconds - facts.seconds_since_last
        if left > 0:
            return Rest(seconds=min(left, LONGEST_REST_SECONDS))
        version = max(facts.version, facts.last_step) + margin
    if facts.total_steps and version >= facts.total_steps:
        return Rest(seconds=LONGEST_REST_SECONDS)  # the finished model comes before
    return Take(version=version)
