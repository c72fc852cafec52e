"""A cluster with one endless job, and looks at both that cost next to nothing."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import psutil

from shoal.local import Cluster
from shoal.sdk import Client, JobView
from shoal.wire.options import open_channel
from shoal.wire.v1 import shard_pb2, shard_pb2_grpc, worker_pb2, worker_pb2_grpc

T = TypeVar("T")
LEASE_SECONDS = 2.0
LONGEST_SECONDS = 120.0  # of anything: behind it the benchmark gives up
SMALL = {"type": "mlp", "hidden": [128]}


def spec_of(**changes: object) -> dict[str, Any]:
    return {
        "name": "bench",
        "model": SMALL,
        "training": {"world_size": 8, "batch_size": 8, "steps": 100_000_000, "seed": 1},
        "optimizer": {"name": "sgd", "learning_rate": 0.001, "momentum": 0.9},
        "resources": {"shards": 2},
        "max_attempts": 100,
        **changes,
    }


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is measured: a cluster and its job, which trains."""

    cluster: Cluster
    client: Client
    job_id: str

    @property
    def job(self) -> JobView:
        return self.client.get(self.job_id)

    @property
    def hosts(self) -> set[str]:
        """Workers that have ranks of the job."""
        return {share.worker_id for share in self.job.workers}

    def version(self, server: str = "ps-1") -> int:
        """Committed on that shard; -1 where nothing is."""
        with self._channel(server) as channel:
            request = shard_pb2.GetProgressRequest(job_id=self.job_id, from_version=1 << 60)
            try:
                return shard_pb2_grpc.ShardServiceStub(channel).GetProgress(request, timeout=5).version
            except grpc.RpcError:
                return -1

    def goes_on(self, *, by: int = 2, server: str = "ps-1") -> None:
        """Waits until the shard has committed a step that had not been begun now: the one under way, and the next."""
        until(lambda: self.version(server) >= 0, "the job has no share")
        wanted = self.version(server) + by
        until(lambda: self.version(server) >= wanted, "the job does not go on")

    def trains_on(self, *workers: str) -> None:
        """Waits until the job has exactly these workers, and makes steps."""
        until(lambda: self.hosts == set(workers), f"the job does not get {workers}")
        self.goes_on()

    def trainer_of(self, worker: str) -> psutil.Process:
        """The process that trains there."""
        found = [line for line in self.cluster.log(worker).splitlines() if f"job_id={self.job_id}" in line]
        started = [line for line in found if "job_started" in line]
        return psutil.Process(int(started[-1].rpartition("pid=")[2].split()[0]))

    def jobs_of(self, worker: str) -> int:
        """How many jobs run there, as its agent says."""
        with self._channel(worker) as channel:
            request = worker_pb2.GetStatusRequest(worker_id=worker)
            return len(worker_pb2_grpc.WorkerServiceStub(channel).GetStatus(request, timeout=5).jobs)

    @contextlib.contextmanager
    def _channel(self, name: str) -> Iterator[grpc.Channel]:
        address = json.loads(self.cluster.member(name).ready_file.read_text())
        with open_channel(f"{address['host']}:{address['port']}") as channel:
            yield channel


@contextlib.contextmanager
def training(*, workers: int = 2, shards: int = 2, spec: dict[str, Any] | None = None) -> Iterator[Bench]:
    """A cluster whose job has all workers and makes steps."""
    with Cluster(
        workers=workers,
        shards=shards,
        master_options=("--lease-seconds", str(LEASE_SECONDS), "--heartbeat-seconds", "0.25"),
        worker_options=("--trainer-restarts", "100000", "--max-concurrent-jobs", "2"),
    ) as cluster:
        with cluster.client() as client:
            job_id = client.submit(spec or spec_of()).job_id
            bench = Bench(cluster=cluster, client=client, job_id=job_id)
            bench.trains_on(*cluster.workers)
            yield bench


def until(condition: Callable[[], T], what: str) -> T:
    deadline = time.monotonic() + LONGEST_SECONDS
    while not (met := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.002)
    return met


@contextlib.contextmanager
def timed(into: list[float]) -> Iterator[None]:
    began = time.monotonic()
    yield
    into.append(time.monotonic() - began)
