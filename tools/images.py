"""Builds the images of docker/Dockerfile and says how large they are.

    python tools/images.py                                 with docker, podman or buildah, whichever works here
    python tools/images.py --builder "CMD ARGUMENT..."     with a command that takes the arguments of `buildah build`
    python tools/images.py master --tag dev                only one of them, by another tag than Shoal's version
    python tools/images.py --build-arg CUDA=1 --build-arg TORCH_INDEX_URL=...      see docs/images.md

Fails when an image is larger than it may be.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shoal import __version__

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("master", "parameter-server", "worker")
ENGINES = ("docker", "podman", "buildah")
LIMIT_BYTES = 250_000_000  # of an image without its torch: a master starts on a new node within seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """Bytes of an image's files, unpacked, and those of torch among them."""

    total: int
    torch: int
    torch_version: str

    @property
    def counted(self) -> int:
        """What the limit is for."""
        return self.total - self.torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Builder:
    """`build` is the command before the arguments that docker, podman and buildah share; `engine` runs images."""

    build: tuple[str, ...]
    engine: str

    @classmethod
    def of(cls, command: str) -> "Builder":
        """An engine by its name, or a command that stands for `buildah build`."""
        if command in ("docker", "podman"):
            return cls(build=(command, "build"), engine=command)
        if command == "buildah":
            return cls(build=("buildah", "build", "--layers"), engine=command)
        return cls(build=tuple(shlex.split(command)), engine="buildah")

    def run(self, image: str, target: str, build_arguments: Sequence[str]) -> None:
        """Raises CalledProcessError."""
        given = [part for argument in build_arguments for part in ("--build-arg", argument)]
        place = ["--file", "docker/Dockerfile", "--target", target, "--tag", image, "."]
        subprocess.run([*self.build, *given, *place], cwd=ROOT, check=True)

    def size(self, image: str) -> Size:
        """Measured inside the image, because engines disagree about what a size is. Raises CalledProcessError."""
        measure = ["python", "-c", (ROOT / "docker" / "measure.py").read_text()]
        if self.engine == "buildah":
            container = _output("buildah", "from", "--pull-never", image).strip()
            try:
                said = _output("buildah", "run", "--user", "0", container, "--", *measure)
            finally:
                _output("buildah", "rm", container)
        else:
            nobody_else = ["--rm", "--network", "none", "--user", "0", "--entrypoint", measure[0]]
            said = _output(self.engine, "run", *nobody_else, image, *measure[1:])
        return Size(**json.loads(said))


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def first_that_works() -> str:
    """A client without its engine does not count. Exits if there is none."""
    for name in ENGINES:
        if shutil.which(name) and subprocess.run([name, "info"], capture_output=True).returncode == 0:
            return name
    sys.exit(f"error: none of {', '.join(ENGINES)} works here; install one, or name another by --builder")


def labels() -> list[str]:
    """What the images say of themselves, as build arguments."""
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    built = time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time())))
    return [
        f"VERSION={__version__}",
        f"REVISION={revision}{'-changed' if revision and changed else ''}",
        f"CREATED={time.strftime('%Y-%m-%dT%H:%M:%SZ', built)}",
    ]


def over_limit(target: str, size: Size, build_arguments: Sequence[str]) -> bool:
    """EXTRAS are somebody's own choice: no limit holds for an image with them."""
    chosen = target != "master" and any(given.startswith("EXTRAS=") for given in build_arguments)
    return size.counted > LIMIT_BYTES and not chosen


def line(image: str, size: Size) -> str:
    told = f"{image:40} {size.total / 1e6:8.1f} MB"
    if size.torch:
        told += f", of it torch {size.torch_version} {size.torch / 1e6:.1f} MB, the rest {size.counted / 1e6:.1f} MB"
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(TARGETS)}; default: all")
    parser.add_argument("--builder", help="docker, podman, buildah, or a command; default: the first that works")
    parser.add_argument("--tag", default=__version__, help=f"default: {__version__}")
    parser.add_argument("--prefix", default="", help="before the images' names, such as registry.example.org/team/")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="may be repeated")
    options = parser.parse_args()
    targets = options.targets or TARGETS
    if unknown := set(targets) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}; known: {', '.join(TARGETS)}")

    builder = Builder.of(options.builder or first_that_works())
    told, large = [], []
    try:
        for target in targets:
            image = f"{options.prefix}shoal-{target}:{options.tag}"
            start = time.monotonic()
            builder.run(image, target, [*labels(), *options.build_arg])
            seconds = time.monotonic() - start
            size = builder.size(image)
            told.append(f"{line(image, size)} (built in {seconds:.0f} s)")
            if over_limit(target, size, options.build_arg):
                large.append(
                    f"error: {image} has {size.counted / 1e6:.1f} MB besides torch; {LIMIT_BYTES / 1e6:.0f} may be"
                )
    except subprocess.CalledProcessError as error:
        print(f"error: {error.cmd[0]} failed on {image}: exit code {error.returncode}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {builder.build[0]}: {error.strerror}", file=sys.stderr)
        return 1
    print("\n".join(told), flush=True)
    print("\n".join(large), file=sys.stderr, end="\n" * bool(large))
    return 1 if large else 0


if __name__ == "__main__":
    sys.exit(main())
