"""The command `shoal`: every subcommand, and what happens to errors."""

import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

from shoal import __version__
from shoal.cli import cluster, connect, contexts, evaluate, jobs, run, snapshots, stopping
from shoal.cli.exits import Exit, of_error
from shoal.cli.options import ContextName, Master
from shoal.core.errors import ShoalError

app = typer.Typer(
    name="shoal",
    help="Train PyTorch models with sharded parameter servers; the result does not depend on who was alive.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_ON_THIS_MACHINE = "On this machine"
_JOBS = "Jobs"
_CLUSTER = "Cluster"

app.command("run", rich_help_panel=_ON_THIS_MACHINE)(run.run)
app.command("up", rich_help_panel=_ON_THIS_MACHINE)(cluster.up)
app.command("status", rich_help_panel=_ON_THIS_MACHINE)(cluster.status)
app.command("down", rich_help_panel=_ON_THIS_MACHINE)(cluster.down)
app.command("validate", rich_help_panel=_ON_THIS_MACHINE)(jobs.validate)
app.command("schema", rich_help_panel=_ON_THIS_MACHINE)(jobs.schema)
app.command("evaluate", rich_help_panel=_ON_THIS_MACHINE)(evaluate.evaluate)
app.command("submit", rich_help_panel=_JOBS)(jobs.submit)
app.command("list", rich_help_panel=_JOBS)(jobs.list_jobs)
app.command("get", rich_help_panel=_JOBS)(jobs.get)
app.command("describe", rich_help_panel=_JOBS)(jobs.describe)
app.command("watch", rich_help_panel=_JOBS)(jobs.watch)
app.command("wait", rich_help_panel=_JOBS)(jobs.wait)
app.command("logs", rich_help_panel=_JOBS)(jobs.logs)
app.command("cancel", rich_help_panel=_JOBS)(jobs.cancel)
app.command("pause", rich_help_panel=_JOBS)(jobs.pause)
app.command("resume", rich_help_panel=_JOBS)(snapshots.resume)
app.command("snapshots", rich_help_panel=_JOBS)(snapshots.snapshots)
app.command("download", rich_help_panel=_JOBS)(jobs.download)
app.command("connect", rich_help_panel=_CLUSTER)(connect.connect)
app.add_typer(contexts.app, name="contexts", rich_help_panel=_CLUSTER)
app.command("workers", rich_help_panel=_CLUSTER)(jobs.workers)
app.command("ps", rich_help_panel=_CLUSTER)(jobs.parameter_servers)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"shoal {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    root: typer.Context,
    master: Master = "",
    context: ContextName = "",
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    root.obj = {"master": master, "context": context}


def main() -> None:
    """Entry point. Exits with the code that docs/cli.md gives; errors are one line on stderr."""
    stopping.install()
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else Exit.OK)
    except stopping.Stopped as stopped:
        _fail(str(stopped), stopped.code)
    except typer.Abort:
        _fail("aborted", Exit.FAILED)
    except TyperException as error:
        if not (text := error.format_message()):  # nothing was asked for, and the help has been shown
            sys.exit(error.exit_code)
        _fail(f"{text} See '{_command_of(error)} --help'.", Exit(error.exit_code))
    except BrokenPipeError:  # the reader of a pipe has gone, as in `shoal list | head -1`
        sys.stderr.close()
        sys.exit(Exit.OK)
    except ShoalError as error:
        _fail(str(error), of_error(error))


def _command_of(error: TyperException) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context is not None else "shoal"


def _fail(text: str, code: Exit) -> None:
    print("error: " + " ".join(text.split()), file=sys.stderr)
    sys.exit(code)
