"""`shoal contexts`: the masters that have a name."""

from typing import Annotated

import typer

from shoal.cli import output as out
from shoal.cli.options import Format, Output
from shoal.sdk.contexts import ContextFile, Contexts

app = typer.Typer(help="Names of masters, and which one commands mean.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The context's name.")]


@app.command("list")
def list_contexts(output: Output = Format.TABLE) -> None:
    """List the contexts, the current one first."""
    documents = [
        {"current": index == 0, **context.to_document()} for index, context in enumerate(ContextFile().read().all)
    ]
    columns = {"NAME": "name", "ADDRESS": "address", "CURRENT": "current", "MADE BY": "command"}
    out.show(documents, output, columns)


@app.command("use")
def use(name: Name, output: Output = Format.TABLE) -> None:
    """Make a context the current one."""
    _tell(ContextFile().use(name), output)


@app.command("remove")
def remove(name: Name, output: Output = Format.TABLE) -> None:
    """Forget a context. If it was the current one, the one before it is current again."""
    _tell(ContextFile().remove(name), output)


def _tell(contexts: Contexts, output: Format) -> None:
    """What is current now."""
    current = contexts.current
    if output is not Format.TABLE:
        out.show({"current": None if current is None else current.name}, output, {})
    elif current is None:
        print("there is no context now")
    else:
        print(f"context '{current.name}' is current: {current.address}")
