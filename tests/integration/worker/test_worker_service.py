"""One worker of a real cluster, seen from outside: its service, its slots, and what it makes of jobs that go wrong."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from shoal.core.job import Phase
from shoal.local import Cluster
from shoal.sdk import Client
from shoal.sdk.views import JobView
from shoal.wire.v1 import master_pb2, worker_pb2, worker_pb2_grpc

SECONDS = 60.0


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one folder that jobs may read."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def single(root: Path) -> Iterator[Cluster]:
    """One worker with two slots, whose trainers are started again once."""
    with Cluster(
        workers=1,
        shards=1,
        master_options=("--retry-delay-seconds", "0.1", "--heartbeat-seconds", "0.5"),
        worker_options=("--max-concurrent-jobs", "2", "--trainer-restarts", "1", "--data-roots", str(root)),
    ) as cluster:
        yield cluster


@pytest.fixture
def client(single: Cluster) -> Iterator[Client]:
    with single.client() as connected:
        yield connected


@pytest.fixture
def stub(single: Cluster) -> Iterator[worker_pb2_grpc.WorkerServiceStub]:
    """A client of the protos and grpcio alone."""
    (member,) = (member for member in single.members if member.role == "worker")
    address = json.loads(member.ready_file.read_text())
    with grpc.insecure_channel(f"{address['host']}:{address['port']}") as channel:
        yield worker_pb2_grpc.WorkerServiceStub(channel)


def spec_of(name: str, *, steps: int = 300, seed: int = 1, **sections: object) -> dict[str, Any]:
    return {
        "name": name,
        "model": {"type": "mlp", "hidden": [64]},
        "training": {"world_size": 4, "batch_size": 8, "steps": steps, "seed": seed, "evaluate_every": 10_000},
        "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9},
    } | sections


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def run(client: Client, document: dict[str, Any]) -> JobView:
    return client.wait(client.submit(document).job_id, timeout=SECONDS)


def sha256_of(job: JobView) -> str:
    assert job.phase is Phase.SUCCEEDED, (job.phase, job.message)
    assert job.results is not None
    assert job.results.weights_sha256
    return job.results.weights_sha256


def errors_of(job: JobView) -> tuple[str, ...]:
    assert job.phase is Phase.FAILED, (job.phase, job.message)
    assert job.results is not None
    return job.results.errors


def lines_of(client: Client, job_id: str) -> list[str]:
    lines = list(client.logs(job_id))
    assert {line.worker_id for line in lines} <= {"worker-1"}
    return [line.text for line in lines]


def memory_percent() -> float:
    """By hand, as `free` does: what is not available, of the container's limit where there is one."""
    kilobytes = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, value = line.split(":")
        kilobytes[name] = int(value.split()[0])
    for folder, limit_name, usage_name in (
        ("", "memory.max", "memory.current"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        limit_file = Path("/sys/fs/cgroup") / folder / limit_name
        limit = limit_file.read_text().strip() if limit_file.exists() else "max"
        if limit != "max" and int(limit) < kilobytes["MemTotal"] * 1024:
            return 100 * int((limit_file.parent / usage_name).read_text()) / int(limit)
    return 100 * (1 - kilobytes["MemAvailable"] / kilobytes["MemTotal"])


def test_two_jobs_run_at_once_with_the_weights_of_each_alone_and_a_third_waits(
    client: Client, stub: worker_pb2_grpc.WorkerServiceStub
) -> None:
    """Meanwhile and afterwards GetStatus tells a plain client true figures."""
    documents = [spec_of(f"job-{seed}", seed=seed, steps=2000) for seed in (1, 2, 3)]
    alone = [sha256_of(run(client, document)) for document in documents[:2]]
    assert alone[0] != alone[1]

    cpu: list[float] = []

    def status() -> worker_pb2.GetStatusResponse:
        answer = stub.GetStatus(worker_pb2.GetStatusRequest(worker_id="worker-1"), timeout=5)
        assert answer.success
        assert 0 <= answer.status.cpu_load <= 100
        assert abs(answer.status.memory_usage - memory_percent()) < 5
        assert answer.status.current_jobs == len(answer.jobs)
        cpu.append(answer.status.cpu_load)
        return answer

    assert status().status.current_jobs == 0
    first, second, third = (client.submit(document).job_id for document in documents)
    until(lambda: {job.job_id for job in status().jobs} == {first, second}, "the two do not run at once")
    until(lambda: all(job.step > 0 for job in status().jobs), "they make no steps")
    waiting = client.get(third)
    still = [client.get(job_id).phase for job_id in (first, second)]
    assert still == [Phase.RUNNING] * 2, "they must last long enough for this test: give them more steps"
    assert (waiting.phase, waiting.attempt, waiting.workers) == (Phase.PENDING, 0, ())
    assert waiting.message == "waits for 1 worker(s) that support 'mlp': 1 of 1 are capable, 0 of them free"
    while not client.get(third).ended:
        assert status().status.current_jobs <= 2
        time.sleep(0.1)
    together = [sha256_of(client.wait(job_id, timeout=SECONDS)) for job_id in (first, second)]
    assert together == alone
    assert sha256_of(client.get(third)) not in alone
    assert max(cpu) > 10, "two trainers keep the machine busy"
    assert len(set(cpu)) > 1, "a figure that never changes is none"
    until(lambda: status().status.current_jobs == 0, "it counts jobs that have ended")


def test_status_is_asked_of_the_worker_that_is_meant(stub: worker_pb2_grpc.WorkerServiceStub) -> None:
    own = stub.GetStatus(worker_pb2.GetStatusRequest(), timeout=5)
    assert own.success
    assert own.capabilities.max_concurrent_jobs == 2
    assert set(own.capabilities.supported_models) >= {"mlp", "cnn", "logistic"}
    other = stub.GetStatus(worker_pb2.GetStatusRequest(worker_id="worker-7"), timeout=5)
    assert not other.success
    assert other.message == "this is worker 'worker-1', not 'worker-7'"


def test_a_wait_that_is_no_time_is_refused(stub: worker_pb2_grpc.WorkerServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        stub.Leave(worker_pb2.LeaveRequest(wait_seconds=float("nan")), timeout=SECONDS)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_worker_asked_to_leave_has_handed_its_ranks_back_when_that_returns() -> None:
    """By the program that a pod's preStop hook runs."""
    with Cluster(workers=2, shards=1) as cluster, cluster.client() as client:
        (leaver,) = (member for member in cluster.members if member.name == "worker-1")
        address = json.loads(leaver.ready_file.read_text())
        job_id = client.submit(spec_of("leaving", steps=3000)).job_id
        for view in client.watch(job_id):
            if view.step > 100:
                break
        assert {share.worker_id for share in view.workers} == {"worker-1", "worker-2"}
        program = [sys.executable, "-m", "shoal.worker.leave", "--port", str(address["port"])]
        done = subprocess.run(program, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "no job is left here\n", "")
        assert {share.worker_id for share in client.get(job_id).workers} == {"worker-2"}
        states = {worker.worker_id: worker.state for worker in client.workers()}
        assert states == {"worker-1": "leaving", "worker-2": "alive"}
        job = client.wait(job_id, timeout=SECONDS)
        assert job.phase is Phase.SUCCEEDED
        unreachable = subprocess.run([*program[:-1], "1"], capture_output=True, text=True, timeout=SECONDS, check=False)
        assert unreachable.returncode == 2
        assert unreachable.stderr.startswith("error: ")
        assert unreachable.stderr.count("\n") == 1


def test_training_without_a_grant_is_refused_with_one_line(stub: worker_pb2_grpc.WorkerServiceStub) -> None:
    request = worker_pb2.StartTrainingRequest(job=worker_pb2.TrainingJob(job_id="mine"))
    with pytest.raises(grpc.RpcError) as refused:
        stub.StartTraining(request, timeout=5)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    details = refused.value.details()
    assert details == "a worker trains by a grant (ranks, shards, attempt): submit the job to the master"
    assert stub.GetStatus(worker_pb2.GetStatusRequest(), timeout=5).status.current_jobs == 0


def test_a_grant_of_an_older_revision_starts_nothing(client: Client, stub: worker_pb2_grpc.WorkerServiceStub) -> None:
    sha256_of(run(client, spec_of("before", steps=5)))  # so the worker has seen a revision above 0
    grant = master_pb2.Grant(job_id="before", attempt=9, revision=0, last_rank=1)
    answer = stub.StartTraining(worker_pb2.StartTrainingRequest(grant=grant), timeout=5)
    assert not answer.success
    assert answer.message.startswith("grant of revision 0 is older than ")
    assert stub.GetStatus(worker_pb2.GetStatusRequest(), timeout=5).status.current_jobs == 0


def test_stopping_says_what_does_not_run(client: Client, stub: worker_pb2_grpc.WorkerServiceStub) -> None:
    unknown = stub.StopTraining(worker_pb2.StopTrainingRequest(job_id="nonesuch"), timeout=5)
    assert (unknown.success, unknown.message) == (False, "job 'nonesuch' does not run on worker-1")
    job_id = client.submit(spec_of("long", steps=1_000_000)).job_id
    until(lambda: client.get(job_id).phase is Phase.RUNNING, "it does not run")
    other = stub.StopTraining(worker_pb2.StopTrainingRequest(job_id=job_id, attempt=7), timeout=5)
    assert (other.success, other.message) == (False, f"attempt 7 of job {job_id} does not run here: 1 does")
    assert client.get(job_id).phase is Phase.RUNNING
    client.cancel(job_id)
    until(
        lambda: stub.GetStatus(worker_pb2.GetStatusRequest(), timeout=5).status.current_jobs == 0,
        "a cancelled job goes on",
    )


def prepare_sources(root: Path, outside: Path) -> dict[str, tuple[str, str]]:
    """By name: a source that cannot be read, and the error."""
    outside.write_text("a,label\n1,0\n")
    (root / "link.csv").symlink_to(outside)
    (root / "broken").mkdir()
    (root / "broken" / "train-images-idx3-ubyte").write_bytes(b"nonsense")
    beyond = f"is outside the data roots; roots: {root}"
    linked = f"is outside the data roots (it links to {outside}); roots: {root}"
    return {
        "missing": (f"{root}/missing.csv", f"data.source: {root}/missing.csv: no such file or folder"),
        "outside": (f"{outside}", f"data.source: {outside} {beyond}"),
        "link": (f"{root}/link.csv", f"data.source: {root}/link.csv {linked}"),
        "broken": (
            f"{root}/broken",
            f"{root}/broken/train-images-idx3-ubyte: 8 bytes, shorter than an IDX header of 16",
        ),
    }


@pytest.fixture(scope="module")
def sources(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    return prepare_sources(root, tmp_path_factory.mktemp("elsewhere") / "outside.csv")


@pytest.mark.parametrize("name", ["missing", "outside", "link", "broken"])
def test_data_that_the_worker_cannot_read_fail_the_job_at_once_with_one_line(
    client: Client, sources: dict[str, tuple[str, str]], name: str
) -> None:
    path, error = sources[name]
    job = run(client, spec_of("unreadable", data={"source": f"file://{path}"}))  # three attempts, if they could help
    assert errors_of(job) == (f"worker-1: {error}",)
    assert (job.attempt, job.step, job.message) == (1, 0, f"worker-1: {error}")
    assert lines_of(client, job.job_id) == [f"error: {error}"]


def test_after_a_job_that_could_not_read_its_data_the_worker_runs_the_next(
    client: Client, sources: dict[str, tuple[str, str]]
) -> None:
    errors_of(run(client, spec_of("unreadable", data={"source": f"file://{sources['missing'][0]}"})))
    assert sha256_of(run(client, spec_of("next", steps=20)))


def test_a_trainer_that_is_killed_too_often_fails_the_job_with_the_signal_and_its_last_lines(
    single: Cluster, client: Client
) -> None:
    (agent,) = (psutil.Process(member.pid) for member in single.members if member.role == "worker")
    job_id = client.submit(spec_of("killed", steps=1_000_000, max_attempts=1)).job_id
    for started in (1, 2):
        until(
            lambda started=started: sum("training" in line for line in lines_of(client, job_id)) == started,
            f"trainer {started} does not train",
        )
        for trainer in agent.children():  # the warm one, too
            trainer.kill()
    job = client.wait(job_id, timeout=SECONDS)
    (error,) = errors_of(job)
    first, *rest = error.splitlines()
    assert first == "worker-1: the trainer was killed by SIGKILL; its last lines:"
    assert any("training" in line and f"job_id={job_id}" in line for line in rest), rest
    assert job.attempt == 1
    assert set(rest) <= set(lines_of(client, job_id))
    assert "trainer_crashed" in single.log("worker-1")
    assert sha256_of(run(client, spec_of("next", steps=20)))


def test_what_trainers_log_reaches_the_client_once_and_in_order(client: Client) -> None:
    job = run(client, spec_of("logged", steps=50))
    sha256_of(job)
    lines = list(client.logs(job.job_id))
    assert [line.sequence for line in lines] == sorted({line.sequence for line in lines})
    events = [next(word for word in ("attached", "training") if word in line.text) for line in lines]
    assert events == ["attached", "training"]
    assert all(job.submitted_at <= line.at <= time.time() for line in lines)
    assert all(f"job_id={job.job_id}" in line.text and line.worker_id == "worker-1" for line in lines)
