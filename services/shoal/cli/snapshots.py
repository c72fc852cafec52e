"""Commands about a job's snapshots: what there is, and going on from one."""

from typing import Annotated

import typer

from shoal.cli import output as out
from shoal.cli.options import ContextName, Format, JobId, Master, Output
from shoal.cli.reaching import reached


def snapshots(
    root: typer.Context, job: JobId, master: Master = "", context: ContextName = "", output: Output = Format.TABLE
) -> None:
    """List the states that a job can go on from, newest first."""
    with reached(root, master=master, context=context) as client:
        found = client.snapshots(job)
    if output is Format.TABLE:
        out.show([out.snapshot_row(snapshot) for snapshot in found], output, out.SNAPSHOT_COLUMNS)
    else:
        out.show([out.snapshot_document(snapshot) for snapshot in found], output, {})


def resume(
    root: typer.Context,
    job: JobId,
    from_step: Annotated[
        int | None,
        typer.Option(min=0, help="Of a job that has ended: the snapshot to go on from; 0: the beginning."),
    ] = None,
    master: Master = "",
    context: ContextName = "",
    output: Output = Format.TABLE,
) -> None:
    """Let a paused job go on, or a cancelled or failed one from its newest snapshot."""
    with reached(root, master=master, context=context) as client:
        phase = client.resume(job, from_step=from_step)
    if output is Format.TABLE:
        print(f"{job} {phase.value}")
    else:
        out.show({"job_id": job, "phase": phase.value}, output, {})
