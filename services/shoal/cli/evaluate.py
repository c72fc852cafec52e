"""`shoal evaluate`: the accuracy of a saved model, the same to the last digit as the job reported."""

from pathlib import Path
from typing import Annotated, Any

import typer

from shoal.cli import output as out
from shoal.cli.options import Format, Output
from shoal.core.errors import Corrupt, InvalidInput

ROOT = Path("/")  # the user's own files: the file system's permissions decide


def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="Folder that 'shoal run' or 'download' saved.")],
    dataset: Annotated[
        str, typer.Option(help="Source to evaluate on, such as builtin://digits. Default: the one it was trained on.")
    ] = "",
    output: Output = Format.TABLE,
) -> None:
    """Evaluate a saved model on a source's held-out split."""
    out.show_one(measure(folder, dataset), output)


def measure(folder: Path, dataset: str) -> dict[str, Any]:
    """Accuracy and loss by the job's own rule: each rank's part of the split, added along the tree."""
    import numpy as np
    import torch

    from shoal.core.tree import tree_sum
    from shoal.data.catalog import open_dataset
    from shoal.jobspec.reading import validate_spec
    from shoal.models.catalog import build_model
    from shoal.models.evaluation import EVALUATION_BATCH, evaluate
    from shoal.models.folder import read_folder, weights_sha256
    from shoal.models.state import load_tensors

    config, tensors = read_folder(folder)
    about = config.get("shoal")
    if not isinstance(about, dict) or "spec" not in about:
        raise Corrupt(f"{folder}: config.json has no 'shoal.spec'; the model was not saved by Shoal")
    spec = validate_spec(about["spec"], origin=f"{folder}/config.json")
    data = open_dataset(
        source=dataset or spec.data.source,
        label=spec.data.label,
        heldout_fraction=spec.data.heldout_fraction,
        split_seed=spec.data.split_seed,
        roots=[ROOT],
    )
    trained_on = about.get("dataset") or {}  # nothing is known of what external trainers used
    for name, value in (("input_shape", list(data.facts.input_shape)), ("classes", data.facts.classes)):
        if trained_on.get(name, value) != value:
            raise InvalidInput(
                f"--dataset {dataset}: its {name} is {value}, the model was trained for {trained_on[name]}",
                field="dataset",
            )
    torch.set_num_threads(spec.training.num_threads)
    torch.set_deterministic_debug_mode("error")
    model = build_model(
        spec.model, input_shape=data.facts.input_shape, classes=data.facts.classes, seed=spec.training.seed
    )
    load_tensors(model, tensors)
    plan = spec.plan(data.facts)
    sums = []
    for rank in range(spec.training.world_size):
        part = np.arange(plan.heldout(rank).start, plan.heldout(rank).stop)
        cuts = range(0, len(part), EVALUATION_BATCH)
        batches = (data.heldout.batch(part[cut : cut + EVALUATION_BATCH]) for cut in cuts)
        sums.append(evaluate(model, ((torch.from_numpy(x), torch.from_numpy(y)) for x, y in batches)))
    samples = sum(part.samples for part in sums)
    if samples == 0:
        raise InvalidInput(f"{dataset or spec.data.source} has no held-out samples", field="dataset")
    return {
        "accuracy": sum(part.correct for part in sums) / samples,
        "loss": tree_sum([part.loss for part in sums]) / samples,
        "samples": samples,
        "dataset": dataset or spec.data.source,
        "weights_sha256": weights_sha256(tensors),
    }
