"""A synchronous round without a model: push, sum, SGD with momentum, pull. 25 M parameters, 2 trainers x 2 shards.

Against gloo's all-reduce plus the same optimizer, in the same run. Every participant is a process of its own.
"""

import json
import statistics
import subprocess
import sys
import time
from concurrent import futures

import grpc
import torch
import torch.distributed as dist
from prometheus_client import CollectorRegistry

from shoal.core.facts import DatasetFacts
from shoal.core.job import Grant, ShardAddress
from shoal.core.layout import flatten, partition
from shoal.core.tree import Block
from shoal.jobspec.reading import load_spec, parse_spec
from shoal.jobspec.spec import TrainingConfig
from shoal.metrics.parameter_server import ParameterServerMetrics
from shoal.models.catalog import build_model
from shoal.models.state import layers_of
from shoal.process.identity import host_id
from shoal.process.logs import configure_logs
from shoal.ps.servicer import ParameterServerServicer
from shoal.ps.shares import Shares
from shoal.wire.exchange.grpc_stream import GrpcExchangeServer
from shoal.wire.exchange.shared_memory import SharedMemoryServer
from shoal.wire.options import UNARY_LIMIT_BYTES, server_options
from shoal.wire.v1 import parameter_server_pb2_grpc
from shoal.worker.trainer.attach import attach
from shoal.worker.trainer.parameters import Parameters

TRAINERS = 2
SHARDS = 2
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


def shard(index: int, spec: str) -> None:
    """One parameter server; ends when its standard input closes."""
    torch.set_num_threads(1)
    shares = Shares(metrics=ParameterServerMetrics(CollectorRegistry()))
    shares.create(job_id="bench", attempt=1, spec_json=spec, index=index, shards=SHARDS)
    shared_memory = SharedMemoryServer(shares)
    server = grpc.server(futures.ThreadPoolExecutor(32), options=server_options(limit_bytes=UNARY_LIMIT_BYTES))
    parameter_server_pb2_grpc.add_ParameterServerServiceServicer_to_server(
        ParameterServerServicer(shares=shares, host_id=host_id(), shared_memory_address=shared_memory.address), server
    )
    server.add_generic_rpc_handlers((GrpcExchangeServer(shares).handler,))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()


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


def _start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.round_speed", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _median(processes: list[subprocess.Popen[str]]) -> float:
    medians: list[float] = []
    for process in processes:
        assert process.stdout is not None
        medians.append(statistics.median(json.loads(process.stdout.readline())["seconds"]))
    for process in processes:
        process.communicate(timeout=30)
    return max(medians)


def shoal_round(hidden: list[int], transport: str) -> float:
    """Median seconds of a round."""
    spec = spec_json(hidden, transport)
    shards = [_start("shard", index, spec) for index in range(SHARDS)]
    try:
        ports = [int(process.stdout.readline()) for process in shards if process.stdout is not None]
        return _median([_start("trainer", rank, spec, json.dumps(ports)) for rank in range(TRAINERS)])
    finally:
        for process in shards:
            process.communicate(timeout=30)


def gloo_round(hidden: list[int]) -> float:
    """Median seconds of a round."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return _median([_start("gloo", rank, json.dumps(hidden), port) for rank in range(TRAINERS)])


def run(hidden: list[int]) -> dict[str, float]:
    """Seconds of a round by each way."""
    return {
        "gloo": gloo_round(hidden),
        "shared memory": shoal_round(hidden, "auto"),
        "grpc": shoal_round(hidden, "grpc"),
    }


if __name__ == "__main__":
    configure_logs(log_format="console", level="warning")
    match sys.argv[1:]:
        case ["shard", index, spec]:
            shard(int(index), spec)
        case ["trainer", rank, spec, ports]:
            trainer(int(rank), spec, json.loads(ports))
        case ["gloo", rank, hidden, port]:
            gloo(int(rank), json.loads(hidden), int(port))
