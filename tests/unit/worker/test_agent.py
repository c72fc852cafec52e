"""The agent against a master that misbehaves: what a job's trainer said arrives, once, whatever the master does."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from shoal.core.job import Capabilities, Grant
from shoal.metrics.registry import new_registry
from shoal.metrics.worker import WorkerMetrics
from shoal.models.catalog import MODEL_TYPES
from shoal.wire.convert import grant_to_proto
from shoal.wire.options import open_aio_channel
from shoal.wire.v1 import master_pb2, master_pb2_grpc
from shoal.worker.agent import Agent
from shoal.worker.trainers import WarmTrainers
from tests.shards import Shards, running_shards, spec_of
from tests.unit.worker.answering_master import AnsweringMaster

SECONDS = 60.0


@contextlib.asynccontextmanager
async def running_agent(master: AnsweringMaster, *, restarts: int = 0) -> AsyncIterator[Agent]:
    channel = open_aio_channel(master.address)
    agent = Agent(
        master=master_pb2_grpc.MasterServiceStub(channel),
        worker_id="worker",
        incarnation="incarnation",
        host="127.0.0.1",
        port=1,
        metrics_port=1,
        capabilities=Capabilities(has_gpu=False, supported_models=frozenset(MODEL_TYPES), max_concurrent_jobs=2),
        warm=WarmTrainers(count=1, data_roots=()),
        poll_seconds=1.0,
        trainer_restarts=restarts,
        metrics=WorkerMetrics(new_registry()),
    )
    running = asyncio.create_task(agent.run())
    try:
        yield agent
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await agent.close()
        await channel.close()


async def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


@pytest.fixture
def master() -> AnsweringMaster:
    return AnsweringMaster()


def granted(grant: Grant) -> master_pb2.Grant:
    return grant_to_proto(grant, {}, "", "")


def digits(folder: Path, *, steps: int) -> contextlib.AbstractContextManager[Shards]:
    return running_shards(spec_of(training={"world_size": 4, "batch_size": 4, "steps": steps}), folder, count=1)


async def test_a_result_that_a_restarted_master_does_not_take_at_first_is_told_again(
    master: AnsweringMaster, tmp_path: Path
) -> None:
    master.answer_report = lambda number: number == 3
    with master, digits(tmp_path, steps=3) as shards:
        async with running_agent(master):
            master.grant(granted(shards.grant()))
            await until(lambda: len(master.reports) == 3, "the report did not come again")
            master.grant()
            await until(lambda: not master.grants, "")
    assert {report.results.weights_sha256 for report in master.reports} == {master.reports[0].results.weights_sha256}
    assert all(report.results.success and report.attempt == 1 for report in master.reports)


async def test_a_result_of_an_attempt_that_the_master_has_withdrawn_is_not_told_for_ever(
    master: AnsweringMaster, tmp_path: Path
) -> None:
    def refuse(number: int) -> bool:
        master.grant()  # the master's list is without the job from now on
        return False

    master.answer_report = refuse
    with master, digits(tmp_path, steps=3) as shards:
        async with running_agent(master) as agent:
            master.grant(granted(shards.grant()))
            await until(lambda: master.reports, "no report came")
            await until(
                lambda: not [task for task in asyncio.all_tasks() if task.get_name() == "job-job"],
                "the agent does not stop telling it",
            )
            assert agent.load().current_jobs == 0


async def test_each_line_of_the_log_arrives_once_though_the_master_is_slow(
    master: AnsweringMaster, tmp_path: Path
) -> None:
    """The regular hand-over waits for the master while the end of the job hands over, too."""
    master.logs_may_pass.clear()
    with master, digits(tmp_path, steps=3) as shards:
        async with running_agent(master) as agent:
            master.grant(granted(shards.grant()))
            await until(lambda: master.log_calls, "no lines came")
            (running,) = agent._jobs.values()
            await until(lambda: not running.trainer.alive, "the job did not end")
            for _ in range(100):  # turns of the event loop, in which the agent takes notice of it
                await asyncio.sleep(0)
            master.logs_may_pass.set()
            await until(lambda: master.reports, "no report came")
    assert any("attached" in line for line in master.lines)
    assert any("training" in line for line in master.lines)
    assert len(master.lines) == len(set(master.lines)), master.lines


async def test_lines_that_the_master_could_not_take_come_later_in_their_order(
    master: AnsweringMaster, tmp_path: Path
) -> None:
    master.log_calls_to_fail = 2
    with master, digits(tmp_path, steps=1_000_000) as shards:
        async with running_agent(master):
            master.grant(granted(shards.grant()))
            await until(lambda: len(master.lines) >= 2, "no lines came")
    assert master.log_calls > 2
    assert "attached" in master.lines[0]
    assert "training" in master.lines[1]


async def test_a_trainer_is_started_again_only_so_many_times_and_then_reported(
    master: AnsweringMaster, tmp_path: Path
) -> None:
    killed: list[int] = []
    with master, digits(tmp_path, steps=1_000_000) as shards:
        async with running_agent(master, restarts=2) as agent:
            master.grant(granted(shards.grant()))
            while not master.reports:
                await until(
                    lambda: master.reports or any(p.step > 0 for p in agent.progress()), "neither training nor a report"
                )
                for running in list(agent._jobs.values()):
                    if running.trainer.pid not in killed and running.trainer.advanced:
                        killed.append(running.trainer.pid)
                        os.kill(running.trainer.pid, signal.SIGKILL)
                await asyncio.sleep(0.02)
            assert agent.load().current_jobs == 0
    assert len(killed) == 3
    (report,) = master.reports
    assert not report.results.success
    (error,) = report.results.errors
    assert error.startswith("the trainer was killed by SIGKILL; its last lines:\n")
    assert "training" in error
