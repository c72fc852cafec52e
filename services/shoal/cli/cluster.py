"""`shoal up`, `shoal down`, `shoal status`: the local cluster that stays."""

from typing import Annotated, Any

import typer

from shoal.cli import output as out
from shoal.cli.exits import Exit
from shoal.cli.options import DataRoots, Format, Output, worker_options
from shoal.cli.reaching import LOCAL_CONTEXT
from shoal.core.errors import NotFound, ShoalError
from shoal.local import detached
from shoal.sdk import Client
from shoal.sdk.contexts import Context, ContextFile


def up(
    workers: Annotated[int, typer.Option(min=0, help="Number of workers.")] = 2,
    shards: Annotated[int, typer.Option(min=1, help="Number of parameter servers.")] = 2,
    host: Annotated[str, typer.Option(help="Address to serve on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="The master's port; 0: any free one.")] = 7070,
    data_roots: DataRoots = None,
    output: Output = Format.TABLE,
) -> None:
    """Start a cluster on this machine that stays until 'shoal down'. It becomes the current context, 'local'."""
    contexts = ContextFile()
    contexts.read()  # a damaged file is told before anything starts
    state = detached.up(workers=workers, shards=shards, host=host, port=port, worker_options=worker_options(data_roots))
    try:
        contexts.store(Context(name=LOCAL_CONTEXT, address=state.address, command="shoal up"))
    except BaseException:
        detached.down(state)
        raise
    if output is Format.TABLE:
        print(f"master at {state.address}, {shards} parameter servers, {workers} workers; logs in {state.folder}")
    else:
        out.show(_document(state), output, {})


def status(output: Output = Format.TABLE) -> None:
    """Show the cluster that 'shoal up' started. Exit code 1 unless all of it runs."""
    state = detached.find()
    if state is None:
        raise NotFound("no cluster; start one by 'shoal up'")
    document = _document(state)
    if output is Format.TABLE:
        print(f"master at {state.address}{'' if document['answers'] else ', which does not answer'}")
        columns = {"PROCESS": "name", "ROLE": "role", "PID": "pid", "RUNNING": "running"}
        out.show(document["processes"], output, columns)
    else:
        out.show(document, output, {})
    if not document["answers"] or len(state.running) < len(state.members):
        raise typer.Exit(Exit.FAILED)


def down(output: Output = Format.TABLE) -> None:
    """End the cluster that 'shoal up' started; nothing of it is left, and the context before it is current again."""
    state = detached.find()
    if state is None:
        raise NotFound("no cluster; there is nothing to end")
    ended = detached.down(state)
    contexts = ContextFile()
    if contexts.read().find(LOCAL_CONTEXT) is not None:
        contexts.remove(LOCAL_CONTEXT)
    if output is Format.TABLE:
        print(f"{ended} processes ended, none left")
    else:
        out.show({"ended": ended, "left": 0}, output, {})


def _document(state: detached.Detached) -> dict[str, Any]:
    running = set(state.running)
    try:
        with Client(state.address, retry_seconds=0, timeout_seconds=2) as client:
            client.workers()
        answers = True
    except ShoalError:
        answers = False
    return {
        "address": state.address,
        "answers": answers,
        "folder": str(state.folder),
        "processes": [
            {"name": member.name, "role": member.role, "pid": member.pid, "running": member in running}
            for member in state.members
        ],
    }
