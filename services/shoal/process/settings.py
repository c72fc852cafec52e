"""Settings of a role: flags over environment over YAML file over defaults.

Each role subclasses `RoleSettings` next to its own code and describes every field; `--help` prints them. The YAML
file is named by `--config` or `SHOAL_CONFIG`; it holds one section per role (`master:`, `worker:`, `ps:`), so that
one file serves a whole cluster.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import pydantic
import yaml
from pydantic_settings import BaseSettings, CliSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from shoal.core.errors import InvalidInput

_CLIENT_VARIABLES = frozenset({"SHOAL_MASTER_ADDRESS"})  # read by clients; looks like a setting of the master


class RoleSettings(BaseSettings):
    """What every role has."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)
    section: ClassVar[str] = ""  # of the YAML file; also the environment prefix SHOAL_<SECTION>_

    log_format: Literal["console", "json"] = pydantic.Field("console", description="log lines for people or machines")
    log_level: Literal["debug", "info", "warning", "error"] = pydantic.Field("info", description="least level logged")
    ready_file: Path | None = pydantic.Field(
        None, description="written (JSON: host, port, metrics_port, pid, incarnation) once the process serves"
    )

    @classmethod
    def load(cls, arguments: Sequence[str]) -> Self:
        """Reads all four sources. Raises InvalidInput with one line; `--help` prints and exits 0."""
        flags_left = list(arguments)
        path = _take_option(flags_left, "--config") or os.environ.get("SHOAL_CONFIG")
        section = _read_section(Path(path), cls.section) if path else {}
        prefix = f"SHOAL_{cls.section.upper()}_"
        _refuse_unknown_environment(prefix, set(cls.model_fields))

        class Loaded(cls):  # type: ignore[valid-type, misc]
            model_config = SettingsConfigDict(env_prefix=prefix)

            @classmethod
            def settings_customise_sources(
                inner,
                settings_cls: type[BaseSettings],
                init_settings: PydanticBaseSettingsSource,
                env_settings: PydanticBaseSettingsSource,
                dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
                file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            ) -> tuple[PydanticBaseSettingsSource, ...]:
                flags: PydanticBaseSettingsSource = CliSettingsSource(
                    settings_cls,
                    cli_parse_args=flags_left,
                    cli_prog_name=f"python -m shoal.{cls.section}",
                    cli_kebab_case=True,
                    cli_implicit_flags=True,
                )
                return flags, env_settings, init_settings

        Loaded.__name__ = cls.__name__
        try:
            loaded = Loaded(**section)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise InvalidInput(
                f"setting {name}: {first['msg']} (flag --{name.replace('_', '-')}, environment {prefix}{name.upper()},"
                f" or {cls.section}.{name} in the YAML file)",
                field=name,
            ) from error
        values = {name: getattr(loaded, name) for name in cls.model_fields}
        return cls.model_construct(**values)  # type: ignore[return-value]


def _take_option(arguments: list[str], option: str) -> str | None:
    """Removes `option VALUE` or `option=VALUE` from the arguments and returns the value."""
    for index, argument in enumerate(arguments):
        if argument == option and index + 1 < len(arguments):
            del arguments[index]
            return arguments.pop(index)
        if argument.startswith(option + "="):
            return arguments.pop(index).split("=", 1)[1]
    return None


def _read_section(path: Path, section: str) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InvalidInput(f"settings file {path}: {error.strerror}", field="config") from error
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise InvalidInput(f"settings file {path} is not YAML: {problem}", field="config") from error
    if document is None:
        return {}
    if not isinstance(document, dict) or not isinstance(document.get(section) or {}, dict):
        raise InvalidInput(f"settings file {path}: a mapping with a section '{section}:' is expected", field="config")
    return {str(key): value for key, value in (document.get(section) or {}).items()}


def _refuse_unknown_environment(prefix: str, known: set[str]) -> None:
    """A mistyped variable must not be ignored. Kubernetes' own service variables end in forms that are let through."""
    for name in os.environ:
        if not name.startswith(prefix) or name[len(prefix) :].lower() in known or name in _CLIENT_VARIABLES:
            continue
        if name[len(prefix) :].startswith(("SERVICE_", "PORT_")):
            continue
        raise InvalidInput(f"environment variable {name}: no such setting; known: {', '.join(sorted(known))}")


def fail(error: Exception) -> None:
    """Prints one line for a person and exits with the code for wrong usage."""
    sys.stderr.write(f"error: {error}\n")
    raise SystemExit(2)
