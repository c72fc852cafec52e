"""Documents that are made from the code are fresh."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_reference_is_what_the_code_says():
    done = subprocess.run(
        [sys.executable, "tools/reference.py", "check"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_constraints_are_versions_only():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, version = line.split("==")
        assert name.replace("-", "").replace(".", "").replace("_", "").isalnum(), line
        assert all(part.isalnum() for part in version.split(".")), line
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()
