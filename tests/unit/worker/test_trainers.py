"""Trainer processes, real ones: how their ends are told, and that none outlives who started it."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psutil
import pytest

from shoal.core.job import Grant
from shoal.worker.control import REPORT_FD_VARIABLE, Advanced, Assignment, Failed, Finished
from shoal.worker.trainers import LAST_LINES, Crashed, Ending, TrainerProcess, WarmTrainers
from tests.shards import Shards, running_shards, spec_of

SECONDS = 60.0


@contextlib.contextmanager
def digits_shards(folder: Path, *, world_size: int = 4, steps: int = 1_000_000) -> Iterator[Shards]:
    spec = spec_of(training={"world_size": world_size, "batch_size": 4, "steps": steps, "evaluate_every": 10**6})
    with running_shards(spec, folder) as shards:
        yield shards


def assignment_of(grant: Grant) -> Assignment:
    return Assignment(grant=grant, worker_id="worker", incarnation="incarnation")


@pytest.fixture
async def trainer() -> AsyncIterator[TrainerProcess]:
    started = await TrainerProcess.start(data_roots=())
    yield started
    await started.stop()


class Followed:
    """`follow` as a task, and what it was told."""

    def __init__(self, trainer: TrainerProcess) -> None:
        self.advances: list[Advanced] = []
        self.task = asyncio.create_task(trainer.follow(self.advances.append))

    async def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, "it did not come to that"
            assert not self.task.done(), self.task.result()
            await asyncio.sleep(0.02)

    async def ending(self) -> Ending:
        return await asyncio.wait_for(self.task, SECONDS)


@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGKILL, "SIGKILL"), (signal.SIGSEGV, "SIGSEGV"), (signal.SIGRTMIN + 3, "signal 37")],
)
async def test_a_crash_by_a_signal_is_described_by_its_name_and_the_last_lines(
    trainer: TrainerProcess, tmp_path: Path, number: int, name: str
) -> None:
    with digits_shards(tmp_path) as shards:
        trainer.assign(assignment_of(shards.grant()))
        followed = Followed(trainer)
        await followed.until(lambda: followed.advances)
        os.kill(trainer.pid, number)
        ending = await followed.ending()
    assert isinstance(ending, Crashed)
    assert ending.returncode == -number
    assert ending.by_signal
    first, *rest = ending.describe().splitlines()
    assert first == f"the trainer was killed by {name}; its last lines:"
    assert any("training" in line and "job_id=job" in line for line in rest), rest
    assert [entry.text for entry in trainer.entries][-len(rest) :] == rest
    assert not trainer.alive


async def test_a_crash_by_itself_is_described_by_its_exit_code_and_the_last_lines(trainer: TrainerProcess) -> None:
    assert trainer._process.stdin is not None
    trainer._process.stdin.write(b"nonsense\n")
    ending = await Followed(trainer).ending()
    assert isinstance(ending, Crashed)
    assert (ending.returncode, ending.by_signal) == (1, False)
    described = ending.describe().splitlines()
    assert described[0] == "the trainer ended with exit code 1; its last lines:"
    assert "control message is not understood" in described[-1]
    assert len(described) <= LAST_LINES + 1


async def test_a_job_that_finishes_is_told_with_all_its_units(trainer: TrainerProcess, tmp_path: Path) -> None:
    """The last report comes with the end, however short the job was."""
    with digits_shards(tmp_path, steps=7) as shards:
        trainer.assign(assignment_of(shards.grant()))
        followed = Followed(trainer)
        ending = await followed.ending()
    assert isinstance(ending, Finished)
    assert ending.results.steps == 7
    assert followed.advances[-1].step == 7
    assert sum(len(advanced.unit_seconds) for advanced in followed.advances) == 7 * 4
    pushes = {entry.transport: 0 for advanced in followed.advances for entry in advanced.pushed}
    assert pushes.keys() == {"shared_memory"}
    assert sum(entry.blocks for advanced in followed.advances for entry in advanced.pushed) == 7 * 2
    assert await asyncio.wait_for(trainer._process.wait(), SECONDS) == 0


async def test_a_report_of_many_thousand_units_is_understood(trainer: TrainerProcess, tmp_path: Path) -> None:
    with digits_shards(tmp_path, world_size=8_000, steps=1) as shards:
        trainer.assign(assignment_of(shards.grant()))
        followed = Followed(trainer)
        ending = await followed.ending()
    assert isinstance(ending, Finished)
    assert sum(len(advanced.unit_seconds) for advanced in followed.advances) == 8_000


async def test_a_refused_job_is_told_as_one_line(trainer: TrainerProcess, tmp_path: Path) -> None:
    spec = spec_of(data={"source": "file:///etc/passwd.csv"})
    with running_shards(spec, tmp_path) as shards:
        trainer.assign(assignment_of(shards.grant()))
        ending = await Followed(trainer).ending()
    assert isinstance(ending, Failed)
    assert ending.fatal
    assert ending.error == "data.source: /etc/passwd.csv is outside the data roots; roots: none is configured"
    assert [entry.text for entry in trainer.entries] == [f"error: {ending.error}"]


async def test_stopping_is_no_crash(trainer: TrainerProcess) -> None:
    followed = Followed(trainer)
    await trainer.stop()
    ending = await followed.ending()
    assert not isinstance(ending, Crashed | Failed)
    assert not trainer.alive


# -- nobody is outlived ----------------------------------------------------------------------------------------------


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def await_gone(pid: int, *, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not gone(pid):
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.02)


async def test_closing_its_input_ends_a_trainer_that_waits(trainer: TrainerProcess) -> None:
    followed = Followed(trainer)
    assert trainer._process.stdin is not None
    trainer._process.stdin.close()
    ending = await followed.ending()
    assert ending == Crashed(returncode=0, last_lines=())


async def test_closing_its_input_ends_a_trainer_that_trains(trainer: TrainerProcess, tmp_path: Path) -> None:
    with digits_shards(tmp_path) as shards:
        trainer.assign(assignment_of(shards.grant()))
        followed = Followed(trainer)
        await followed.until(lambda: followed.advances)
        assert trainer._process.stdin is not None
        trainer._process.stdin.close()
        ending = await followed.ending()
    assert isinstance(ending, Crashed)
    assert ending.returncode == 0
    assert not any("Traceback" in line for line in ending.last_lines), ending.last_lines


PARENT = """
import os, subprocess, sys
inbound, outbound = int(sys.argv[1]), int(sys.argv[2])
trainer = subprocess.Popen(
    [sys.executable, "-m", "shoal.worker.trainer"],
    stdin=inbound,
    pass_fds=(outbound,),
    start_new_session=True,
    env=os.environ | {"SHOAL_DIE_WITH_PARENT": str(os.getpid())},  # as an agent does
)
print(trainer.pid, flush=True)
trainer.wait()
"""


def test_killing_its_parent_kills_a_trainer_whose_input_stays_open() -> None:
    """By the kernel alone: the pipe that would tell it is held open here, and it leads a session of its own."""
    inbound, keep_open = os.pipe()
    reports, outbound = os.pipe()
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(inbound), str(outbound)],
        pass_fds=(inbound, outbound),
        stdout=subprocess.PIPE,
        env=os.environ | {REPORT_FD_VARIABLE: str(outbound)},
    )
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert b"ready" in os.read(reports, 100)  # it is up, and waits
        assert not gone(pid)
        parent.kill()
        parent.wait(timeout=SECONDS)
        await_gone(pid)
    finally:
        parent.kill()
        parent.wait(timeout=SECONDS)
        parent.stdout.close()  # type: ignore[union-attr]
        for descriptor in (inbound, keep_open, reports, outbound):
            os.close(descriptor)


# -- warm ones -------------------------------------------------------------------------------------------------------


def children() -> set[int]:
    return {
        child.pid
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "shoal.worker.trainer" in child.cmdline()
    }


async def test_warm_trainers_are_kept_handed_out_and_closed() -> None:
    before = children()
    warm = WarmTrainers(count=2, data_roots=())
    await warm.refill()
    ready = children() - before
    assert len(ready) == 2
    taken = await warm.take()
    assert taken.pid in ready
    await warm.refill()
    assert len(children() - before) == 3
    await warm.close()
    assert children() - before == {taken.pid}
    await taken.stop()
    await taken.follow(lambda _: None)
    assert children() == before


async def test_refills_at_the_same_time_start_no_process_that_nobody_knows() -> None:
    """Two jobs that end together both refill."""
    before = children()
    warm = WarmTrainers(count=1, data_roots=())
    await asyncio.gather(warm.refill(), warm.refill(), warm.refill())
    assert len(children() - before) == 1
    await asyncio.gather(warm.refill(), warm.close())
    assert children() == before


async def test_a_warm_trainer_that_died_is_not_handed_out() -> None:
    warm = WarmTrainers(count=1, data_roots=())
    await warm.refill()
    (pid,) = (trainer.pid for trainer in warm._ready)
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + SECONDS
    while warm._ready[0].alive:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    taken = await warm.take()
    assert taken.pid != pid
    assert taken.alive
    await taken.stop()
    await taken.follow(lambda _: None)
    await warm.close()
