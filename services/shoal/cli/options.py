"""Options that several commands share, and which master they mean."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

MASTER_VARIABLE = "SHOAL_MASTER_ADDRESS"


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


class Transport(StrEnum):
    AUTO = "auto"
    GRPC = "grpc"


Master = Annotated[
    str,
    typer.Option(
        "--master",
        "-m",
        metavar="HOST:PORT",
        help=f"The master. Default: ${MASTER_VARIABLE}, the cluster of 'shoal up', or 127.0.0.1:7070.",
    ),
]
Output = Annotated[Format, typer.Option("--output", "-o", help="Form of the answer.")]
DataRoots = Annotated[
    list[Path] | None,
    typer.Option(
        "--data-root", help="Folder whose files jobs may read; may be repeated. Default: /usr/share/datasets."
    ),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]
SpecFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job's spec.")]


def address_of(option: str, context: typer.Context) -> str:
    """Option at the command, option before it, environment, `shoal up`, default."""
    from shoal.local import detached
    from shoal.sdk.client import DEFAULT_ADDRESS

    given = option or str((context.obj or {}).get("master", "")) or os.environ.get(MASTER_VARIABLE, "")
    if given:
        return given
    cluster = detached.find()
    return cluster.address if cluster is not None and cluster.running else DEFAULT_ADDRESS


def worker_options(data_roots: list[Path] | None) -> tuple[str, ...]:
    """Flags for the workers of a local cluster."""
    if not data_roots:
        return ()
    return ("--data-roots", ",".join(str(root.resolve()) for root in data_roots))
