"""Two masters on one PostgreSQL, as processes: one leads; the other takes over; the old one cannot write any more."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import grpc
import pytest
import sqlalchemy as sa
import sqlalchemy.ext.asyncio

from shoal.core.errors import Deposed
from shoal.master.store.migrate import upgrade
from shoal.process.lifetime import DIE_WITH_PARENT
from shoal.wire.options import open_channel
from shoal.wire.status import error_of
from shoal.wire.v1 import jobs_pb2, jobs_pb2_grpc
from tests.integration.master.conftest import RunningMaster, eventually, refused, running, settings_of
from tests.ports import free_port
from tests.postgres import PASSWORD, PostgresServer, running_server

LEASE_SECONDS = 2.0
LONG_LEASE = ("--leadership-lease-seconds", "60")  # a takeover within it was not by its end
TAKEOVER_SECONDS = 1.0  # after the lease
BUSY_SECONDS = 4.0  # more, because the machine does other things, too
STARTUP_SECONDS = 60.0  # of a process, on a busy machine


class MasterProcess:
    def __init__(self, folder: Path, name: str, url: str, *options: str) -> None:
        self.name = name
        self._ready = folder / f"{name}.ready.json"
        self._errors = folder / f"{name}.errors.txt"
        self.metrics_port = free_port()
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "shoal.master", "--port", "0", "--metrics-port", str(self.metrics_port),
                    "--ready-file", str(self._ready), "--log-format", "json", "--log-level", "debug",
                    "--leadership-lease-seconds", str(LEASE_SECONDS), *options,
                ],
                stderr=errors,
                env={**os.environ, "SHOAL_MASTER_STORE": url, DIE_WITH_PARENT: str(os.getpid())},
            )  # fmt: skip

    def leads(self) -> bool:
        assert self.process.poll() is None, self.errors()
        return self._ready.exists()

    def readiness(self) -> str:
        """'ok', why not, or '' before it answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/readyz", timeout=5) as answer:
                return answer.read().decode().strip()
        except urllib.error.HTTPError as error:  # 503
            with error:
                return error.read().decode().strip()
        except urllib.error.URLError:
            assert self.process.poll() is None, self.errors()
            return ""

    def stands_by(self) -> bool:
        return self.readiness().startswith("standby: ")

    def channel(self) -> grpc.Channel:
        return open_channel(f"127.0.0.1:{json.loads(self._ready.read_text())['port']}")

    def submit(self, *, key: str = "") -> str:
        with self.channel() as channel:
            request = jobs_pb2.SubmitRequest(spec_json="model: {type: mlp}", idempotency_key=key)
            return jobs_pb2_grpc.JobServiceStub(channel).Submit(request, timeout=20, wait_for_ready=True).job_id

    def jobs(self) -> set[str]:
        with self.channel() as channel:
            stub = jobs_pb2_grpc.JobServiceStub(channel)
            listed = stub.List(jobs_pb2.ListRequest(), timeout=20, wait_for_ready=True)
        return {job.job_id for job in listed.jobs}

    def errors(self) -> str:
        return self._errors.read_text()

    def events(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.errors().splitlines() if line.startswith("{")]

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


