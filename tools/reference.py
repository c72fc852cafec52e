"""The parts of the documents that the code knows better.

python tools/reference.py write   write docs/settings.md, and the commands in docs/cli.md
python tools/reference.py check   fail unless they are what the code says
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer.main
from pydantic.fields import FieldInfo

from shoal.cli.app import app
from shoal.master.settings import MasterSettings
from shoal.process.settings import RoleSettings
from shoal.ps.settings import PsSettings
from shoal.worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ROOT / "docs" / "settings.md"
CLI = ROOT / "docs" / "cli.md"
BEGIN, END = "<!-- commands: begin (tools/reference.py) -->\n", "<!-- commands: end -->\n"

SETTINGS_HEAD = """\
# Settings

*Made by `tools/reference.py` from the settings classes; do not edit.*

Each role (`python -m shoal.master`, `shoal.ps`, `shoal.worker`) takes its settings from four places. A flag wins over
the environment, that over the YAML file, and that over the default. The file is named by `--config FILE` or
`SHOAL_CONFIG`; it has one section per role, so that one file serves a whole cluster. `deploy/local/shoal.yaml` is an
example. A wrong value and a name that does not exist, in any of the places, end the process with one line and exit
code 2. Every duration has its unit, seconds, in its name.
"""


def settings_page() -> str:
    return "\n".join([SETTINGS_HEAD, *(section(role) for role in (MasterSettings, PsSettings, WorkerSettings))])


def section(role: type[RoleSettings]) -> str:
    lines = [
        f"## {role.section}",
        "",
        f"`python -m shoal.{role.section}`, section `{role.section}:` of the file.",
        "",
        "| flag | environment | default | |",
        "|---|---|---|---|",
    ]
    for name, field in role.model_fields.items():
        flag, variable = f"--{name.replace('_', '-')}", f"SHOAL_{role.section.upper()}_{name.upper()}"
        lines.append(f"| `{flag}` | `{variable}` | {default(field)} | {described(field)} |")
    return "\n".join([*lines, ""])


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value: Any = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value == "":
        return "-"
    if isinstance(value, (tuple, list)):
        return ", ".join(f"`{item}`" for item in value) or "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def described(field: FieldInfo) -> str:
    choices = f" ({', '.join(get_args(field.annotation))})" if get_origin(field.annotation) is Literal else ""
    return (field.description or "").replace("|", "\\|") + choices


def commands() -> Iterator[str]:
    root: Any = typer.main.get_command(app)
    for name, command in leaves(root, "shoal"):
        arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
        usage = " ".join([name, *(argument.metavar or argument.name.upper() for argument in arguments)])
        yield f"### `{usage}`\n"
        yield f"{' '.join(command.help.split())}\n"
        options = [p for p in command.params if p.param_type_name == "option" and not p.hidden and p.name != "help"]
        for option in options:
            shown = "`, `".join((*option.opts, *option.secondary_opts))
            preset = "" if option.default in (None, "", False) or callable(option.default) else option.default
            told = f" Default: {getattr(preset, 'value', preset)}." if preset != "" else ""
            yield f"* `{shown}`: {option.help}{told}"
        yield "" * bool(options)


def leaves(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Every command by its whole name, those of groups of commands too."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def cli_page(page: str) -> str:
    """The page with its list of commands made anew."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{chr(10).join(commands()).rstrip()}\n\n{END}{after}"


def main(command: str) -> int:
    pages = {SETTINGS: settings_page(), CLI: cli_page(CLI.read_text())}
    if command == "write":
        for path, text in pages.items():
            path.write_text(text)
        return 0
    stale = [path.name for path, text in pages.items() if not path.exists() or path.read_text() != text]
    if stale:
        print(f"error: docs/{stale[0]} is out of date; run `python tools/reference.py write`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ("write", "check"):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
