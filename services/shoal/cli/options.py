"""Options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


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
        help="The master. Default: that of --context, of $SHOAL_MASTER_ADDRESS, or of the current context.",
    ),
]
ContextName = Annotated[
    str, typer.Option("--context", metavar="NAME", help="The master, by a name of 'shoal contexts list'.")
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


def worker_options(data_roots: list[Path] | None) -> tuple[str, ...]:
    """Flags for the workers of a local cluster."""
    if not data_roots:
        return ()
    return ("--data-roots", ",".join(str(root.resolve()) for root in data_roots))
