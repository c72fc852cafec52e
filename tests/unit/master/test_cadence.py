"""When a snapshot is due, and at which version, over tables of facts."""

from typing import Any

import pytest

from shoal.jobspec.reading import validate_spec
from shoal.jobspec.spec import SnapshotsSpec, TrainingConfig
from shoal.master.lifecycle.cadence import Facts, Rest, Take, due, never

USUAL = Facts(
    version=100,
    steps_per_second=20.0,
    total_steps=10_000,
    seconds_since_last=5.0,
    last_step=0,
    margin_seconds=0.5,
)


def facts(**changes: Any) -> Facts:
    return Facts(**{**{name: getattr(USUAL, name) for name in Facts.__slots__}, **changes})


STEPS = SnapshotsSpec(every_steps=50)
SECONDS = SnapshotsSpec(every_seconds=4.0)


@pytest.mark.parametrize(
    ("policy", "known", "expected"),
    [
        # By time: as many steps ahead as the margin takes.
        (SECONDS, {}, Take(version=110)),
        (SECONDS, {"seconds_since_last": 3.5}, Rest(seconds=0.5)),
        (SECONDS, {"seconds_since_last": 0.0}, Rest(seconds=1.0)),
        (SECONDS, {"steps_per_second": 0.0}, Take(version=101)),
        (SECONDS, {"steps_per_second": 0.01}, Take(version=101)),
        (SECONDS, {"margin_seconds": 8.0}, Take(version=260)),
        # By steps: the next multiple that is far enough ahead, and not long before.
        (STEPS, {"version": 131}, Take(version=150)),
        (STEPS, {"version": 140}, Take(version=150)),
        (STEPS, {"version": 141}, Rest(seconds=1.0)),  # 150 is too near: the next one is 200
        (STEPS, {"version": 120}, Rest(seconds=0.5)),
        (STEPS, {"version": 0, "last_step": 0}, Rest(seconds=1.0)),
        (STEPS, {"version": 149, "last_step": 150}, Rest(seconds=1.0)),
        (STEPS, {"version": 181, "last_step": 150}, Take(version=200)),
        (STEPS, {"version": 149, "steps_per_second": 0.1}, Take(version=150)),
        (STEPS, {"version": 120, "steps_per_second": 1000.0}, Take(version=650)),
        (SnapshotsSpec(every_steps=1), {"steps_per_second": 0.0}, Take(version=101)),
        # Near the end the finished model comes before it.
        (SECONDS, {"total_steps": 110}, Rest(seconds=1.0)),
        (SECONDS, {"total_steps": 111}, Take(version=110)),
        (SECONDS, {"total_steps": 0}, Take(version=110)),
        (STEPS, {"version": 131, "total_steps": 150}, Rest(seconds=1.0)),
    ],
)
def test_what_is_due(policy: SnapshotsSpec, known: dict[str, Any], expected: Take | Rest) -> None:
    assert due(policy, facts(**known)) == expected


def test_no_version_is_asked_for_that_is_known_to_have_passed() -> None:
    for policy in (STEPS, SECONDS, SnapshotsSpec(every_steps=1), SnapshotsSpec(every_steps=7)):
        for version in range(200):
            for rate in (0.0, 0.3, 3.0, 40.0, 900.0):
                decision = due(policy, facts(version=version, steps_per_second=rate, last_step=version // 2))
                if isinstance(decision, Take):
                    assert decision.version > version
                    assert decision.version % (policy.every_steps or 1) == 0
                else:
                    assert 0 < decision.seconds <= 1.0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"every_steps": None, "every_seconds": 60.0}),
        ({"every_steps": 10}, {"every_steps": 10, "every_seconds": None}),
        ({"every_seconds": 0.5}, {"every_steps": None, "every_seconds": 0.5}),
        ({"every_seconds": 0}, {"every_steps": None, "every_seconds": 0.0}),
        ({"every_steps": 0}, {"every_steps": 0, "every_seconds": None}),
    ],
)
def test_the_policy_of_a_spec(given: dict[str, Any], expected: dict[str, Any]) -> None:
    spec = validate_spec({"model": {"type": "mlp"}, "snapshots": given}).with_defaults(TrainingConfig())
    assert spec.snapshots.model_dump() == expected
    assert never(spec.snapshots) == (0 in (given.get("every_steps"), given.get("every_seconds")))
