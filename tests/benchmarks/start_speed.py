"""From the command `shoal run examples/digits.yaml` to the first committed step, all processes started by it."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits.yaml"


def run() -> dict[str, float]:
    """Seconds: to the first step, and of the whole command."""
    with tempfile.TemporaryDirectory() as folder:
        command = [Path(sys.executable).with_name("shoal"), "run", EXAMPLE, "--workers", "2", "--shards", "2"]
        result = subprocess.run(
            [*map(str, command), "-o", "json", "--out", f"{folder}/model"], capture_output=True, text=True, check=True
        )
    report = json.loads(result.stdout)
    return {"first_step": report["first_step_seconds"], "job": report["seconds"]}
