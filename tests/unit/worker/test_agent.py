"""The agent against a master that misbehaves: what a job's trainer said arrives, once, whatever the master does."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest

from shoal.core.errors import Deposed
from shoal.core.job import Capabilities, Grant
from shoal.metrics.registry import new_registry
from shoal.metrics.worker import WorkerMetrics
from shoal.models.catalog import MODEL_TYPES
from shoal.wire.convert import grant_to_proto
from shoal.wire.options import open_aio_channel
from shoal.wire.v1 import master_pb2, master_pb2_grpc, worker_pb2, worker_pb2_grpc
from shoal.worker.agent import Agent
from shoal.worker.control import Advanced
from shoal.worker.servicer import WorkerServicer
from shoal.worker.trainers import TrainerProcess, WarmTrainers
from tests.shards import Shards, running_shards, spec_of
from tests.unit.worker.answering_master import AnsweringMaster

SECONDS = 60.0


@contextlib.asynccontextmanager
async def running_agent(
    master: AnsweringMaster,
    *,
    restarts: int = 0,
    hang_seconds: float = SECONDS,
    poll_seconds: float = 1.0,
    warm: WarmTrainers | None = None,
) -> AsyncIterator[Agent]:
    channel = open_aio_channel(master.address)
    agent = Agent(
        master=master_pb2_grpc.MasterServiceStub(channel),
        worker_id="worker",
        incarnation="incarnation",
        host="127.0.0.1",
        port=1,
        metrics_port=1,
        capabilities=Capabilities(has_gpu=False, supported_models=frozenset(MODEL_TYPES), max_concurrent_jobs=2),
        warm=warm or WarmTrainers(count=1, data_roots=()),
        poll_seconds=poll_seconds,
        trainer_restarts=restarts,
        hang_seconds=hang_seconds,
        metrics=WorkerMetrics(new_registry()),
    )
    running = asyncio.create_task(agent.run())
    try:
        yield agent
    finally:
        running.cancel()
        await asyncio.wait({running})
        await agent.close()
        await channel.close()
        if not running.cancelled():
            running.result()


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


@pytest.mark.parametrize("how", ["log_calls_to_fail", "log_calls_to_refuse"])
async def test_lines_that_the_master_could_not_take_come_later_in_their_order(
    master: AnsweringMaster, tmp_path: Path, how: str
) -> None:
    """It was away, or had just been started again and did not know the worker."""
    setattr(master, how, 2)
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
    assert report.failure == master_pb2.FAILURE_KILLED


async def test_a_failure_that_repeating_can_not_mend_is_reported_as_one(
    master: AnsweringMaster, tmp_path: Path
) -> None:
    spec = spec_of(data={"source": "file:///etc/passwd.csv"})
    with master, running_shards(spec, tmp_path, count=1) as shards:
        async with running_agent(master):
            master.grant(granted(shards.grant()))
            await until(lambda: master.reports, "no report")
    assert [(report.results.success, report.failure) for report in master.reports] == [
        (False, master_pb2.FAILURE_FATAL)
    ]


async def test_an_error_while_it_follows_a_job_ends_the_agent_loudly(
    master: AnsweringMaster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than to keep a job, and the master's trust, without a trainer."""

    def broken(agent: Agent, advanced: Advanced) -> None:
        raise RuntimeError(f"step {advanced.step} cannot be counted")

    async def work(grant: master_pb2.Grant) -> None:
        async with running_agent(master) as agent:
            master.grant(grant)
            await until(lambda: agent._broken.done(), "it goes on")

    monkeypatch.setattr(Agent, "_count", broken)
    with master, digits(tmp_path, steps=1_000_000) as shards:
        with pytest.raises(ExceptionGroup) as caught:
            await work(granted(shards.grant()))
        assert "cannot be counted" in str(caught.value.exceptions[0])


def step_of(agent: Agent) -> int:
    return max((progress.step for progress in agent.progress()), default=-1)


async def test_a_trainer_that_stands_still_is_killed_and_started_again(master: AnsweringMaster, tmp_path: Path) -> None:
    with master, digits(tmp_path, steps=1_000_000) as shards:
        async with running_agent(master, restarts=1, hang_seconds=15.0) as agent:
            master.grant(granted(shards.grant()))
            await until(lambda: step_of(agent) > 0, "no training")
            (running,) = agent._jobs.values()
            os.kill(running.trainer.pid, signal.SIGSTOP)
            await until(lambda: any(progress.restarts for progress in agent.progress()), "it is not started again")
            (progress,) = agent.progress()
            assert progress.last_crash.startswith("the trainer made no progress for ")
            await until(lambda: step_of(agent) > 0, "the new one does not train")
    assert not master.reports


async def test_a_trainer_that_stands_still_before_its_first_step_is_killed_too(
    master: AnsweringMaster, tmp_path: Path
) -> None:
    with master, digits(tmp_path, steps=3) as shards:
        async with running_agent(master, restarts=1, hang_seconds=15.0) as agent:
            await until(lambda: agent._warm._ready, "no trainer is ready")
            os.kill(agent._warm._ready[0].pid, signal.SIGSTOP)  # the one that gets the job
            master.grant(granted(shards.grant()))
            await until(lambda: master.reports, "no report")
    assert [report.results.success for report in master.reports] == [True]


