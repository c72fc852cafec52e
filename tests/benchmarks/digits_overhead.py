"""What a step on the digits costs beyond the model's own time: 2 workers x 2 shards, by each transport.

A perceptron so quick (38,000 parameters) that all the rest shows. The model's own time is what the same units take,
batch, forward and backward, in two processes of a plain loop.
"""

import itertools
import json
import statistics
import sys
import time

import torch
from torch.nn.functional import cross_entropy

from shoal.core.job import Grant, ShardAddress
from shoal.core.plan import split_evenly
from shoal.data.catalog import open_dataset
from shoal.data.sampler import Sampler
from shoal.jobspec.reading import load_spec, parse_spec
from shoal.jobspec.spec import JobSpec, TrainingConfig
from shoal.models.catalog import build_model
from shoal.process.allocator import keep_freed_memory
from shoal.process.logs import configure_logs
from shoal.worker.control import Assignment
from shoal.worker.trainer.app import Training
from tests.benchmarks.processes import reports_of, shard_processes, start

WORKERS = 2
SHARDS = 2
STEPS = 600
SPEC = """
model: {type: mlp, hidden: [512]}
training: {world_size: 8, batch_size: 8, steps: STEPS, evaluate_every: STEPS}
optimizer: {name: sgd, learning_rate: 0.1, momentum: 0.9}
resources: {transport: TRANSPORT}
"""


def spec_of(transport: str) -> JobSpec:
    text = SPEC.replace("STEPS", str(STEPS)).replace("TRANSPORT", transport)
    return parse_spec(text).with_defaults(TrainingConfig())


def train(worker: int, spec_json: str, ports: list[int]) -> None:
    spec = load_spec(spec_json)
    ranks = split_evenly(spec.training.world_size, WORKERS, worker)
    grant = Grant(
        job_id="bench",
        attempt=1,
        revision=1,
        spec_json=spec_json,
        first_rank=ranks.start,
        last_rank=ranks.stop,
        shards=tuple(
            ShardAddress(server_id=str(index), host="127.0.0.1", port=port, index=index)
            for index, port in enumerate(ports)
        ),
    )
    assignment = Assignment(grant=grant, worker_id=f"worker-{worker}", incarnation=str(worker))
    training = Training(assignment, roots=(), take_ranks=lambda: ranks)
    marks: list[float] = []
    training.loop.on_advance = lambda _: marks.append(time.perf_counter())
    training.run()
    report(marks[:STEPS])  # without the evaluation


def plain(worker: int, spec_json: str) -> None:
    """The same worker's units with nothing around them."""
    spec = load_spec(spec_json)
    torch.set_num_threads(spec.training.num_threads)
    dataset = open_dataset(**spec.data.model_dump(), roots=())
    plan, sampler = spec.plan(dataset.facts), Sampler(spec.training.seed, dataset.facts.train_samples)
    model = build_model(
        spec.model, input_shape=dataset.facts.input_shape, classes=dataset.facts.classes, seed=spec.training.seed
    )
    ranks = split_evenly(spec.training.world_size, WORKERS, worker)
    marks: list[float] = []
    for step in range(STEPS):
        marks.append(time.perf_counter())
        for rank in ranks:
            model.zero_grad()
            x, y = map(torch.from_numpy, dataset.train.batch(sampler.indices(plan.unit(step, rank))))
            cross_entropy(model(x), y).backward()
    report(marks)


def report(marks: list[float]) -> None:
    """The median step: a mean would measure what else runs on the machine."""
    steps = [later - earlier for earlier, later in itertools.pairwise(marks[STEPS // 4 :])]
    print(json.dumps({"seconds": statistics.median(steps)}), flush=True)


def run() -> dict[str, float]:
    """Seconds of a step."""
    seconds: dict[str, float] = {}
    spec_json = spec_of("auto").model_dump_json()
    processes = [start("digits_overhead", "plain", worker, spec_json) for worker in range(WORKERS)]
    seconds["model alone"] = max(report["seconds"] for report in reports_of(processes))
    for name, transport in (("shared memory", "auto"), ("grpc", "grpc")):
        spec_json = spec_of(transport).model_dump_json()
        with shard_processes(spec_json, SHARDS) as shards:
            processes = [
                start("digits_overhead", "train", worker, spec_json, json.dumps([shard.port for shard in shards]))
                for worker in range(WORKERS)
            ]
            seconds[name] = max(report["seconds"] for report in reports_of(processes))
    return seconds


if __name__ == "__main__":
    keep_freed_memory()  # as a trainer's own main does
    configure_logs(log_format="console", level="error")
    match sys.argv[1:]:
        case ["train", worker, spec_json, ports]:
            train(int(worker), spec_json, json.loads(ports))
        case ["plain", worker, spec_json]:
            plain(int(worker), spec_json)
