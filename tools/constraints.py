"""Writes constraints.txt: the versions in this environment of everything that shoal[all,dev] needs.

    python tools/constraints.py > constraints.txt

Versions only: no index, no file, no local version tag, so that the file fits every machine.
"""

from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def needed(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> None:
    """Adds to `seen` whatever the distribution requires here, transitively."""
    for text in metadata.requires(name) or []:
        requirement = Requirement(text)
        wanted = requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in extras | {""}
        )
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if wanted and key not in seen:
            seen.add(key)
            needed(*key, seen)


def main() -> None:
    seen: set[tuple[str, frozenset[str]]] = set()
    needed("shoal", frozenset({"all", "dev"}), seen)
    for name in sorted({name for name, _ in seen} - {"shoal"}):
        print(f"{name}=={metadata.version(name).split('+')[0]}")


main()