Start = Callable[..., MasterProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    masters: list[MasterProcess] = []

    def run(url: str, *options: str) -> MasterProcess:
        masters.append(MasterProcess(tmp_path, f"master-{len(masters)}", url, *options))
        return masters[-1]

    yield run
    for master in masters:
        master.end()
    for master in masters:
        assert PASSWORD not in master.errors()
        assert quote(PASSWORD, safe="") not in master.errors()
        assert "Traceback" not in master.errors()


@pytest.fixture
def url(postgres: PostgresServer) -> Iterator[str]:
    with postgres.database() as url:
        yield url


@pytest.fixture
def pair(start: Start, url: str) -> tuple[MasterProcess, MasterProcess]:
    """A leader that has acknowledged jobs, and its standby."""
    leader = start(url)
    eventually(leader.leads, seconds=STARTUP_SECONDS)
    standby = start(url)
    eventually(standby.stands_by, seconds=STARTUP_SECONDS)
    return leader, standby


def takes_over(standby: MasterProcess) -> float:
    """Seconds until it serves."""
    begun = time.monotonic()
    eventually(standby.leads, seconds=STARTUP_SECONDS)
    return time.monotonic() - begun


def test_one_leads_and_the_other_is_not_ready_and_says_who_does(pair):
    leader, standby = pair
    assert leader.readiness() == "ok"
    incarnation = json.loads(leader._ready.read_text())["incarnation"]
    assert f"standby: master {incarnation[:8]} on " in standby.readiness()
    assert standby.readiness().endswith("leads, in epoch 1")
    assert not standby._ready.exists()
    standby.process.terminate()
    assert standby.process.wait(timeout=20) == 0
    assert leader.readiness() == "ok"


def test_a_frozen_leader_is_replaced_after_its_lease_and_cannot_write_when_it_wakes(pair):
    leader, standby = pair
    acknowledged = {leader.submit() for _ in range(10)}
    channel = leader.channel()
    stub = jobs_pb2_grpc.JobServiceStub(channel)
    stub.List(jobs_pb2.ListRequest(), timeout=20, wait_for_ready=True)
    leader.process.send_signal(signal.SIGSTOP)
    seconds = takes_over(standby)
    assert seconds < LEASE_SECONDS + TAKEOVER_SECONDS + BUSY_SECONDS
    assert standby.readiness() == "ok"
    assert standby.jobs() == acknowledged
    # These are in the old leader's socket when it wakes.
    request = jobs_pb2.SubmitRequest(spec_json="model: {type: mlp}")
    late = [stub.Submit.future(request, timeout=20) for _ in range(5)]
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(leader.process.wait, 30)
        leader.process.send_signal(signal.SIGCONT)
        refusals = [call.exception(timeout=30) for call in late]
        assert ended.result() == 75
    channel.close()
    assert all(refusal.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED) for refusal in refusals)
    assert standby.jobs() == acknowledged
    last = leader.events()[-1]
    assert last["event"] == "master_deposed"
    assert "in epoch 2" in last["reason"]
    told = sum(isinstance(error_of(refusal), Deposed) for refusal in refusals)  # the rest were cut off
    print(f"taken over {seconds:.2f} s after SIGSTOP with a lease of {LEASE_SECONDS} s; {told} of 5 were told why")


def test_a_killed_leader_is_replaced_before_its_lease_ends(start, url):
    leader = start(url, *LONG_LEASE)
    eventually(leader.leads, seconds=STARTUP_SECONDS)
    standby = start(url, *LONG_LEASE)
    eventually(standby.stands_by, seconds=STARTUP_SECONDS)
    acknowledged = {leader.submit() for _ in range(10)}
    leader.process.kill()
    seconds = takes_over(standby)
    assert seconds < 3 + BUSY_SECONDS
    assert standby.jobs() == acknowledged
    assert standby.submit() not in acknowledged
    print(f"taken over {seconds:.2f} s after SIGKILL with a lease of 60 s")


def test_a_leader_that_is_told_to_stop_hands_over_at_once(start, url):
    leader = start(url, *LONG_LEASE)
    eventually(leader.leads, seconds=STARTUP_SECONDS)
    standby = start(url, *LONG_LEASE)
    eventually(standby.stands_by, seconds=STARTUP_SECONDS)
    key = "once"
    acknowledged = {leader.submit(key=key)}
    leader.process.terminate()
    seconds = takes_over(standby)
    assert seconds < TAKEOVER_SECONDS + BUSY_SECONDS
    assert leader.process.wait(timeout=20) == 0
    assert standby.submit(key=key) in acknowledged
    assert standby.jobs() == acknowledged
    print(f"taken over {seconds:.2f} s after SIGTERM")


def test_a_master_that_comes_back_alone_does_not_wait_for_its_own_old_lease(start, url):
    first = start(url, *LONG_LEASE)
    eventually(first.leads, seconds=STARTUP_SECONDS)
    first.process.kill()
    first.process.wait()
    second = start(url)
    eventually(second.leads, seconds=STARTUP_SECONDS)
    leads = next(event for event in second.events() if event["event"] in ("master_leads", "master_serves"))
    assert leads["epoch"] == 2


