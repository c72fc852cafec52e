"""A synchronous round without a model: push, sum, SGD with momentum, pull. 25 M parameters, 2 trainers x 2 shards.

Against gloo's all-reduce plus the same optimizer, in the same run. Every participant is a process of its own.
"""

import json
import socket
import statistics
import sys
import time

import torch
import torch.distributed as dist

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

TRAINERS = 2
SHARDS = 2
HIDDEN = [4750, 4750]  # with 512 inputs and 10 classes: 25.1 M parameters
WARM_UP = 5
ROUNDS = 20
FACTS = DatasetFacts(train_samples=64, heldout_samples=0, input_shape=(512,), classes=10, fingerprint="-")


def spec_json(hidden: list[int], transport: str) -> str:
    spec = parse_spec(
        f"model: {{type: mlp, hidden: {hidden}}}\n"
        f"training: {{world_size: {TRAINERS}, batch_size: 1, steps: 1000000}}\n"
        "optimizer: {name: sgd, learning_rate: 0.001, momentum: 0.9}\n"
        f"resources: {{shards: {SHARDS}, transport: {transport}}}\n"
    )
    return spec.with_defaults(TrainingConfig()).model_dump_json()


def trainer(rank: int, spec: str, ports: list[int]) -> None:
    torch.set_num_threads(1)
    job = load_spec(spec)
    model = build_model(job.model, input_shape=FACTS.input_shape, classes=FACTS.classes, seed=0)
    parameter_layers, buffer_layers = layers_of(model)
    layout = partition(flatten(parameters=parameter_layers, buffers=buffer_layers), shards=SHARDS)
    grant = Grant(
        job_id="bench",
        attempt=1,
        revision=1,
        spec_json=spec,
        first_rank=rank,
        last_rank=rank + 1,
        shards=tuple(
            ShardAddress(server_id=str(index), host="127.0.0.1", port=port, index=index)
            for index, port in enumerate(ports)
        ),
    )
    links = attach(
        grant=grant,
        worker_id=f"trainer-{rank}",
        incarnation=str(rank),
        facts=FACTS,
        layout=layout,
        transport=job.resources.transport,
    )
    parameters = Parameters(layout=layout, links=links, attempt=1)
    gradient = parameters.slot(0)
    gradient.fill_(1e-6)
    seconds: list[float] = []
    for step in range(WARM_UP + ROUNDS):
        while parameters.version < step:
            parameters.wait(1.0)
        began = time.perf_counter()
        parameters.push(step=step, block=Block(start=rank, size=1), slot=0, loss=0.0, integers=b"")
        while parameters.version <= step:
            parameters.wait(10.0)
        assert parameters.flat(step + 1) is not None
        seconds.append(time.perf_counter() - began)
    parameters.close()
    print(json.dumps({"seconds": seconds[WARM_UP:], "elements": layout.length}), flush=True)


def gloo(rank: int, hidden: list[int], port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=TRAINERS)
    job = load_spec(spec_json(hidden, "auto"))
    model = build_model(job.model, input_shape=FACTS.input_shape, classes=FACTS.classes, seed=0)
    elements = sum(parameter.numel() for parameter in model.parameters())
    flat = torch.full((elements,), 1e-6)
    offset = 0
    for parameter in model.parameters():
        parameter.grad = flat[offset : offset + parameter.numel()].view_as(parameter)
        offset += parameter.numel()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, fused=True)
    seconds: list[float] = []
    for _ in range(WARM_UP + ROUNDS):
        began = time.perf_counter()
        dist.all_reduce(flat)
        flat.mul_(0.5)
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"seconds": seconds[WARM_UP:]}), flush=True)
    dist.destroy_process_group()


def shoal_round(hidden: list[int], transport: str) -> float:
    """Median seconds of a round."""
    spec = spec_json(hidden, transport)
    with shard_processes(spec, SHARDS) as shards:
        return _median(
            "trainer", [(rank, spec, json.dumps([shard.port for shard in shards])) for rank in range(TRAINERS)]
        )


def gloo_round(hidden: list[int]) -> float:
    """Median seconds of a round."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return _median("gloo", [(rank, json.dumps(hidden), port) for rank in range(TRAINERS)])


def _median(role: str, arguments: list[tuple[object, ...]]) -> float:
    """Of the slowest participant."""
    reports = reports_of([start("round_speed", role, *each) for each in arguments])
    return max(statistics.median(report["seconds"]) for report in reports)


def run() -> dict[str, float]:
    """Seconds of a round by each way."""
    return {
        "gloo": gloo_round(HIDDEN),
        "shared memory": shoal_round(HIDDEN, "auto"),
        "grpc": shoal_round(HIDDEN, "grpc"),
    }


if __name__ == "__main__":
    keep_freed_memory()  # as a trainer's own main does
    configure_logs(log_format="console", level="warning")
    match sys.argv[1:]:
        case ["trainer", rank, spec, ports]:
            trainer(int(rank), spec, json.loads(ports))
        case ["gloo", rank, hidden, port]:
            gloo(int(rank), json.loads(hidden), int(port))
