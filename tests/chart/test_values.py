"""Values, their comments, their schema and their tests agree."""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from shoal import __version__
from tests.chart.rendering import CHART, ROLES, ROOT, VALUES, any_helm, objects, pods, refused, template

_specification = importlib.util.spec_from_file_location("chart_tool", ROOT / "tools" / "chart.py")
assert _specification is not None
assert _specification.loader is not None
tool = importlib.util.module_from_spec(_specification)
sys.modules["chart_tool"] = tool  # for its dataclasses
_specification.loader.exec_module(tool)

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())
DOCUMENTED = {value.path for value in tool.values((CHART / "values.yaml").read_text())}

# Objects that take any key: Kubernetes' own, which its API server checks, and a parent chart's.
OPEN = {"#/definitions/kubernetesObject", "#/definitions/volume", "#/properties/global"}
# Values that exclude others, so that everything-values.yaml has them as they are, with the reason.
NOT_IN_EVERYTHING = {
    "master.persistence.enabled",  # no persistence.size and the like without it
    "master.persistence.existingClaim",
    "master.store.url",  # no persistence with it
    "master.store.existingSecret.name",
    "master.store.existingSecret.key",
    "master.strategy",  # needs store
    "master.watchPods.enabled",
    "master.serviceAccount.create",
    "master.serviceAccount.name",  # no Role's subject of the chart's own with it
    "master.podDisruptionBudget.maxUnavailable",  # minAvailable is there
    "parameterServers.image.digest",  # the master has one
    "parameterServers.persistence.enabled",
    "parameterServers.serviceAccount.create",
    "parameterServers.podDisruptionBudget.enabled",
    "parameterServers.podDisruptionBudget.maxUnavailable",
    "workers.serviceAccount.create",
    "workers.defaults.image.digest",
    "workers.defaults.podDisruptionBudget.enabled",
    "workers.defaults.podDisruptionBudget.maxUnavailable",
    "networkPolicy.enabled",
    "networkPolicy.store.to",  # needs store
    "networkPolicy.store.ports",
    "test.enabled",
    *(f"monitoring.serviceMonitor.{name}" for name in DEFAULTS["monitoring"]["serviceMonitor"]),  # podMonitor is there
}


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = SCHEMA["definitions"][schema["$ref"].removeprefix("#/definitions/")]
    return schema


def everything_in(schema: Any, path: str = "#") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema of an object, with where it is."""
    if isinstance(schema, dict):
        if "object" in schema.get("type", ()):
            yield path, schema
        for key, value in schema.items():
            yield from everything_in(value, f"{path}/{key}")
    elif isinstance(schema, list):
        for index, value in enumerate(schema):
            yield from everything_in(value, f"{path}/{index}")


def paths_in(values: Any, prefix: str = "") -> Iterator[str]:
    """Every path in nested mappings, with dots; those of sections, too."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield f"{prefix}{key}"
            yield from paths_in(value, f"{prefix}{key}.")


def set_by(values: dict[str, Any]) -> set[str]:
    """The paths that a values file sets; what a pool sets counts for `workers.defaults`."""
    found = set(paths_in(values))
    for pool in values.get("workers", {}).get("pools", []):
        found |= set(paths_in(pool, "workers.defaults."))
    return found


def test_readme_schema_and_versions_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "tools/chart.py", "check"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_chart_installs_this_version() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert about["version"] == about["appVersion"] == __version__


def test_a_value_without_a_comment_is_found() -> None:
    text = "# Documented.\nfirst: 1\n\nsecond:\n  # Also.\n  third: 3\n  fourth: 4\n"
    with pytest.raises(tool.Undocumented, match=re.escape("values.yaml, line 7: second.fourth has no comment")):
        tool.values(text)


def test_a_mapping_is_one_row_or_its_values_are() -> None:
    whole, section = "# One.\n# Two.\nwhole: {a: 1}\n", "# A section.\nparts:\n  # Three.\n  b: []\n"
    text = whole + section + "plain: # not above\n  # Four.\n  c: ''\n"
    assert [(value.path, value.default, value.description) for value in tool.values(text)] == [
        ("whole", {"a": 1}, "One. Two."),
        ("parts.b", [], "Three."),
        ("plain.c", "", "Four."),
    ]


