"""The gRPC stream between one trainer and one shard: 100 MB of float32 pushed and pulled over loopback.

Against a plain socket that moves the same bytes by 1 MiB sends, in the same run, and with the memory that either side
takes beyond the tensors themselves. The shard is a real one; the time of its check and update, by its own metrics, is
given by itself: no socket does that.
"""

import json
import socket
import statistics
import sys
import time
import urllib.request
from pathlib import Path

import torch
from prometheus_client.parser import text_string_to_metric_families

from shoal.core.facts import DatasetFacts
from shoal.core.job import Grant, ShardAddress
from shoal.core.layout import flatten, partition
from shoal.core.tree import Block
from shoal.jobspec.reading import load_spec, parse_spec
from shoal.jobspec.spec import TrainingConfig
from shoal.models.catalog import build_model
from shoal.models.state import layers_of
from shoal.process.allocator import keep_freed_memory
from shoal.process.logs import configure_logs
from shoal.worker.trainer.attach import attach
from shoal.worker.trainer.parameters import Parameters
from tests.benchmarks.processes import reports_of, shard_processes, start

MEBIBYTE = 1 << 20
WARM_UP = 3
ROUNDS = 15
HIDDEN = [4970]  # with 5,000 inputs and 10 classes: 24.9 M parameters, 99.6 MB
FACTS = DatasetFacts(train_samples=64, heldout_samples=0, input_shape=(5000,), classes=10, fingerprint="-")


def spec_json() -> str:
    spec = parse_spec(
        f"model: {{type: mlp, hidden: {HIDDEN}}}\n"
        "training: {world_size: 1, batch_size: 1, steps: 1000000}\n"
        "optimizer: {name: sgd, learning_rate: 0.001}\n"
        "resources: {transport: grpc}\n"
    )
    return spec.with_defaults(TrainingConfig()).model_dump_json()


def trainer(spec: str, port: int, shard_pid: int) -> None:
    torch.set_num_threads(1)
    before = {pid: _memory(pid, "VmRSS") for pid in ("self", str(shard_pid))}
    job = load_spec(spec)
    model = build_model(job.model, input_shape=FACTS.input_shape, classes=FACTS.classes, seed=0)
    parameter_layers, buffer_layers = layers_of(model)
    del model
    layout = partition(flatten(parameters=parameter_layers, buffers=buffer_layers), shards=1)
    address = ShardAddress(server_id="0", host="127.0.0.1", port=port, index=0)
    grant = Grant(job_id="bench", attempt=1, revision=1, spec_json=spec, first_rank=0, last_rank=1, shards=(address,))
    links = attach(grant=grant, worker_id="trainer", incarnation="1", facts=FACTS, layout=layout, transport="grpc")
    for pid in before:  # the model was built on both sides: that peak is not the stream's
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    parameters = Parameters(layout=layout, links=links, attempt=1)
    parameters.slot(0).fill_(1e-6)
    seconds: list[float] = []
    for step in range(WARM_UP + ROUNDS):
        while parameters.version < step:
            parameters.wait(1.0)
        began = time.perf_counter()
        parameters.push(step=step, block=Block(start=0, size=1), slot=0, loss=0.0, integers=b"")
        while parameters.version <= step:
            parameters.wait(10.0)
        seconds.append(time.perf_counter() - began)
    tensors = 3 * 4 * layout.length  # on either side: weights of two versions, one gradient buffer
    extra = {pid: _memory(pid, "VmHWM") - resident - tensors for pid, resident in before.items()}
    report = {
        "seconds": statistics.median(seconds[WARM_UP:]),
        "bytes": 2 * 4 * layout.length,
        "trainer_extra_bytes": extra["self"],
        "shard_extra_bytes": extra[str(shard_pid)],
    }
    parameters.close()
    print(json.dumps(report), flush=True)


def _memory(pid: str, name: str) -> int:
    """A figure of /proc/PID/status, bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {name}")


def _sum_of(metrics_port: int, histograms: tuple[str, ...]) -> float:
    """Seconds in histograms of a process' /metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return sum(
        sample.value
        for family in families
        if family.name in histograms
        for sample in family.samples
        if sample.name.endswith("_sum")
    )


def plain_socket(size: int) -> float:
    """Median seconds for `size` bytes there and as many back, 1 MiB sends into preallocated buffers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = start("stream_speed", "echo", listener.getsockname()[1], size)
        connection, _ = listener.accept()
    seconds: list[float] = []
    buffer = memoryview(bytearray(size))
    with connection:
        for _ in range(WARM_UP + ROUNDS):
            began = time.perf_counter()
            _send(connection, buffer)
            _receive(connection, buffer)
            seconds.append(time.perf_counter() - began)
    process.communicate(timeout=30)
    return statistics.median(seconds[WARM_UP:])


def echo(port: int, size: int) -> None:
    buffer = memoryview(bytearray(size))
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(WARM_UP + ROUNDS):
            _receive(connection, buffer)
            _send(connection, buffer)


def _send(connection: socket.socket, buffer: memoryview) -> None:
    for offset in range(0, len(buffer), MEBIBYTE):
        connection.sendall(buffer[offset : offset + MEBIBYTE])


def _receive(connection: socket.socket, buffer: memoryview) -> None:
    received = 0
    while received < len(buffer):
        received += connection.recv_into(buffer[received : received + MEBIBYTE])


def run() -> dict[str, float]:
    """Seconds, bytes."""
    spec = spec_json()
    with shard_processes(spec, 1) as shards:
        (report,) = reports_of([start("stream_speed", "trainer", spec, shards[0].port, shards[0].pid)])
        arithmetic = _sum_of(shards[0].metrics_port, ("shoal_ps_push_seconds", "shoal_ps_update_seconds"))
    report["arithmetic_seconds"] = arithmetic / (WARM_UP + ROUNDS)
    return {**report, "socket_seconds": plain_socket(report["bytes"] // 2)}


if __name__ == "__main__":
    keep_freed_memory()  # as a trainer's own main does
    configure_logs(log_format="console", level="error")
    match sys.argv[1:]:
        case ["trainer", spec, port, shard_pid]:
            trainer(spec, int(port), int(shard_pid))
        case ["echo", port, size]:
            echo(int(port), int(size))
