"""`shoal run` with real processes, real data, real faults."""

import hashlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.cli.left import TAG, new_tag, none_left, processes
from tests.unit.cli.shell import SHOAL, Done, shoal

pytestmark = pytest.mark.timeout(180)

SPEC: dict[str, Any] = {
    "name": "digits",
    "model": {"type": "mlp", "hidden": [32]},
    "training": {"world_size": 4, "batch_size": 8, "epochs": 20},
    "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9},
}


def spec_file(folder: Path, **training: Any) -> Path:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({**SPEC, "training": {**SPEC["training"], **training}}))
    return path


def run(folder: Path, *options: str, **training: Any) -> tuple[Done, str]:
    tag = new_tag()
    arguments = ("run", spec_file(folder, **training), "-o", "json", *options)
    return shoal(*arguments, cwd=folder, timeout=150, **{TAG: tag}), tag


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """The job undisturbed on one worker and one shard."""
    folder = tmp_path_factory.mktemp("calm")
    done, tag = run(folder, "--workers", "1", "--shards", "1", "--out", "model")
    assert done.code == 0, done
    return folder, json.loads(done.out), tag, done


def test_one_json_object_tells_all(calm):
    _, result, _, done = calm
    assert result.keys() >= {
        *("job_id", "phase", "accuracy", "loss", "steps", "seconds", "samples_per_second", "weights_sha256"),
        *("first_step_seconds", "workers", "shards", "faults", "model_dir"),
    }
    assert (result["phase"], result["workers"], result["shards"], result["faults"]) == ("SUCCEEDED", 1, 1, [])
    assert result["steps"] == 20 * 45
    assert result["samples"] == 20 * 1438
    assert result["accuracy"] > 0.9
    assert result["samples_per_second"] > 0
    assert 0 < result["first_step_seconds"] < 60
    assert 0 < result["seconds"] < 60
    assert "Traceback" not in done.err


def test_nothing_is_left(calm):
    _, _, tag, _ = calm
    assert none_left(tag)


def test_the_saved_model_is_the_one_whose_sha256_was_told(calm):
    folder, result, _, _ = calm
    weights = (folder / "model" / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == result["weights_sha256"]
    config = json.loads((folder / "model" / "config.json").read_text())
    assert config["shoal"]["dataset"]["input_shape"] == [1, 8, 8]
    assert config["shoal"]["dataset"]["heldout_samples"] == 359


@pytest.mark.parametrize("source", [(), ("--dataset", "builtin://digits")])
def test_evaluating_it_gives_the_same_accuracy_and_loss_to_the_last_bit(calm, source):
    folder, result, _, _ = calm
    done = shoal("evaluate", folder / "model", *source, "-o", "json")
    again = json.loads(done.out)
    assert (again["accuracy"], again["loss"], again["samples"]) == (result["accuracy"], result["loss"], 359)
    assert again["weights_sha256"] == result["weights_sha256"]


def test_evaluating_it_on_other_data_is_refused(calm):
    folder, _, _, _ = calm
    data = folder / "data.csv"
    data.write_text("a,b,label\n" + "1,2,0\n3,4,1\n" * 20)
    done = shoal("evaluate", folder / "model", "--dataset", f"file://{data}")
    done.fails_with(2, "input_shape")


@pytest.mark.parametrize(
    "options",
    [
        ("--workers", "3", "--shards", "2"),
        ("--workers", "2", "--shards", "2", "--transport", "grpc"),
        ("--workers", "2", "--shards", "2", "--fault", "kill worker-1 at step 100"),
        ("--workers", "1", "--fault", "add worker at step 50"),
    ],
    ids=lambda options: " ".join(options),
)
def test_the_weights_are_the_same_whatever_the_cluster_and_its_faults(calm, tmp_path, options):
    _, undisturbed, _, _ = calm
    done, tag = run(tmp_path, *options)
    assert done.code == 0, done
    result = json.loads(done.out)
    assert result["weights_sha256"] == undisturbed["weights_sha256"]
    assert (result["accuracy"], result["loss"]) == (undisturbed["accuracy"], undisturbed["loss"])
    assert all(fault["happened"] for fault in result["faults"])
    assert len(result["faults"]) == options.count("--fault")
    assert Path(tmp_path, result["model_dir"], "config.json").exists()
    assert none_left(tag)


def test_a_fault_that_did_not_happen_fails_the_run(tmp_path):
    done, tag = run(tmp_path, "--workers", "1", "--fault", "kill worker-1 at step 1000000", epochs=1)
    assert done.code == 1
    assert done.err.splitlines()[-1] == (
        "error: fault 'kill worker-1 at step 1000000' did not happen: the job had ended before"
    )
    assert json.loads(done.out)["faults"][0]["happened"] is False
    assert none_left(tag)


def test_too_long_a_run_is_ended(tmp_path):
    done, tag = run(tmp_path, "--workers", "1", "--timeout", "6", epochs=100_000)
    assert done.code == 124, done
    assert done.out == ""
    assert "has not ended" in done.err.splitlines()[-1]
    assert none_left(tag)


def test_a_data_source_outside_the_roots_fails_the_job_with_its_reason(tmp_path):
    data = tmp_path / "data.csv"
    data.write_text("a,b,label\n" + "1,2,0\n3,4,1\n" * 20)
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({**SPEC, "data": {"source": f"file://{data}"}}))
    tag = new_tag()
    refused = shoal("run", path, "--workers", "1", cwd=tmp_path, timeout=100, **{TAG: tag})
    assert refused.code == 100, refused
    assert "data roots" in refused.err.splitlines()[-1]
    assert "Traceback" not in refused.out + refused.err
    assert none_left(tag)
    allowed = shoal("run", path, "--workers", "1", "--data-root", tmp_path, cwd=tmp_path, timeout=100, **{TAG: tag})
    assert allowed.code == 0, allowed
    assert none_left(tag)


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"), (signal.SIGHUP, 143, "terminal closed")],
)
def test_ctrl_c_and_its_like_leave_nothing(tmp_path, number, code, words):
    running, tag = start_long(tmp_path)
    assert len(processes(tag)) >= 6  # the command, a master, a server, two workers, a trainer at least
    running.send_signal(number)
    out, err = running.communicate(timeout=60)
    assert running.returncode == code
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith(f"{words}: job ")
    assert last.endswith("was cancelled and every process stopped")
    assert "Traceback" not in err
    assert none_left(tag)


def test_even_sigkill_of_the_command_leaves_nothing(tmp_path):
    running, tag = start_long(tmp_path)
    running.kill()
    running.communicate(timeout=60)
    assert none_left(tag, seconds=10)


def start_long(folder: Path) -> "tuple[subprocess.Popen[str], str]":
    """A run that would take hours, and is past its first step."""
    tag = new_tag()
    running = subprocess.Popen(
        [SHOAL, "run", str(spec_file(folder, epochs=100_000)), "--workers", "2", "-o", "json"],
        cwd=folder,
        env={**os.environ, TAG: tag},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert running.stderr is not None
    for line in running.stderr:
        if line.startswith("running: "):
            return running, tag
    raise AssertionError(f"the run ended with {running.wait()} before its first step")
