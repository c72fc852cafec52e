"""The spec itself: defaults, what follows from it, and its published schema."""

import json
import subprocess
import sys
from pathlib import Path

import pydantic
import pytest

from shoal.core.errors import InvalidInput
from shoal.core.facts import DatasetFacts
from shoal.jobspec.reading import parse_spec, validate_spec
from shoal.jobspec.schema import schema, schema_text
from shoal.jobspec.spec import JobSpec, TrainingConfig
from shoal.models.catalog import MODEL_TYPES

REPOSITORY = Path(__file__).parents[3]
MLP = "model: {type: mlp}\n"


def test_reading_specs_imports_no_heavy_library() -> None:
    """The master and the CLI validate specs where torch is not installed."""
    code = (
        "import sys; import shoal.jobspec.spec, shoal.jobspec.reading, shoal.models.folder; "
        "print([name for name in ('torch', 'sklearn', 'datasets', 'pyarrow', 'pandas') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_what_a_job_leaves_out_comes_from_the_cluster() -> None:
    config = TrainingConfig(default_learning_rate=0.25, default_batch_size=12, max_epochs=3, optimizer="adagrad")
    spec = parse_spec(MLP).with_defaults(config)
    assert spec.optimizer is not None
    assert (spec.optimizer.name, spec.optimizer.learning_rate) == ("adagrad", 0.25)
    assert (spec.training.batch_size, spec.training.epochs, spec.training.steps) == (12, 3, None)
    assert spec.resources.max_workers == spec.training.world_size == 8
    assert spec.with_defaults(TrainingConfig()) == spec


def test_what_a_job_says_stays() -> None:
    spec = parse_spec(
        MLP
        + "optimizer: {name: sgd, learning_rate: 0.5}\ntraining: {steps: 7, batch_size: 3}\nresources: {max_workers: 2}"
    ).with_defaults(TrainingConfig())
    assert spec.optimizer is not None
    assert spec.optimizer.learning_rate == 0.5
    assert (spec.training.batch_size, spec.training.epochs, spec.training.steps) == (3, None, 7)
    assert spec.resources.max_workers == 2


def test_a_clusters_unknown_optimizer_is_told() -> None:
    with pytest.raises(pydantic.ValidationError, match="sdg"):
        parse_spec(MLP).with_defaults(TrainingConfig(optimizer="sdg"))


def test_requirements_ask_for_no_more_workers_than_ranks() -> None:
    spec = parse_spec(MLP + "training: {world_size: 2}\nresources: {max_workers: 9, shards: 3, gpu: true}\npriority: 5")
    requirements = spec.with_defaults(TrainingConfig()).requirements
    assert (requirements.model_type, requirements.max_workers, requirements.shards) == ("mlp", 2, 3)
    assert (requirements.gpu, requirements.priority, requirements.external) == (True, 5, False)


def test_the_plan_follows_from_spec_and_data() -> None:
    spec = parse_spec(MLP + "training: {world_size: 2, batch_size: 4, accumulation: 3, epochs: 2}")
    facts = DatasetFacts(train_samples=50, heldout_samples=5, input_shape=(4,), classes=2, fingerprint="")
    plan = spec.with_defaults(TrainingConfig()).plan(facts)
    assert (plan.global_batch, plan.steps_per_epoch, plan.total_steps) == (24, 3, 6)


def test_the_flat_map_has_dotted_names_and_json_scalars() -> None:
    spec = parse_spec(
        "model: {type: mlp, hidden: [32, 16]}\noptimizer: {name: sgd, momentum: 0.9, nesterov: true, learning_rate: 1}"
    )
    flat = spec.hyperparameters()
    assert flat["model.hidden"] == "32,16"
    assert flat["optimizer.nesterov"] == "true"
    assert flat["optimizer.learning_rate"] == "1.0"
    assert flat["training.mode"] == "sync"
    assert flat["schedule.name"] == "constant"
    assert "training.clip_norm" not in flat


def test_the_published_schema_is_fresh() -> None:
    """Write it anew: `python -m shoal.jobspec > docs/job.schema.json`."""
    assert (REPOSITORY / "docs" / "job.schema.json").read_text() == schema_text()


def test_the_module_prints_the_schema() -> None:
    printed = subprocess.run([sys.executable, "-m", "shoal.jobspec"], capture_output=True, text=True, check=True)
    assert json.loads(printed.stdout) == schema()


def test_the_schema_names_every_model_and_describes_every_field() -> None:
    document = schema()
    assert set(document["properties"]["model"]["discriminator"]["mapping"]) == set(MODEL_TYPES)
    for name in ("DataSpec", "TrainingSpec", "ResourcesSpec"):
        for field, value in document["$defs"][name]["properties"].items():
            assert value.get("description"), f"{name}.{field}"
    assert document["additionalProperties"] is False


def test_a_spec_survives_json() -> None:
    spec = parse_spec(MLP).with_defaults(TrainingConfig())
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("optimizer", "rate"),
    [
        (None, 0.25),
        ({"name": "sgd"}, 0.25),
        ({"name": "sgd", "learning_rate": 0.5}, 0.5),
        ({"name": "adam"}, 0.001),  # torch's own: the cluster's is meant for the cluster's optimizer
    ],
)
def test_a_learning_rate_left_out_is_the_clusters_or_the_rules_own(optimizer: object, rate: float) -> None:
    spec = validate_spec({"model": {"type": "logistic"}, "optimizer": optimizer})
    resolved = spec.with_defaults(TrainingConfig(default_learning_rate=0.25, optimizer="sgd"))
    assert resolved.optimizer is not None
    assert resolved.optimizer.learning_rate == rate


def test_more_workers_than_ranks_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"min_workers 9 is more than training.world_size 8"):
        validate_spec({"model": {"type": "logistic"}, "resources": {"min_workers": 9}})


@pytest.mark.parametrize("option", [{"clip_norm": 1.0}, {"target_accuracy": 0.9}, {"evaluate_every": 5}], ids=str)
def test_what_an_external_client_does_by_itself_is_refused(option: dict[str, float]) -> None:
    document = {"model": {"type": "logistic"}, "trainers": "external", "training": option}
    with pytest.raises(InvalidInput, match=f"training.{next(iter(option))} is for jobs that workers train"):
        validate_spec(document)
