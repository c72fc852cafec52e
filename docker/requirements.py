"""Writes what Shoal needs with the given extras, one requirement a line: an image's dependencies without Shoal itself.

    python docker/requirements.py torch,gpu

Installed from this list, they are a layer that stays as it is when Shoal's code changes. An extra that pyproject.toml
does not have ends the program: a build argument with a slip in it must not make an image that lacks something.
"""

import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def main(extras: list[str]) -> None:
    project = tomllib.loads(PROJECT.read_text())["project"]
    known = project["optional-dependencies"]
    for extra in extras:
        if extra not in known:
            sys.exit(f"error: shoal has no extra '{extra}'; known: {', '.join(known)}")
    needed = [*project["dependencies"], *(line for extra in extras for line in known[extra])]
    sys.stdout.writelines(f"{line}\n" for line in dict.fromkeys(needed))


if __name__ == "__main__":
    main([extra for extra in sys.argv[1].split(",") if extra])
