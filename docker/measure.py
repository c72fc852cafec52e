"""Writes, as JSON, how large the image is in which this runs, and how much of it is torch. Standard library only.

Bytes are those of the unpacked files as an image's layers count them: each file fills blocks of 512 and has a header of
one, and a second name of it is nothing but a header. torch is everything that `pip install torch` brings: its
distribution and those that it requires, bytecode included.
"""

import json
import os
import re
import stat
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

SITE = Path(sysconfig.get_path("purelib"))
BLOCK = 512
REQUIREMENT = re.compile(r"([\w.-]+)\s*(?:\[(.*?)\])?")
EXTRA = re.compile(r"extra == [\"'](.+?)[\"']")


def main() -> None:
    torch = requirements_of("torch")
    part = sum(size for path in parts_of(torch) for size in sizes(path))
    version = metadata.version("torch") if torch else ""
    json.dump({"total": sum(sizes(Path("/"))), "torch": part, "torch_version": version}, sys.stdout)


def sizes(top: Path) -> Iterator[int]:
    """Of every file under `top`, or of the file `top`; nothing that is mounted over the image."""
    mounted = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    counted: set[tuple[int, int]] = set()
    for path in files_under(top, mounted):
        facts = os.lstat(path)
        content = stat.S_ISREG(facts.st_mode) and (facts.st_dev, facts.st_ino) not in counted
        counted.add((facts.st_dev, facts.st_ino))
        yield BLOCK + (-(-facts.st_size // BLOCK) * BLOCK if content else 0)


def files_under(top: Path, mounted: set[str]) -> Iterator[str]:
    """Paths of all files but those in `mounted` and under it."""
    if not top.is_dir():
        yield str(top)
    for folder, folders, files in os.walk(top):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in mounted]
        yield from (path for name in files if (path := os.path.join(folder, name)) not in mounted)


def requirements_of(name: str) -> set[str]:
    """The distribution and what it requires, transitively, as far as it is installed."""
    found: set[tuple[str, str]] = set()  # names, each with one extra that is asked for, or ""
    left = [(name, "")]
    while left:
        name, extra = left.pop()
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        if (name, extra) in found:
            continue
        found.add((name, extra))
        for line in required:
            only_for = EXTRA.search(line)
            needed = REQUIREMENT.match(line)
            if needed and (only_for.group(1) if only_for else "") in ("", extra):
                extras = (needed.group(2) or "").split(",")
                left += [(needed.group(1), asked.strip()) for asked in {"", *extras}]
    return {name for name, _ in found}


def parts_of(names: set[str]) -> set[Path]:
    """The folders and single files in site-packages that belong to the distributions."""
    tops = {file.parts[0] for name in names for file in metadata.files(name) or [] if file.parts[0] != ".."}
    return {SITE / top for top in tops if (SITE / top).exists() and top != "__pycache__"}


if __name__ == "__main__":
    main()
