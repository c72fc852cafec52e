"""The job spec as a pydantic model. `JobSpec.model_json_schema()` is the published schema."""

import json
from typing import Annotated, Any, Literal, Self

import pydantic

from shoal.core.errors import ShoalError
from shoal.core.facts import DatasetFacts
from shoal.core.job import Requirements
from shoal.core.plan import Plan
from shoal.data.sources import check_source
from shoal.models.catalog import ModelSpec
from shoal.optim.catalog import OptimizerSpec
from shoal.optim.schedules import ConstantSchedule, ScheduleSpec


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Mode = Literal["sync"]


class DataSpec(_Section):
    """Where samples come from and how they are split."""

    source: str = pydantic.Field(
        "builtin://digits",
        description="builtin://NAME, file:///PATH of a folder of IDX files, or file:///PATH of a .csv or .parquet file",
    )
    label: str | None = pydantic.Field(None, description="the label's column in CSV and Parquet files")
    heldout_fraction: Annotated[float, pydantic.Field(ge=0, lt=1)] = pydantic.Field(
        0.2, description="share kept for evaluation, where the source has no test split of its own"
    )
    split_seed: int = pydantic.Field(0, ge=0, description="seed of the split; independent of training.seed")

    @pydantic.model_validator(mode="after")
    def _known_source(self) -> Self:
        try:
            check_source(source=self.source, label=self.label)
        except ShoalError as error:
            raise ValueError(str(error)) from error
        return self


class TrainingSpec(_Section):
    """The mathematics of the run. Workers and shards are not part of it."""

    mode: Mode = pydantic.Field("sync", description="sync: bit-for-bit the same result on any number of machines")
    world_size: int = pydantic.Field(8, ge=1, le=65_536, description="number of ranks (logical data-parallel replicas)")
    batch_size: int | None = pydantic.Field(
        None, ge=1, description="samples of one rank's micro-batch; default: the cluster's TrainingConfig"
    )
    accumulation: int = pydantic.Field(1, ge=1, description="micro-batches that a rank adds up before a step")
    epochs: int | None = pydantic.Field(None, ge=1, description="passes over the training split (or give `steps`)")
    steps: int | None = pydantic.Field(None, ge=1, description="optimizer steps (or give `epochs`)")
    seed: int = pydantic.Field(0, ge=0, description="of the weights, the shuffle, dropout and augmentation")
    num_threads: int = pydantic.Field(
        1, ge=1, le=256, description="torch threads of one unit: part of the mathematics, as kernels split work by it"
    )
    clip_norm: Annotated[float, pydantic.Field(gt=0)] | None = pydantic.Field(
        None, description="largest global L2 norm of the gradient"
    )
    evaluate_every: int | None = pydantic.Field(None, ge=1, description="steps between evaluations; default: an epoch")
    target_accuracy: Annotated[float, pydantic.Field(gt=0, le=1)] | None = pydantic.Field(
        None, description="end early at the first evaluation that reaches it"
    )

    @pydantic.model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        return self


class ResourcesSpec(_Section):
    """What the job asks of the cluster. Nothing here changes the result."""

    min_workers: int = pydantic.Field(1, ge=1, description="wait until this many workers are free")
    max_workers: int | None = pydantic.Field(None, ge=1, description="use at most this many; default: world_size")
    shards: int = pydantic.Field(1, ge=1, le=1024, description="parameter servers to spread the weights over")
    gpu: bool = pydantic.Field(False, description="only workers with a GPU")
    transport: Literal["auto", "grpc"] = pydantic.Field(
        "auto", description="auto: shared memory with shards on the same host, gRPC otherwise; grpc: always gRPC"
    )

    @pydantic.model_validator(mode="after")
    def _order(self) -> Self:
        if self.max_workers is not None and self.max_workers < self.min_workers:
            raise ValueError(f"max_workers {self.max_workers} is less than min_workers {self.min_workers}")
        return self


DEFAULT_SNAPSHOT_SECONDS = 60.0  # of work at most is done again when a parameter server dies


class SnapshotsSpec(_Section):
    """How often the weights and all that training needs are kept on disk, to go on from. Changes no bit of them."""

    every_steps: int | None = pydantic.Field(None, ge=0, description="at versions that are multiples of it; 0: never")
    every_seconds: Annotated[float, pydantic.Field(ge=0)] | None = pydantic.Field(
        None, description=f"or so often; 0: never; default: {DEFAULT_SNAPSHOT_SECONDS:g}"
    )

    @pydantic.model_validator(mode="after")
    def _one_measure(self) -> Self:
        if self.every_steps is not None and self.every_seconds is not None:
            raise ValueError("give every_steps or every_seconds, not both")
        return self


class InitialWeightsSpec(_Section):
    """Another job's weights, to begin with instead of random ones. The models must have equal layers."""

    job: str = pydantic.Field(min_length=1, description="id of a job that has ended")
    step: int | None = pydantic.Field(
        None, ge=0, description="of one of its snapshots; default: the finished model, or else its newest snapshot"
    )


