"""The parts of the Helm chart that other files know better.

    python tools/chart.py write   write the table of values in helm/shoal/README.md, the settings in
                                  values.schema.json, and the versions in Chart.yaml
    python tools/chart.py check   fail unless they are fresh, and each value has a comment

The table comes from values.yaml: a value's description is the comment above it. A mapping is one row if it has a
comment and nothing in it has one; otherwise each of its values is a row. The settings that `config` takes come from the
roles' settings classes.
"""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shoal import __version__
from shoal.master.settings import MasterSettings
from shoal.process.settings import RoleSettings
from shoal.ps.settings import PsSettings
from shoal.worker.settings import WorkerSettings

CHART = Path(__file__).resolve().parent.parent / "helm" / "shoal"
BEGIN, END = "<!-- values: begin (tools/chart.py) -->\n", "<!-- values: end -->\n"

# What the chart decides itself, by environment variables, which win over the settings file. `config` must not take
# these: they would be ignored.
DECIDED: dict[type[RoleSettings], frozenset[str]] = {
    MasterSettings: frozenset(
        {"host", "port", "metrics_port", "data_dir", "store", "kubernetes_namespace", "kubernetes_selector"}
    ),
    PsSettings: frozenset({"host", "port", "metrics_port", "advertise_host", "server_id", "master", "data_dir"}),
    WorkerSettings: frozenset(
        {
            *("host", "port", "metrics_port", "advertise_host", "worker_id", "master"),
            *("supported_models", "max_concurrent_jobs", "warm_trainers", "data_roots", "leave_seconds"),
        }
    ),
}
NOT_IN_PODS = frozenset({"ready_file"})  # for whoever starts a role by hand


class Undocumented(Exception):
    """A value without a comment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """One row of the table."""

    path: str  # with dots
    default: Any
    description: str


def values(text: str) -> list[Value]:
    """The documented values of a values.yaml, in its order. Raises Undocumented."""
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)
    return list(_values_in(root, "", text.splitlines()))


def _values_in(node: yaml.MappingNode, prefix: str, lines: list[str]) -> Iterator[Value]:
    for key, value in node.value:
        path = f"{prefix}{key.value}"
        description = _comment_above(key, lines)
        if isinstance(value, yaml.MappingNode) and value.value and _any_comment_in(value, lines):
            yield from _values_in(value, f"{path}.", lines)
        elif description:
            default = yaml.safe_load(yaml.serialize(value))
            yield Value(path=path, default=default, description=description)
        else:
            raise Undocumented(f"values.yaml, line {key.start_mark.line + 1}: {path} has no comment")


def _comment_above(key: yaml.Node, lines: list[str]) -> str:
    """The comment lines right above a key, in its column."""
    found: list[str] = []
    for line in reversed(lines[: key.start_mark.line]):
        match = re.fullmatch(rf" {{{key.start_mark.column}}}# ?(.*)", line)
        if not match:
            break
        found.insert(0, match[1])
    return " ".join(found)


def _any_comment_in(node: yaml.MappingNode, lines: list[str]) -> bool:
    return not node.flow_style and any(
        _comment_above(key, lines)
        or (isinstance(value, yaml.MappingNode) and value.value and _any_comment_in(value, lines))
        for key, value in node.value
    )


def table(text: str) -> str:
    lines = ["| value | default | |", "|---|---|---|"]
    for value in values(text):
        shown = f"`{json.dumps(value.default)}`" if value.default != "" else "-"
        cells = (f"`{value.path}`", shown, value.description)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def readme(page: str, text: str) -> str:
    """The page with its table made anew."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(text)}\n{END}{after}"


def schema(text: str) -> str:
    """The schema with the roles' settings made anew."""
    document = json.loads(text)
    for role in DECIDED:
        document["definitions"][f"{role.section}Settings"] = settings_schema(role)
    return json.dumps(document, indent=2) + "\n"


def settings_schema(role: type[RoleSettings]) -> dict[str, Any]:
    """What `config` may say to a role: its settings without those that the chart decides."""
    left_out = DECIDED[role] | NOT_IN_PODS
    properties = {
        name: {key: value for key, value in field.items() if key not in ("default", "title")}
        for name, field in role.model_json_schema()["properties"].items()
        if name not in left_out
    }
    return {"type": "object", "additionalProperties": False, "properties": properties}


def versions(text: str) -> str:
    """Chart.yaml with this version of Shoal: the images' default tag, and the chart's own version."""
    text = re.sub(r"(?m)^version: .*$", f"version: {__version__}", text)
    return re.sub(r"(?m)^appVersion: .*$", f'appVersion: "{__version__}"', text)


def main(command: str) -> int:
    text = (CHART / "values.yaml").read_text()
    pages = {name: CHART / name for name in ("README.md", "values.schema.json", "Chart.yaml")}
    try:
        fresh = {
            "README.md": readme(pages["README.md"].read_text(), text),
            "values.schema.json": schema(pages["values.schema.json"].read_text()),
            "Chart.yaml": versions(pages["Chart.yaml"].read_text()),
        }
    except Undocumented as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if command == "write":
        for name, page in pages.items():
            page.write_text(fresh[name])
        return 0
    stale = [name for name, page in pages.items() if page.read_text() != fresh[name]]
    if stale:
        print(f"error: helm/shoal/{stale[0]} is out of date; run `python tools/chart.py write`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ("write", "check"):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
