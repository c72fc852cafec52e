"""Imports go one way, and what only asks or decides loads neither torch nor, in the master, numpy."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_layers_hold():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "module",
    ["shoal.cli.app", "shoal.sdk", "shoal.local", "shoal.jobspec.reading", "shoal.master.app", "shoal.worker.app"],
)
def test_torch_is_not_loaded_by(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr or f"{module} imports torch"


@pytest.mark.parametrize("module", ["shoal.jobspec.reading", "shoal.master.app", "shoal.master.store.sql"])
def test_the_master_starts_without_numpy(module):
    code = f"import sys; sys.modules['numpy'] = sys.modules['safetensors'] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "package", sorted(path.parent.name for path in (ROOT / "services/shoal").glob("*/__init__.py"))
)
def test_every_package_says_what_it_is(package):
    text = (ROOT / "services" / "shoal" / package / "__init__.py").read_text()
    assert text.startswith('"""')
    assert len(text.split('"""')[1]) > 40
