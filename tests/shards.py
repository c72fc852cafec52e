"""Real parameter servers in this process, and trainers' views of them, for tests of what lies between."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from shoal.core.facts import DatasetFacts
from shoal.core.job import Grant, ShardAddress
from shoal.core.layout import Layout, flatten, partition
from shoal.jobspec.reading import validate_spec
from shoal.jobspec.spec import JobSpec, TrainingConfig
from shoal.models.catalog import build_model
from shoal.models.state import layers_of
from shoal.optim.catalog import needs_whole_layers
from shoal.ps.app import ParameterServer
from shoal.ps.settings import PsSettings
from shoal.worker.trainer.attach import attach
from shoal.worker.trainer.parameters import Parameters

UNREACHABLE = "127.0.0.1:1"  # a master that these tests do without
FACTS = DatasetFacts(train_samples=640, heldout_samples=100, input_shape=(64,), classes=10, fingerprint="f")


def spec_of(transport: str = "auto", **sections: object) -> JobSpec:
    """A resolved spec: an MLP of about 13,000 parameters unless told otherwise."""
    document: dict[str, object] = {
        "model": {"type": "mlp", "hidden": [160]},
        "training": {"world_size": 4, "batch_size": 4, "steps": 1000},
        "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9},
    }
    document |= sections
    document["resources"] = {"transport": transport} | dict(sections.get("resources", {}))  # type: ignore[call-overload]
    return validate_spec(document).with_defaults(TrainingConfig())


def layout_of(spec: JobSpec, shards: int) -> Layout:
    model = build_model(spec.model, input_shape=FACTS.input_shape, classes=FACTS.classes, seed=spec.training.seed)
    parameters, buffers = layers_of(model)
    assert spec.optimizer is not None
    layers = flatten(parameters=parameters, buffers=buffers)
    return partition(layers, shards=shards, whole=needs_whole_layers(spec.optimizer))


class Shards:
    """`count` parameter servers with one job's shares."""

    def __init__(self, spec: JobSpec, servers: Sequence[ParameterServer], attempt: int) -> None:
        self.spec = spec
        self.servers = tuple(servers)
        self.attempt = attempt
        self.layout = layout_of(spec, len(servers))
        for index, server in enumerate(servers):
            server.shares.create(
                job_id="job",
                attempt=attempt,
                spec_json=spec.model_dump_json(),
                index=index,
                shards=len(servers),
            )

    def grant(self, *, attempt: int | None = None) -> Grant:
        return Grant(
            job_id="job",
            attempt=self.attempt if attempt is None else attempt,
            revision=1,
            spec_json=self.spec.model_dump_json(),
            first_rank=0,
            last_rank=self.spec.training.world_size,
            shards=tuple(
                ShardAddress(server_id=str(index), host="127.0.0.1", port=server.port, index=index)
                for index, server in enumerate(self.servers)
            ),
        )

    def attach(self, worker_id: str = "worker", facts: DatasetFacts = FACTS) -> Parameters:
        links = attach(
            grant=self.grant(),
            worker_id=worker_id,
            incarnation=worker_id,
            facts=facts,
            layout=self.layout,
            transport=self.spec.resources.transport,
        )
        return Parameters(layout=self.layout, links=links, attempt=self.attempt)


@contextlib.contextmanager
def running_shards(spec: JobSpec, folder: Path, *, count: int = 2, attempt: int = 1) -> Iterator[Shards]:
    with contextlib.ExitStack() as stack:
        servers: list[ParameterServer] = []
        for index in range(count):
            settings = PsSettings.load(
                [
                    *("--port", "0", "--metrics-port", "0", "--master", UNREACHABLE),
                    *("--data-dir", str(folder / f"ps-{index}"), "--server-id", f"ps-{index}"),
                ]
            )
            server = ParameterServer(settings)
            stack.callback(server.close)
            servers.append(server)
        yield Shards(spec, servers, attempt)


def shared_memories(pid: int | str = "self") -> list[str]:
    """What a process holds descriptors of: two for each share, and a gradient buffer's while it is handed out."""
    found = []
    for entry in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{pid}/fd/{entry}"))
    return [target for target in found if target.startswith("/memfd:shoal")]


def await_version(parameters: Parameters, version: int, *, seconds: float = 20.0) -> None:
    """Waits until every shard has told this trainer of the version."""
    deadline = time.monotonic() + seconds
    while parameters.version < version:
        assert time.monotonic() < deadline, f"version {version} did not come, it is {parameters.version}"
        parameters.wait(0.5)