def old_job(server: PostgresServer, url: str) -> None:
    """A database as the first revision left it, with a job."""

    async def fill() -> None:
        engine = sa.ext.asyncio.create_async_engine(url.replace("postgresql:", "postgresql+asyncpg:"))
        async with engine.begin() as connection:
            await connection.run_sync(lambda inner: upgrade(inner, name="old", revision="0001"))
        await engine.dispose()

    asyncio.run(fill())
    requirements = json.dumps(
        {"model_type": "mlp", "gpu": False, "world_size": 8, "min_workers": 1, "max_workers": 8, "shards": 1}
    )
    server.sql(
        "INSERT INTO jobs (job_id, name, spec_json, spec_hash, requirements, phase, reason, message, attempt,"
        " submitted_at, servers, files) VALUES ('old-1', 'old', '{\"model\": {\"type\": \"mlp\"}}', 'h',"
        f" '{requirements}', 'CANCELLED', 'Cancelled', '', 0, 100.0, '[]', '[]')",
        database=url.rpartition("/")[2],
    )


@pytest.mark.parametrize("before", ["empty", "old"])
def test_two_masters_that_start_at_once_bring_the_schema_up_to_date_together(start, postgres, before):
    with postgres.database(empty=True) as url:
        if before == "old":
            old_job(postgres, url)
        pair = [start(url), start(url)]
        eventually(lambda: any(master.leads() for master in pair), seconds=STARTUP_SECONDS)
        eventually(lambda: any(master.stands_by() for master in pair), seconds=STARTUP_SECONDS)
        leaders = [master for master in pair if master.leads()]
        assert len(leaders) == 1
        assert leaders[0].jobs() == ({"old-1"} if before == "old" else set())
        for master in pair:
            master.end()


def test_a_leader_in_a_long_outage_of_the_store_stops_and_comes_back_as_one_that_waits(start):
    with running_server() as server, server.database() as url:
        leader = start(url)
        eventually(leader.leads, seconds=STARTUP_SECONDS)
        acknowledged = {leader.submit()}
        server.stop(signal.SIGQUIT)  # at once: the checkpoint of another shutdown may last for longer than the lease
        with pytest.raises(grpc.RpcError) as caught:
            leader.submit()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "the job store cannot be used" in caught.value.details()
        assert leader.process.wait(timeout=30) == 75
        assert "could not renew its lease for" in leader.events()[-1]["reason"]
        again = start(url)
        eventually(lambda: "Connect call failed" in again.readiness(), seconds=STARTUP_SECONDS)
        server.start()
        eventually(again.leads, seconds=STARTUP_SECONDS)
        assert again.jobs() == acknowledged
        again.end()


def test_a_leader_whose_store_stands_still_for_longer_than_its_lease_stops_without_an_error_of_its_own(start):
    with running_server() as server, server.database() as url:
        leader = start(url)
        eventually(leader.leads, seconds=STARTUP_SECONDS)
        leader.submit()
        with server.frozen():
            assert leader.process.wait(timeout=30) == 75
        assert "the job store does not answer" in leader.events()[-1]["reason"]
        assert "Exception closing connection" not in leader.errors()


# In this process: what only a look inside can time.


def test_the_store_may_restart_under_a_leader(tmp_path):
    with running_server() as server, server.database() as url:
        with running(settings_of(tmp_path, store=url, leadership_lease_seconds=60)) as master:
            master.register()
            before = master.submit()
            server.stop()
            with refused(grpc.StatusCode.UNAVAILABLE, "the job store cannot be used"):
                master.submit()
            assert master.heartbeat().success
            server.start()
            after = master.submit()
            listed = master.jobs.List(jobs_pb2.ListRequest(), timeout=20)
            assert {job.job_id for job in listed.jobs} == {before, after}
            assert master.metric("shoal_store_errors_total") >= 1


def test_a_submit_at_a_master_that_does_not_know_yet_that_another_leads_is_refused(tmp_path, url, postgres):
    database = url.rpartition("/")[2]
    master = RunningMaster(settings_of(tmp_path, store=url, leadership_lease_seconds=300))
    master.submit()
    postgres.sql("UPDATE leadership SET epoch = epoch + 1, incarnation = 'other'", database=database)
    with refused(grpc.StatusCode.UNAVAILABLE, "master other on", "in epoch 2") as caught:
        master.submit()
    assert isinstance(error_of(caught.value), Deposed)
    assert isinstance(master.stops_by_itself(), Deposed)
    assert postgres.sql("SELECT count(*) FROM jobs", database=database) == "1"
