"""Runs `shoal` as a user does: a process, its exit code, both of its streams."""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

SHOAL = str(Path(sys.executable).with_name("shoal"))
NO_CONTEXTS = str(Path(tempfile.gettempdir(), "shoal-tests-have-none", "contexts.yaml"))  # not those of who runs tests


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    def fails_with(self, code: int, *parts: str) -> None:
        """One line on stderr with `parts` in it, nothing that looks like a program's inside."""
        assert self.code == code, self
        assert self.err.startswith("error: "), self
        assert self.err.count("\n") == 1, self
        assert "Traceback" not in self.err + self.out
        for part in parts:
            assert part in self.err, self


def shoal(*arguments: str | Path, cwd: Path | None = None, timeout: float = 60, **variables: str) -> Done:
    done = subprocess.run(
        [SHOAL, *map(str, arguments)],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )
    return Done(code=done.returncode, out=done.stdout, err=done.stderr)


def environment(**variables: str) -> dict[str, str]:
    """That of a user who has set nothing but `variables`."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SHOAL_")}
    return clean | {"SHOAL_CONTEXTS": NO_CONTEXTS} | variables
