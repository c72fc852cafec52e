"""The examples do what they say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.cli.left import TAG, new_tag, none_left

ROOT = Path(__file__).resolve().parents[3]


def example(name: str, cwd: Path) -> str:
    tag = new_tag()
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name],
        cwd=cwd,
        env={**os.environ, TAG: tag},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert none_left(tag)
    return done.stdout


@pytest.mark.timeout(180)
def test_the_demo_ends_with_the_same_weights_and_a_useful_model(tmp_path):
    out = example("demo.py", tmp_path)
    assert "The weights came out the same, bit for bit: sha256 " in out
    assert "fault: kill worker-1 at step 100, done at step" in out


@pytest.mark.timeout(180)
def test_the_basic_example_survives_the_loss_of_a_worker(tmp_path):
    out = example("basic_example.py", tmp_path)
    assert "killed worker-1, started worker-3" in out
    accuracy = float(out.split("accuracy ")[1].split()[0])
    assert accuracy >= 0.97
