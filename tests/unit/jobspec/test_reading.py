"""Bad input of each kind is one line that names the field, and the nearest valid name where there is one."""

import json

import pytest

from shoal.core.errors import InvalidInput
from shoal.jobspec.reading import load_spec, parse_spec
from shoal.jobspec.spec import JobSpec, TrainingConfig

MLP = "model: {type: mlp}\n"

WRONG = [
    # unknown and missing names
    ("model: {type: mlpp}", "model.type", "unknown type 'mlpp'; did you mean 'mlp'?"),
    ("model: {type: transformer}", "model.type", "known: cnn, logistic, mlp"),
    ("model: {type: 3}", "model.type", "unknown type '3'"),
    ("model: {tpye: mlp}", "model.type", "missing; is 'tpye' a slip?"),
    ("model: {}", "model.type", "missing; known: cnn, logistic, mlp"),
    ("{}", "model", "missing"),
    ("model: {type: mlp, hiden: [3]}", "model.hiden", "no such field; did you mean 'hidden'?"),
    (MLP + "modle: 3", "modle", "did you mean 'model'?"),
    (MLP + "training: {epoch: 3}", "training.epoch", "did you mean 'epochs'?"),
    (MLP + "resources: {shard: 3}", "resources.shard", "did you mean 'shards'?"),
    (MLP + "optimizer: {name: sdg}", "optimizer.name", "did you mean 'sgd'?"),
    (MLP + "optimizer: {name: lbfgs}", "optimizer.name", "known: adadelta, adafactor, adagrad, adam,"),
    (MLP + "optimizer: {name: sparseadam}", "optimizer.name", "did you mean"),
    (MLP + "optimizer: {learning_rate: 0.1}", "optimizer.name", "missing"),
    (MLP + "optimizer: {name: sgd, momentun: 0.1}", "optimizer.momentun", "did you mean 'momentum'?"),
    (MLP + "optimizer: {name: sgd, lr: 0.1}", "optimizer.lr", "did you mean 'learning_rate'?"),
    (MLP + "optimizer: {name: adam, momentum: 0.9}", "optimizer.momentum", "no such field"),
    (MLP + "schedule: {name: cosin}", "schedule.name", "did you mean 'cosine'?"),
    (MLP + "schedule: {name: step, step_sze: 3}", "schedule.step_sze", "did you mean 'step_size'?"),
    (MLP + "schedule: {name: step}", "schedule.step_size", "missing"),
    (MLP + "schedule: {warmup_steps: 3}", "schedule.name", "known: constant, cosine, step"),
    (MLP + "data: {sorce: x}", "data.sorce", "did you mean 'source'?"),
    (MLP + "data: {source: 'builtin://digit'}", "data.source", "did you mean 'builtin://digits'?"),
    (MLP + "data: {source: 's3://bucket/x'}", "data.source", "known: builtin://, file://"),
    (MLP + "data: {source: digits}", "data.source", "has no scheme"),
    (MLP + "data: {source: 'file://a.csv'}", "data.source", "three slashes"),
    (MLP + "data: {source: 'file:///a/../b.csv'}", "data", "'..' is not allowed"),
    (MLP + "data: {label: y}", "data.label", "has no columns"),
    # values
    ("model: {type: mlp, hidden: [x]}", "model.hidden.0", "valid integer"),
    ("model: {type: mlp, hidden: [0]}", "model.hidden.0", "greater than 0 (got 0)"),
    ("model: {type: mlp, hidden: 3}", "model.hidden", "a list is expected (got 3)"),
    ("model: {type: cnn, dropout: 2}", "model.dropout", "less than 1 (got 2)"),
    ("model: mlp", "model", "a mapping is expected (got 'mlp')"),
    (MLP + "optimizer: adam", "optimizer", "a mapping is expected (got 'adam')"),
    (MLP + "training: null", "training", "a mapping is expected"),
    (MLP + "optimizer: {name: sgd, learning_rate: -1}", "optimizer.learning_rate", "greater than 0 (got -1)"),
    (MLP + "optimizer: {name: sgd, learning_rate: fast}", "optimizer.learning_rate", "(got 'fast')"),
    (MLP + "optimizer: {name: sgd, learning_rate: .inf}", "optimizer.learning_rate", "finite"),
    (MLP + "optimizer: {name: sgd, nesterov: true}", "optimizer", "nesterov needs momentum > 0"),
    (MLP + "optimizer: {name: adam, betas: [0.9, 1.0]}", "optimizer.betas.1", "less than 1 (got 1.0)"),
    (MLP + "optimizer: {name: rprop, etas: [2, 3]}", "optimizer", "etas must be 0 < first < 1 < second"),
    (MLP + "training: {epochs: 0}", "training.epochs", "greater than or equal to 1 (got 0)"),
    (MLP + "training: {epochs: 3, steps: 4}", "training", "epochs or steps, not both"),
    (MLP + "training: {mode: asink}", "training.mode", "'sync' (got 'asink')"),
    (MLP + "training: {clip_norm: .nan}", "training.clip_norm", "finite"),
    (MLP + "resources: {min_workers: 4, max_workers: 2}", "resources", "max_workers 2 is less than min_workers 4"),
    (MLP + "name: Bad_Name", "name", "lower-case letters"),
    (MLP + "3: 4", "3", "keys should be strings"),
    # not a mapping, not YAML
    ("", "", "not NoneType"),
    ("[1]", "", "not list"),
    ("model: {type: mlp\nfoo", "", "line 2, column 4"),
    ("model: [", "", "line 1, column 9"),
    ("a: b: c", "", "line 1, column 5"),
    (MLP + "model: {type: cnn}", "", "line 2, column 1: 'model' is given twice"),
    ("model: {type: mlp, type: cnn}", "", "line 1, column 20: 'type' is given twice"),
    (MLP + "? [1, 2]\n: 3", "", "line 2"),
    ("---\na: 1\n---\nb: 2", "", "line 3"),
    ("a: !!python/object/apply:os.system [ls]", "", "line 1, column 4: could not determine a constructor"),
    ("\x00", "", "special characters"),
    ("[" * 10_000, "", "nested too deeply"),
    (MLP + "name: &a [*a]", "name", "valid string"),
]


