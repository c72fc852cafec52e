"""From a user's text to a valid spec, or one line that says which field is wrong and what would be right."""

import difflib
import json
from collections.abc import Mapping
from typing import Any

import pydantic
import yaml

from shoal.core.errors import InvalidInput
from shoal.jobspec.spec import JobSpec


def parse_spec(text: str, *, origin: str = "job spec") -> JobSpec:
    """Reads YAML (or JSON, which is YAML). Raises InvalidInput naming the line, or the field and its nearest name."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise InvalidInput(f"{origin}:{where} {problem}") from error
    if not isinstance(document, dict):
        raise InvalidInput(f"{origin}: a mapping with at least 'model:' is expected, not {type(document).__name__}")
    return validate_spec(document, origin=origin)


def validate_spec(document: Mapping[str, Any], *, origin: str = "job spec") -> JobSpec:
    try:
        return JobSpec.model_validate(document)
    except pydantic.ValidationError as error:
        raise describe(error, origin=origin) from error


def load_spec(spec_json: str) -> JobSpec:
    """Reads a spec that was validated before. Raises InvalidInput if a newer or older program wrote it."""
    return validate_spec(json.loads(spec_json), origin="stored job spec")


def describe(error: pydantic.ValidationError, *, origin: str) -> InvalidInput:
    """The first problem as one line."""
    problem = error.errors()[0]
    path = _path_of(problem)
    kind = problem["type"]
    if kind == "extra_forbidden":
        known = _known_names(problem["loc"])
        return InvalidInput(f"{origin}: {path}: no such field{_nearest(str(problem['loc'][-1]), known)}", field=path)
    if kind == "union_tag_invalid":
        tag = str(problem["ctx"]["tag"])
        discriminator = str(problem["ctx"]["discriminator"]).strip("'")
        known = [name.strip(" '") for name in str(problem["ctx"]["expected_tags"]).split(",")]
        path = f"{path}.{discriminator}" if path else discriminator
        return InvalidInput(f"{origin}: {path}: unknown {discriminator} '{tag}'{_nearest(tag, known)}", field=path)
    if kind == "union_tag_not_found":
        discriminator = str(problem["ctx"]["discriminator"]).strip("'")
        return InvalidInput(f"{origin}: {path}.{discriminator}: missing", field=f"{path}.{discriminator}")
    if kind == "missing":
        return InvalidInput(f"{origin}: {path}: missing", field=path)
    message = problem["msg"].removeprefix("Value error, ")
    shown = f" (got {problem['input']!r})" if not isinstance(problem["input"], dict) else ""
    return InvalidInput(f"{origin}: {path or 'spec'}: {message[0].lower()}{message[1:]}{shown}", field=path)


def _path_of(problem: Any) -> str:
    """The field's dotted path without the tags that pydantic puts in for the chosen member of a union."""
    return ".".join(str(part) for index, part in enumerate(problem["loc"]) if not _is_tag(problem["loc"], index))


def _is_tag(location: tuple[int | str, ...], index: int) -> bool:
    return index == 1 and location[0] in ("model", "optimizer", "schedule") and len(location) > 2


def _known_names(location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the mapping in which an unknown one stands."""
    schema: dict[str, Any] = JobSpec.model_json_schema()
    node = schema
    for index, part in enumerate(location[:-1]):
        if _is_tag(location, index):
            mapping = node.get("discriminator", {}).get("mapping", {})
            node = _resolve(schema, {"$ref": mapping[str(part)]}) if str(part) in mapping else node
        else:
            node = _resolve(schema, node.get("properties", {}).get(str(part), {}))
    return list(node.get("properties", {}))


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """Follows $ref, and the non-null member of an optional."""
    while True:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
        elif "anyOf" in node and "discriminator" not in node:
            node = next(member for member in node["anyOf"] if member.get("type") != "null")
        elif "allOf" in node:
            node = node["allOf"][0]
        else:
            return node


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(sorted(known))}" if known else ""
