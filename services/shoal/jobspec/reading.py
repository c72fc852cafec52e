"""From a user's text to a valid spec, or one line that says which field is wrong and what would be right."""

import difflib
import json
import reprlib
from collections.abc import Hashable, Mapping
from typing import Any

import pydantic
import yaml

from shoal.core.errors import InvalidInput, ShoalError
from shoal.jobspec.spec import JobSpec


def parse_spec(text: str, *, origin: str = "job spec") -> JobSpec:
    """Reads YAML (or JSON, which is YAML). Raises InvalidInput naming the line, or the field and its nearest name."""
    try:
        document = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not valid YAML"
        raise InvalidInput(f"{origin}:{where} {problem}") from error
    except RecursionError as error:
        raise InvalidInput(f"{origin}: nested too deeply") from error
    if not isinstance(document, dict):
        raise InvalidInput(f"{origin}: a mapping with at least 'model:' is expected, not {type(document).__name__}")
    return validate_spec(document, origin=origin)


def validate_spec(document: Mapping[str, Any], *, origin: str = "job spec") -> JobSpec:
    """Checks what YAML or JSON gave. Raises InvalidInput naming the field and its nearest name."""
    try:
        return JobSpec.model_validate(document)
    except pydantic.ValidationError as error:
        raise describe(error, origin=origin) from error


def load_spec(spec_json: str) -> JobSpec:
    """Reads a spec that was validated before. Raises InvalidInput if a newer or older program wrote it."""
    try:
        document = json.loads(spec_json)
    except ValueError as error:
        raise InvalidInput(f"stored job spec: not valid JSON: {error}") from error
    return validate_spec(document, origin="stored job spec")


def describe(error: pydantic.ValidationError, *, origin: str) -> InvalidInput:
    """The problem that tells most, as one line: an unknown field before all, for it explains one that is missing."""
    problems = error.errors()
    problem = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
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
        path = f"{path}.{discriminator}"
        meant = difflib.get_close_matches(discriminator, [str(key) for key in problem["input"]], n=1)
        hint = f"; is '{meant[0]}' a slip?" if meant else _nearest("", _tags(problem["loc"]))
        return InvalidInput(f"{origin}: {path}: missing{hint}", field=path)
    if kind == "missing":
        return InvalidInput(f"{origin}: {path}: missing", field=path)
    told = getattr(problem.get("ctx", {}).get("error"), "__cause__", None)
    if isinstance(told, ShoalError):  # by a catalog, which names the field itself
        return InvalidInput(f"{origin}: {told}", field=getattr(told, "field", "") or path)
    message = _SAID.get(kind) or problem["msg"].removeprefix("Value error, ")
    shown = f" (got {reprlib.repr(problem['input'])})" if not isinstance(problem["input"], dict) else ""
    return InvalidInput(f"{origin}: {path or 'spec'}: {message[0].lower()}{message[1:]}{shown}", field=path)


# What pydantic says of Python objects, said of YAML.
_SAID = {
    "model_attributes_type": "a mapping is expected",
    "model_type": "a mapping is expected",
    "dict_type": "a mapping is expected",
    "tuple_type": "a list is expected",
    "string_pattern_mismatch": "lower-case letters, digits and inner '-' are expected, at most 63",
}


class _Loader(yaml.SafeLoader):
    """YAML in which a key that is given twice is a mistake, as its specification says."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        given: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in given:
                    raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' is given twice", key.start_mark)
                given.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _path_of(problem: Any) -> str:
    """The field's dotted path without the tags that pydantic puts in for the chosen member of a union."""
    return ".".join(str(part) for index, part in enumerate(problem["loc"]) if not _is_tag(problem["loc"], index))


def _is_tag(location: tuple[int | str, ...], index: int) -> bool:
    return index == 1 and location[0] in ("model", "optimizer", "schedule")


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


def _tags(location: tuple[int | str, ...]) -> list[str]:
    """The names that a union's discriminator may have."""
    schema: dict[str, Any] = JobSpec.model_json_schema()
    node = _resolve(schema, schema["properties"][str(location[0])])
    return list(node.get("discriminator", {}).get("mapping", {}))


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


_ELSEWHERE = {"lr": "learning_rate"}  # what others call a field


def _nearest(name: str, known: list[str]) -> str:
    if _ELSEWHERE.get(name) in known:
        return f"; did you mean '{_ELSEWHERE[name]}'?"
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(sorted(known))}" if known else ""
