"""What Shoal promises, shown on this machine in under a minute.

Trains the same job twice by `shoal run`: undisturbed, and with a worker killed on the way. Fails unless both end with
the same weights, bit for bit, and with a useful model.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SPEC = Path(__file__).with_name("digits.yaml")
LEAST_ACCURACY = 0.97


def run(*options: str) -> dict[str, Any]:
    """One `shoal run`; its progress goes to the terminal."""
    command = [str(Path(sys.executable).with_name("shoal")), "run", str(SPEC), "-o", "json", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(done.returncode)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    print("1. The job undisturbed: 2 workers, 2 shards.", flush=True)
    calm = run("--workers", "2", "--shards", "2")
    print("2. The same job; a worker is killed on the way.", flush=True)
    stormy = run("--workers", "2", "--shards", "2", "--fault", "kill worker-1 at step 100")

    print()
    for name, result in (("undisturbed", calm), ("disturbed", stormy)):
        print(
            f"{name:<12} accuracy {result['accuracy']:.4f}  loss {result['loss']:.6f}"
            f"  {result['steps']} steps in {result['seconds']:.1f} s  weights {result['weights_sha256'][:16]}..."
        )
    for fault in stormy["faults"]:
        print(f"fault: {fault['fault']}, done at step {fault['at_step']}")
    if calm["weights_sha256"] != stormy["weights_sha256"]:
        sys.exit("FAILED: the weights differ")
    print(f"The weights came out the same, bit for bit: sha256 {calm['weights_sha256']}")
    if calm["accuracy"] < LEAST_ACCURACY:
        sys.exit(f"FAILED: the accuracy is below {LEAST_ACCURACY}")
    print(f"The model is in {stormy['model_dir']}")


if __name__ == "__main__":
    main()