def test_the_schema_takes_no_key_that_it_does_not_know() -> None:
    for path, schema in everything_in(SCHEMA):
        if path in OPEN or path.startswith("#/properties/extraObjects"):
            continue
        more = schema.get("additionalProperties")
        assert more is False or (isinstance(more, dict) and resolve(more)["type"] != "object"), path


def test_the_schema_knows_the_values_of_the_chart_and_no_others() -> None:
    def known(schema: dict[str, Any], defaults: Any, path: str) -> Iterator[str]:
        properties = resolve(schema).get("properties", {})
        if isinstance(defaults, dict) and path not in DOCUMENTED:
            assert properties.keys() == defaults.keys(), path
            for key, value in defaults.items():
                yield from known(properties[key], value, f"{path}.{key}".lstrip("."))
        else:
            yield path

    properties = dict(SCHEMA["properties"])
    assert properties.pop("enabled")["type"] == "boolean"  # a parent's condition
    assert set(known({"properties": properties}, DEFAULTS, "")) == DOCUMENTED


def test_a_pool_takes_what_the_defaults_take() -> None:
    pool, defaults = (SCHEMA["definitions"][name]["properties"] for name in ("pool", "poolDefaults"))
    assert pool.keys() - {"name"} == defaults.keys() == DEFAULTS["workers"]["defaults"].keys()


def test_what_the_chart_decides_is_what_its_pods_set() -> None:
    decided: dict[str, set[str]] = {section: set() for section in ROLES.values()}
    for values in ("everything", "gpu", "restricted"):
        for pod in pods(objects(values)):
            if pod.component in ROLES:
                section = ROLES[pod.component]
                prefix = f"SHOAL_{section.upper()}_"
                names = {variable["name"] for variable in pod.spec["containers"][0]["env"]}
                decided[section] |= {n.removeprefix(prefix).lower() for n in names if n.startswith(prefix)}
    assert decided == {role.section: set(names) for role, names in tool.DECIDED.items()}


def test_every_value_is_set_by_a_suite_of_the_chart() -> None:
    found: set[str] = set()
    for suite in CHART.glob("tests/*_test.yaml"):
        for document in yaml.safe_load_all(suite.read_text()):
            for test in document["tests"]:
                given: dict[str, Any] = {}
                for path, value in test.get("set", {}).items():
                    nested: Any = value
                    for key in reversed(path.split(".")):
                        nested = {key: nested}
                    found |= set_by(nested)
                    given.update(nested)
    assert {path for path in DOCUMENTED if path not in found} == set()


def test_everything_values_has_every_value() -> None:
    values = yaml.safe_load(VALUES["everything"].read_text())
    assert DOCUMENTED - set_by(values) == NOT_IN_EVERYTHING

    def differs(path: str) -> bool:
        given, default = values, DEFAULTS
        for key in path.split("."):
            given, default = given[key], default[key]
        return bool(given != default)

    in_defaults = set(paths_in(values)) & DOCUMENTED
    assert [path for path in sorted(in_defaults) if not differs(path)] == []


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("workers.pools[0].replicas=3", "at '/workers/pools/0': missing property 'name'"),
        ("worker.replicas=3", "additional properties 'worker' not allowed"),
        ("config.master.store=memory://", "at '/config/master': additional properties 'store' not allowed"),
        ("config.ps.max_streams=none", "at '/config/ps/max_streams': got string, want integer"),
        ("commonLabels=null", "missing property 'commonLabels'"),
    ],
)
def test_a_wrong_value_is_named(wrong: str, told: str) -> None:
    assert told in refused("--set", wrong)


def test_documents_name_values_that_exist() -> None:
    """Every `a.b` in the chart's README that looks like a value is one."""
    sections = "|".join(key for key, value in DEFAULTS.items() if isinstance(value, dict))
    text = (CHART / "README.md").read_text()
    text = text[: text.index("<!-- values: begin")]
    known = set(paths_in(DEFAULTS))
    for name in re.findall(rf"`((?:{sections})(?:\.\w+)+)`", text):
        assert name in known, name


def test_the_examples_of_the_readme_are_taken(tmp_path: Path) -> None:
    examples = re.findall(r"```yaml\n(.*?)```", (CHART / "README.md").read_text(), re.DOTALL)
    pools = next(example for example in examples if example.startswith("workers:"))
    file = tmp_path / "values.yaml"
    file.write_text(pools)
    text = template(any_helm(), "--values", file)
    assert "vision-shoal-worker-a100" in text
    assert "vision-shoal-worker-cpu" in text