class TrainingConfig(_Section):
    """The cluster's defaults for what a job leaves out (`worker.proto`, TrainingConfig)."""

    default_learning_rate: float = pydantic.Field(0.1, gt=0)
    default_batch_size: int = pydantic.Field(16, ge=1)
    max_epochs: int = pydantic.Field(10, ge=1)
    optimizer: str = "sgd"


class JobSpec(_Section):
    """One training run."""

    name: str = pydantic.Field("job", pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$", description="a DNS label")
    model: ModelSpec
    data: DataSpec = DataSpec()
    training: TrainingSpec = TrainingSpec()
    optimizer: OptimizerSpec | None = pydantic.Field(None, description="default: the cluster's TrainingConfig")
    schedule: ScheduleSpec = ConstantSchedule()
    resources: ResourcesSpec = ResourcesSpec()
    snapshots: SnapshotsSpec = SnapshotsSpec()
    initial_weights: InitialWeightsSpec | None = pydantic.Field(
        None, description="begin with the weights of another job; default: random ones, by training.seed"
    )
    priority: int = pydantic.Field(0, ge=-1000, le=1000, description="higher goes first")
    max_attempts: int = pydantic.Field(
        3,
        ge=1,
        le=100,
        description="attempts that may fail by themselves (not by a lost machine) before the job counts as failed",
    )
    trainers: Literal["internal", "external"] = pydantic.Field(
        "internal", description="external: no workers; clients train by unary calls to the parameter servers"
    )

    @pydantic.model_validator(mode="after")
    def _a_rank_for_each_worker(self) -> Self:
        if self.resources.min_workers > self.training.world_size:
            raise ValueError(
                f"resources.min_workers {self.resources.min_workers} is more than training.world_size"
                f" {self.training.world_size}: each worker hosts at least one rank"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _nothing_that_a_client_would_have_to_do(self) -> Self:
        if self.trainers == "external":
            for name in ("clip_norm", "target_accuracy", "evaluate_every"):
                if getattr(self.training, name) is not None:
                    raise ValueError(f"training.{name} is for jobs that workers train, not for 'trainers: external'")
        return self

    def with_defaults(self, config: TrainingConfig) -> "JobSpec":
        """Every value set. Raises pydantic.ValidationError if the cluster's optimizer does not exist."""
        document: dict[str, Any] = self.model_dump(mode="json")
        if document["optimizer"] is None:
            document["optimizer"] = {"name": config.optimizer}
        if document["optimizer"].get("learning_rate") is None:
            named = self.optimizer if self.optimizer and self.optimizer.name != config.optimizer else None
            document["optimizer"]["learning_rate"] = (
                named.torch_learning_rate if named else config.default_learning_rate
            )
        if document["training"]["batch_size"] is None:
            document["training"]["batch_size"] = config.default_batch_size
        if document["training"]["epochs"] is None and document["training"]["steps"] is None:
            document["training"]["epochs"] = config.max_epochs
        if document["snapshots"]["every_steps"] is None and document["snapshots"]["every_seconds"] is None:
            document["snapshots"]["every_seconds"] = DEFAULT_SNAPSHOT_SECONDS
        if document["resources"]["max_workers"] is None:
            document["resources"]["max_workers"] = document["training"]["world_size"]
        return JobSpec.model_validate(document)

    @property
    def requirements(self) -> Requirements:
        """Of a spec with defaults."""
        assert self.resources.max_workers is not None
        return Requirements(
            model_type=self.model.type,
            gpu=self.resources.gpu,
            world_size=self.training.world_size,
            min_workers=self.resources.min_workers,
            max_workers=min(self.resources.max_workers, self.training.world_size),
            shards=self.resources.shards,
            priority=self.priority,
            external=self.trainers == "external",
            max_attempts=self.max_attempts,
        )

    def plan(self, facts: DatasetFacts) -> Plan:
        """Of a spec with defaults."""
        assert self.training.batch_size is not None
        return Plan(
            world_size=self.training.world_size,
            batch_size=self.training.batch_size,
            accumulation=self.training.accumulation,
            train_samples=facts.train_samples,
            heldout_samples=facts.heldout_samples,
            epochs=self.training.epochs,
            steps=self.training.steps,
            evaluate_every=self.training.evaluate_every,
        )

    def hyperparameters(self) -> dict[str, str]:
        """The flat map of JobParameters, for clients that read only that: dotted names, JSON scalars as text."""
        flat: dict[str, str] = {}

        def visit(prefix: str, value: object) -> None:
            if isinstance(value, dict):
                for key, inner in value.items():
                    visit(f"{prefix}.{key}" if prefix else key, inner)
            elif isinstance(value, list):
                flat[prefix] = ",".join(map(text, value))
            elif value is not None:
                flat[prefix] = text(value)

        def text(value: object) -> str:
            return value if isinstance(value, str) else json.dumps(value)

        for section in ("model", "training", "optimizer", "schedule"):
            visit(section, self.model_dump(mode="json")[section])
        return flat
