"""A real master on a free port, in a thread of this process, and a real synchronous client."""

import asyncio
import contextlib
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest

from shoal.master.app import serving
from shoal.master.settings import MasterSettings
from shoal.process.clock import SystemClock
from shoal.wire.options import open_channel
from shoal.wire.v1 import jobs_pb2, jobs_pb2_grpc, master_pb2, master_pb2_grpc
from tests.integration.master.fake_shards import FakeShard

T = TypeVar("T")
CALL_SECONDS = 20.0


def eventually(probe: Callable[[], T], *, seconds: float = 15.0) -> T:
    """The first true answer of `probe`; an AssertionError with the last one after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (answer := probe()):
        assert time.monotonic() < deadline, f"still {answer!r} after {seconds} s"
        time.sleep(0.01)
    return answer


class RunningMaster:
    """Started in a thread; `close` is an orderly stop."""

    def __init__(self, settings: MasterSettings) -> None:
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(settings,), name="master")
        self._thread.start()
        assert self._started.wait(30)
        if self._error is not None:
            self._thread.join()
            raise self._error
        self.channel = open_channel(f"127.0.0.1:{self.port}")
        self.master = master_pb2_grpc.MasterServiceStub(self.channel)
        self.jobs = jobs_pb2_grpc.JobServiceStub(self.channel)

    def _run(self, settings: MasterSettings) -> None:
        async def serve() -> None:
            async with serving(settings, clock=SystemClock()) as master:
                self.port, self.metrics_port = master.port, master.metrics_port
                master.failed.add_done_callback(lambda _: self._stop.set())
                self._started.set()
                await self._stop.wait()
                if master.failed.done():
                    raise master.failed.result()

        try:
            self._loop.run_until_complete(serve())
        except BaseException as error:  # noqa: BLE001  (handed to the test's thread)
            self._error = error
        finally:
            self._loop.close()
            self._started.set()

    def close(self) -> None:
        self.channel.close()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def stops_by_itself(self) -> BaseException | None:
        """Why it does, once it has."""
        self._thread.join(30)
        assert not self._thread.is_alive()
        self.channel.close()
        return self._error

    # Calls that most tests make.

    def register(self, worker_id: str = "worker-1", *, incarnation: str | None = None, **fields: Any) -> Any:
        capabilities = fields.pop(
            "capabilities",
            master_pb2.WorkerCapabilities(supported_models=["mlp"], max_concurrent_jobs=1),
        )
        return self.master.RegisterWorker(
            master_pb2.RegisterWorkerRequest(
                worker_id=worker_id,
                incarnation=f"of-{worker_id}" if incarnation is None else incarnation,
                capabilities=capabilities,
                **fields,
            ),
            timeout=CALL_SECONDS,
        )

    def add_shard(self, shard: FakeShard) -> Any:
        return self.master.RegisterWorker(shard.registration(), timeout=CALL_SECONDS)

    def heartbeat(self, worker_id: str = "worker-1", *, incarnation: str | None = None, **fields: Any) -> Any:
        return self.master.SendHeartbeat(
            master_pb2.SendHeartbeatRequest(
                worker_id=worker_id,
                incarnation=f"of-{worker_id}" if incarnation is None else incarnation,
                **fields,
            ),
            timeout=CALL_SECONDS,
        )

    def poll(
        self, worker_id: str = "worker-1", *, known: int = 0, wait: float = 0.0, incarnation: str | None = None
    ) -> Any:
        return self.master.RequestJob(
            master_pb2.RequestJobRequest(
                worker_id=worker_id,
                incarnation=f"of-{worker_id}" if incarnation is None else incarnation,
                known_revision=known,
                wait_seconds=wait,
            ),
            timeout=CALL_SECONDS + wait,
        )

    def submit(self, spec: str = "model: {type: mlp}", *, key: str = "") -> str:
        return self.jobs.Submit(
            jobs_pb2.SubmitRequest(spec_json=spec, idempotency_key=key), timeout=CALL_SECONDS
        ).job_id

    def get(self, job_id: str, *, with_losses: bool = False) -> Any:
        return self.jobs.Get(jobs_pb2.GetRequest(job_id=job_id, with_losses=with_losses), timeout=CALL_SECONDS)

    def complete(
        self,
        job_id: str,
        *,
        worker_id: str = "worker-1",
        attempt: int = 1,
        incarnation: str | None = None,
        failure: "master_pb2.Failure.ValueType" = master_pb2.FAILURE_UNSPECIFIED,
        **results: Any,
    ) -> Any:
        return self.master.CompleteJob(
            master_pb2.CompleteJobRequest(
                worker_id=worker_id,
                job_id=job_id,
                attempt=attempt,
                incarnation=f"of-{worker_id}" if incarnation is None else incarnation,
                results=master_pb2.JobResults(**{"success": True, "accuracy": 0.97, "loss": 0.1, **results}),
                failure=failure,
            ),
            timeout=CALL_SECONDS,
        )

    def cancel(self, job_id: str) -> Any:
        return self.jobs.Cancel(jobs_pb2.CancelRequest(job_id=job_id), timeout=CALL_SECONDS)

    def grants(self, worker_id: str = "worker-1") -> Any:
        """The grants of a worker as soon as it has some."""
        return eventually(lambda: list(self.poll(worker_id).grants))

    def phase_is(self, job_id: str, phase: str, *, attempt: int | None = None) -> Any:
        def probe() -> Any:
            job = self.get(job_id)
            return job if job.phase == phase and attempt in (None, job.attempt) else None

        return eventually(probe)

    def metric(self, line: str) -> float | None:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as answer:
            for text in answer.read().decode().splitlines():
                name, _, value = text.rpartition(" ")
                if name == line:
                    return float(value)
        return None


def settings_of(tmp_path: Path, **changes: Any) -> MasterSettings:
    """Of a test: free ports, long leases (nobody sends heartbeats), short pauses."""
    return MasterSettings(
        **{
            "port": 0,
            "metrics_port": 0,
            "store": f"sqlite:///{tmp_path / 'shoal.db'}",
            "lease_seconds": 60.0,
            "heartbeat_seconds": 0.1,
            "suspect_grace_seconds": 0.3,
            "retry_delay_seconds": 0.05,
            "progress_interval_seconds": 0.01,
            "watch_interval_seconds": 0.01,
            "progress_wait_seconds": 0.5,
            **changes,
        }
    )


@contextlib.contextmanager
def running(settings: MasterSettings) -> Iterator[RunningMaster]:
    master = RunningMaster(settings)
    try:
        yield master
    finally:
        master.close()


@pytest.fixture
def master(tmp_path: Path) -> Iterator[RunningMaster]:
    with running(settings_of(tmp_path)) as master:
        yield master


@pytest.fixture
def shard() -> Iterator[FakeShard]:
    shard = FakeShard("ps-0")
    yield shard
    shard.kill()


def begin(
    master: RunningMaster, shard: FakeShard, *, spec: str = "model: {type: mlp}", workers: Sequence[str] = ("worker-1",)
) -> str:
    """A job whose workers have their grants."""
    for worker_id in workers:
        master.register(worker_id)
    master.add_shard(shard)
    job_id = master.submit(spec)
    for worker_id in workers:
        master.grants(worker_id)
    return job_id


@contextlib.contextmanager
def refused(status: grpc.StatusCode, *parts: str) -> Iterator[pytest.ExceptionInfo[grpc.RpcError]]:
    """The block's call ends with this status and a one-line message that has these parts."""
    with pytest.raises(grpc.RpcError) as caught:
        yield caught
    assert caught.value.code() is status, caught.value.details()
    assert "\n" not in caught.value.details()
    for part in parts:
        assert part in caught.value.details()