@pytest.mark.parametrize(("text", "field", "said"), WRONG, ids=lambda value: repr(value)[:60])
def test_one_line_says_what_is_wrong_and_where(text: str, field: str, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_spec(text, origin="job.yaml")
    message = str(caught.value)
    assert message.startswith("job.yaml: ")
    assert said in message
    assert caught.value.field == field
    assert "\n" not in message
    assert len(message) < 300
    assert message.count(field) >= 1


def test_aliases_that_multiply_are_shown_short() -> None:
    text = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60)) + "model: *a59"
    with pytest.raises(InvalidInput) as caught:
        parse_spec(text)
    assert len(str(caught.value)) < 400


def test_json_is_read_too() -> None:
    assert parse_spec('{"model": {"type": "mlp", "hidden": [32]}}').model.type == "mlp"


def test_yaml_floats_without_a_dot_are_numbers() -> None:
    spec = parse_spec(MLP + "optimizer: {name: sgd, learning_rate: 1e-3}")
    assert spec.optimizer is not None
    assert spec.optimizer.learning_rate == 0.001


def test_anchors_and_merge_keys_work() -> None:
    spec = parse_spec("model: &model {type: mlp, hidden: [8]}\noptimizer: {<<: {name: sgd}, momentum: 0.9}")
    assert spec.optimizer is not None
    assert spec.optimizer.name == "sgd"


def test_stored_specs_are_read_back() -> None:
    spec = parse_spec(MLP).with_defaults(TrainingConfig())
    assert load_spec(spec.model_dump_json()) == spec


@pytest.mark.parametrize("text", ["", "{", "[]", "3", json.dumps({"model": {"type": "mlp"}, "later": 1})])
def test_stored_specs_of_another_program_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="stored job spec"):
        load_spec(text)


def test_every_section_can_be_given() -> None:
    spec = parse_spec(
        """
        name: all-of-it
        model: {type: cnn, channels: [4, 8], hidden: 16, dropout: 0.1, input_shape: [1, 8, 8], classes: 10}
        data: {source: "builtin://digits", heldout_fraction: 0.1, split_seed: 3}
        training: {world_size: 4, batch_size: 8, accumulation: 2, steps: 10, seed: 1, num_threads: 1, clip_norm: 1.0,
                   evaluate_every: 5, target_accuracy: 0.9}
        optimizer: {name: muon, learning_rate: 0.02, adjust_lr_fn: match_rms_adamw}
        schedule: {name: cosine, warmup_steps: 2, final: 0.1}
        resources: {min_workers: 1, max_workers: 2, shards: 3, gpu: false, transport: grpc}
        priority: -3
        max_attempts: 2
        trainers: internal
        """
    )
    assert isinstance(spec, JobSpec)
    assert not spec.requirements.external
