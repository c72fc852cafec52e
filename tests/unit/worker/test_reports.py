"""What a trainer tells its agent: everything in the end, and never more than the pipe holds."""

import os
from collections import Counter
from types import SimpleNamespace
from typing import Any

from shoal.worker.control import Advanced, from_line
from shoal.worker.trainer.app import Control, Reporter

PIPE_BYTES = 1 << 16


class Pipes:
    """A trainer's control, and the agent's end of the pipe on which it reports."""

    def __init__(self) -> None:
        self._reports, self._outbound = os.pipe()
        self._inbound, self._grants = os.pipe()
        os.set_blocking(self._reports, False)
        self.control = Control(self._inbound, self._outbound)

    def __enter__(self) -> "Pipes":
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (self._reports, self._outbound, self._inbound, self._grants):
            os.close(fd)

    def read(self) -> bytes:
        """All that is in the pipe."""
        try:
            return os.read(self._reports, 1 << 20)
        except BlockingIOError:
            return b""


def training_of(*, units: int, steps: int) -> Any:
    """The three parts of a Training that a report is made of."""
    return SimpleNamespace(
        gradients=SimpleNamespace(seconds_per_unit=1 / 3, unit_seconds=[number / 7 for number in range(units)]),
        loop=SimpleNamespace(wait_seconds=[number / 3 for number in range(steps)]),
        parameters=SimpleNamespace(pushed=Counter(grpc=units), pushed_bytes=Counter(grpc=units)),
    )


def reports_in(data: bytes) -> list[Advanced]:
    messages = [from_line(line) for line in data.splitlines()]
    reports = [message for message in messages if isinstance(message, Advanced)]
    assert len(reports) == len(messages)
    return reports


def test_an_agent_that_reads_nothing_stops_no_trainer_and_hears_everything_later() -> None:
    training = training_of(units=12_345, steps=2_345)
    units, waits = list(training.gradients.unit_seconds), list(training.loop.wait_seconds)
    with Pipes() as pipes:
        reporter = Reporter(pipes.control, training)
        for version in range(1000):  # the test would hang here
            reporter.turned(version)
        data = pipes.read()
        assert len(data) < PIPE_BYTES - 4096, "there is no room for the last words"
        first = reports_in(data)
        assert [report.step for report in first] == [0]
        later = []
        for version in range(1000, 1100):
            reporter.turned(version)
            later += reports_in(pipes.read())
        assert [report.step for report in later][:3] == [1000, 1001, 1002], "the backlog waits for nothing"
    reports = first + later
    assert [seconds for report in reports for seconds in report.unit_seconds] == units
    assert [seconds for report in reports for seconds in report.wait_seconds] == waits
    assert sum(pushed.blocks for report in reports for pushed in report.pushed) == 12_345


def test_all_that_has_not_been_told_is_told_at_the_end() -> None:
    training = training_of(units=1_500, steps=1_200)
    units = list(training.gradients.unit_seconds)
    with Pipes() as pipes:
        Reporter(pipes.control, training).tell_all(7)
        reports = reports_in(pipes.read())
    assert [report.step for report in reports] == [7, 7]
    assert [seconds for report in reports for seconds in report.unit_seconds] == units
