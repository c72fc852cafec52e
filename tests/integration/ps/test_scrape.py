"""What the roles tell over HTTP: figures that follow from the jobs that ran, and readiness that means it."""

import json
import math
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from shoal.core.job import Phase
from shoal.local import Cluster
from shoal.process.lifetime import DIE_WITH_PARENT
from shoal.sdk.views import JobView
from tests.shards import shared_memories

SECONDS = 60.0
RANKS = 4
SHARED, STREAM = 60, 40  # steps of the job by shared memory, and of the one by gRPC
LENGTH = sum(math.ceil(elements / 1024) * 1024 for elements in (64 * 40, 40, 40 * 10, 10))  # the MLP's layers on pages


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@dataclass(frozen=True)
class Scrape:
    samples: Mapping[tuple[str, tuple[tuple[str, str], ...]], float]

    @classmethod
    def of(cls, port: int) -> "Scrape":
        status, text = get(port, "/metrics")
        assert status == 200
        families = text_string_to_metric_families(text)
        found = [sample for family in families for sample in family.samples]
        return cls({(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in found})

    def value(self, name: str, **labels: str) -> float:
        return self.samples[name, tuple(sorted(labels.items()))]

    def with_label(self, label: str) -> list[str]:
        return sorted({name for name, labels in self.samples for key, _ in labels if key == label})


def metrics_ports(cluster: Cluster, role: str) -> list[int]:
    return [
        json.loads(member.ready_file.read_text())["metrics_port"] for member in cluster.members if member.role == role
    ]


def until(condition: Callable[[], object], what: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


@dataclass(frozen=True)
class Ran:
    """Two jobs have run on a cluster of their own, and everything about them is over."""

    cluster: Cluster
    jobs: tuple[JobView, JobView]

    def scrape(self, role: str) -> list[Scrape]:
        return [Scrape.of(port) for port in metrics_ports(self.cluster, role)]


def document(name: str, steps: int, **resources: object) -> dict[str, Any]:
    return {
        "name": name,
        "model": {"type": "mlp", "hidden": [40]},
        "training": {"world_size": RANKS, "batch_size": 8, "steps": steps, "evaluate_every": 20},
        "optimizer": {"name": "sgd", "learning_rate": 0.1},
        "resources": {"shards": 2} | resources,
    }


@pytest.fixture(scope="module")
def ran() -> Iterator[Ran]:
    with Cluster(workers=2, shards=2, master_options=("--heartbeat-seconds", "0.3")) as cluster:
        with cluster.client() as client:
            jobs = []
            for spec in (
                document("shared", SHARED, max_workers=1),
                document("stream", STREAM, max_workers=1, transport="grpc"),
            ):
                job = client.wait(client.submit(spec).job_id, timeout=SECONDS)
                assert job.phase is Phase.SUCCEEDED, job
                jobs.append(job)
        result = Ran(cluster=cluster, jobs=(jobs[0], jobs[1]))
        until(
            lambda: all(scrape.value("shoal_ps_shares") == 0 for scrape in result.scrape("ps")),
            lambda: "shares of ended jobs stay",
        )
        yield result


def test_the_master_counts_what_the_jobs_committed(ran: Ran) -> None:
    (scrape,) = ran.scrape("master")
    assert scrape.value("shoal_jobs_submitted_total") == 2
    assert scrape.value("shoal_job_results_total", outcome="succeeded") == 2
    assert scrape.value("shoal_job_duration_seconds_count", outcome="succeeded") == 2
    assert scrape.value("shoal_steps_committed_total") == SHARED + STREAM
    samples = [job.results.samples for job in ran.jobs if job.results is not None]
    assert samples == [SHARED * 32 - 2, STREAM * 32]  # 1,438 digits an epoch: its last, 45th step has 30
    assert scrape.value("shoal_samples_committed_total") == sum(samples)
    assert scrape.value("shoal_workers", state="alive") == 2
    assert scrape.value("shoal_parameter_servers", state="alive") == 2
    assert scrape.value("shoal_heartbeats_total", outcome="recognized") > 0
    for worker in ("worker-1", "worker-2"):
        assert 0 <= scrape.value("shoal_worker_cpu_ratio", worker=worker) <= 1
        assert 0 < scrape.value("shoal_worker_memory_ratio", worker=worker) < 1
    until(  # with the next heartbeats
        lambda: {ran.scrape("master")[0].value("shoal_worker_jobs", worker=f"worker-{n}") for n in (1, 2)} == {0},
        lambda: "workers count jobs that have ended",
    )
    live = [value for (name, _), value in scrape.samples.items() if name == "shoal_jobs"]
    assert sum(live) == 0


def test_each_parameter_server_counts_pushes_by_transport_and_updates(ran: Ran) -> None:
    for scrape in ran.scrape("ps"):
        assert scrape.value("shoal_ps_updates_applied_total") == SHARED + STREAM
        assert scrape.value("shoal_ps_update_seconds_count") == SHARED + STREAM
        # One worker hosts all four ranks, so each step is one push.
        assert scrape.value("shoal_ps_pushes_total", transport="shared_memory", outcome="accepted") == SHARED
        assert scrape.value("shoal_ps_pushes_total", transport="grpc", outcome="accepted") == STREAM
        assert scrape.value("shoal_ps_snapshots_total", outcome="written") == 2
        for transport in ("shared_memory", "grpc"):
            assert scrape.value("shoal_ps_trainers", transport=transport) == 0
            assert scrape.value("shoal_ps_pulls_total", transport=transport, outcome="fresh") > 0
        assert scrape.value("shoal_ps_pull_bytes_total", transport="shared_memory") == 0, "nothing is sent"
        assert scrape.value("shoal_ps_weight_bytes") == 0
        assert not [name for name, labels in scrape.samples if name == "shoal_ps_pushes_refused_total"]
    for transport, steps in (("shared_memory", SHARED), ("grpc", STREAM)):
        received = sum(scrape.value("shoal_ps_push_bytes_total", transport=transport) for scrape in ran.scrape("ps"))
        assert received == steps * 4 * LENGTH
    sent = sum(scrape.value("shoal_ps_pull_bytes_total", transport="grpc") for scrape in ran.scrape("ps"))
    assert sent >= STREAM * 4 * LENGTH


def workers_total(ran: Ran, name: str, **labels: str) -> float:
    key = (name, tuple(sorted(labels.items())))
    return sum(scrape.samples.get(key, 0.0) for scrape in ran.scrape("worker"))


def test_the_workers_count_every_unit_and_every_push(ran: Ran) -> None:
    assert workers_total(ran, "shoal_worker_units_total") >= (SHARED + STREAM) * RANKS
    assert workers_total(ran, "shoal_worker_unit_seconds_count") == workers_total(ran, "shoal_worker_units_total")
    for transport, steps in (("shared_memory", SHARED), ("grpc", STREAM)):
        assert workers_total(ran, "shoal_worker_pushes_total", transport=transport) == steps * 2  # to two shards
        assert workers_total(ran, "shoal_worker_push_bytes_total", transport=transport) == steps * 4 * LENGTH
    assert workers_total(ran, "shoal_worker_trainer_starts_total") == 2
    assert workers_total(ran, "shoal_worker_trainer_exits_total", outcome="finished") == 2
    for scrape in ran.scrape("worker"):
        assert scrape.value("shoal_worker_registrations_total") == 1
        assert scrape.value("shoal_worker_jobs_running") == 0
        assert scrape.value("shoal_worker_job_slots") == 1
        assert scrape.value("shoal_worker_heartbeats_total", outcome="recognized") > 0
        assert 0 < scrape.value("shoal_worker_machine_memory_ratio") < 1


def test_no_series_of_an_ended_job_is_left(ran: Ran) -> None:
    """The test can fail: a job that runs has such series."""
    with ran.cluster.client() as client:
        job_id = client.submit(document("long", 1_000_000)).job_id
        until(lambda: client.get(job_id).phase is Phase.RUNNING, lambda: client.get(job_id))
        assert Scrape.of(metrics_ports(ran.cluster, "master")[0]).with_label("job_id")
        for scrape in ran.scrape("ps"):
            assert scrape.with_label("job_id") == ["shoal_ps_job_version"]
        client.cancel(job_id)
    until(
        lambda: not any(scrape.with_label("job_id") for role in ("master", "ps") for scrape in ran.scrape(role)),
        lambda: [scrape.with_label("job_id") for role in ("master", "ps") for scrape in ran.scrape(role)],
    )
    for role in ("master", "ps", "worker"):
        for scrape in ran.scrape(role):
            for job in ran.jobs:
                assert not [labels for _, labels in scrape.samples if job.job_id in dict(labels).values()]


def test_the_memory_of_ended_jobs_is_given_back(ran: Ran) -> None:
    servers = [member.pid for member in ran.cluster.members if member.role == "ps"]
    until(lambda: not any(map(shared_memories, servers)), lambda: list(map(shared_memories, servers)))


@pytest.mark.parametrize("role", ["master", "ps", "worker"])
def test_every_role_of_a_cluster_is_alive_and_ready(ran: Ran, role: str) -> None:
    ports = metrics_ports(ran.cluster, role)
    assert ports
    for port in ports:
        assert get(port, "/livez") == (200, "ok\n")
        assert get(port, "/readyz") == (200, "ok\n")
        assert get(port, "/nonesuch")[0] == 404


@pytest.mark.parametrize("role", ["ps", "worker"])
def test_a_member_without_a_master_is_alive_but_not_ready_and_says_why(role: str, tmp_path: Path) -> None:
    ready_file = tmp_path / "ready"
    command = [sys.executable, "-m", f"shoal.{role}", "--ready-file", str(ready_file), "--master", "127.0.0.1:1"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port", "0", "--metrics-port", "0"],
            stdout=log,
            stderr=log,
            env=os.environ | {DIE_WITH_PARENT: str(os.getpid())},
        )
    try:
        until(ready_file.exists, lambda: (tmp_path / "log").read_text())
        port = json.loads(ready_file.read_text())["metrics_port"]
        assert get(port, "/livez") == (200, "ok\n")
        assert get(port, "/readyz") == (503, "not registered with the master\n")
        until(lambda: "master_unreachable" in (tmp_path / "log").read_text(), lambda: "it does not say so in its log")
        assert get(port, "/readyz") == (503, "not registered with the master\n")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=SECONDS) == 0
    finally:
        process.kill()
        process.wait()