async def test_a_worker_whose_incarnation_a_shard_refuses_begins_anew_and_does_the_job_as_another_one(
    master: AnsweringMaster, tmp_path: Path
) -> None:
    """The master does not know: it has been restarted since it counted this worker as dead."""
    with master, digits(tmp_path, steps=2000) as shards:
        async with running_agent(master) as agent:
            master.grant(granted(shards.grant()))
            await until(lambda: step_of(agent) > 0, "no training")
            for server in shards.servers:
                server.shares.get("job").fence_off(attempt=1, incarnations=["incarnation"], worker_ids=[])
            await until(lambda: master.reports, "the job does not end")
    (report,) = master.reports
    assert report.results.success
    assert master.registered == ["incarnation", report.incarnation]
    assert master.departed[0] == "incarnation"
    assert len(set(master.registered)) == 2


async def test_a_worker_that_the_master_counts_as_dead_drops_its_jobs_and_begins_anew(
    master: AnsweringMaster, tmp_path: Path
) -> None:
    with master, digits(tmp_path, steps=1_000_000) as shards:
        async with running_agent(master) as agent:
            master.grant(granted(shards.grant()))
            await until(lambda: step_of(agent) > 0, "no training")
            (trainer,) = [running.trainer for running in agent._jobs.values()]
            master.grant()
            master.grants, master.dead = [], {"incarnation"}
            await until(lambda: len(master.registered) == 2, "it does not begin anew")
            assert not trainer.alive
            assert agent.incarnation == master.registered[1] != "incarnation"
            assert agent.load().current_jobs == 0
    assert not master.reports


async def test_while_the_master_is_away_trainers_go_on_but_none_is_started(
    master: AnsweringMaster, tmp_path: Path
) -> None:
    master.lease_seconds = 1.0
    with master, digits(tmp_path, steps=1_000_000) as shards:
        async with running_agent(master, restarts=1) as agent:
            master.grant(granted(shards.grant()))
            await until(lambda: step_of(agent) > 0, "no training")
            master.silent = True
            await until(lambda: not agent._may_claim, "it takes silence for an answer")
            step = step_of(agent)
            await until(lambda: step_of(agent) > step, "the trainer does not go on")
            (running,) = agent._jobs.values()
            os.kill(running.trainer.pid, signal.SIGKILL)
            before = master.unanswered
            await until(lambda: not running.trainer.alive and master.unanswered > before + 3, "")
            assert list(agent._jobs.values()) == [running], "its ranks may be somebody else's"
            master.silent = False
            await until(lambda: any(progress.restarts for progress in agent.progress()), "it is not started again")
            await until(lambda: step_of(agent) > 0, "the new one does not train")


async def test_what_a_deposed_master_says_changes_nothing(master: AnsweringMaster, tmp_path: Path) -> None:
    master.epoch = 2
    with master, digits(tmp_path, steps=1_000_000) as shards:
        async with running_agent(master) as agent:
            master.grant(granted(shards.grant()))
            await until(lambda: step_of(agent) > 0, "no training")
            master.epoch = 1
            master.grant()
            step = step_of(agent)
            await until(lambda: step_of(agent) > step + 100, "it has dropped the job")
            with pytest.raises(Deposed):
                agent.epochs.check(1)
            master.epoch = 3
            await until(lambda: not agent._jobs, "it does not hear the newest master")


class SlowTrainers(WarmTrainers):
    """As on a machine where it takes long to start a process."""

    def __init__(self) -> None:
        super().__init__(count=0, data_roots=())
        self.may_start = asyncio.Event()

    async def take(self) -> TrainerProcess:
        await self.may_start.wait()
        return await super().take()


async def test_a_start_whose_caller_is_gone_is_made_to_its_end(master: AnsweringMaster, tmp_path: Path) -> None:
    """By a real server, which takes a call whose deadline is over away from its handler."""
    trainers = SlowTrainers()
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    with master, digits(tmp_path, steps=10**9) as shards:
        async with running_agent(master, warm=trainers, poll_seconds=SECONDS) as agent:
            worker_pb2_grpc.add_WorkerServiceServicer_to_server(WorkerServicer(agent=agent), server)
            await server.start()
            await until(
                lambda: agent._revision == master.revision, "it does not take the master's list, which is empty"
            )
            async with open_aio_channel(f"127.0.0.1:{port}") as channel:
                stub = worker_pb2_grpc.WorkerServiceStub(channel)
                request = worker_pb2.StartTrainingRequest(grant=granted(shards.grant()))
                with pytest.raises(grpc.RpcError) as late:
                    await stub.StartTraining(request, timeout=0.5)
                assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                await stub.GetStatus(worker_pb2.GetStatusRequest())  # the worker knows by now that nobody waits
            assert not agent.progress()
            trainers.may_start.set()
            await until(lambda: step_of(agent) > 0, "the trainer that was asked for is not started")
            master.grant()
            await until(lambda: not agent.progress(), "the job does not stop")
    await server.stop(0)
