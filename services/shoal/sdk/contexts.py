"""Contexts: the names under which a user's masters are remembered.

They are in one YAML file, the one used last first, and that one is current: what `shoal connect` and `shoal up` store
becomes current, and removing it makes the one before it current again.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from shoal.core.errors import Corrupt, InvalidInput, NotFound

FILE_VARIABLE = "SHOAL_CONTEXTS"  # environment: the file, where it is not the default
_HEAD = "# Written by 'shoal connect', 'shoal up' and 'shoal contexts'. The first one is current.\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """A master by name. `command` is the one that made it, and that brings its address back to life."""

    name: str
    address: str  # HOST:PORT
    command: str = ""

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Raises TypeError or KeyError for what is no context."""
        fields = {key: document[key] for key in ("name", "address")} | {"command": document.get("command", "")}
        if not all(isinstance(value, str) for value in fields.values()):
            raise TypeError("name, address and command are texts")
        return cls(**fields)

    def to_document(self) -> dict[str, str]:
        return {"name": self.name, "address": self.address, "command": self.command}


@dataclass(frozen=True, slots=True)
class Contexts:
    """What one file says: the context used last first. A change gives a new one."""

    all: tuple[Context, ...] = ()

    @property
    def current(self) -> Context | None:
        return self.all[0] if self.all else None

    def get(self, name: str) -> Context:
        """Raises NotFound with the names there are."""
        for context in self.all:
            if context.name == name:
                return context
        names = ", ".join(context.name for context in self.all)
        raise NotFound(f"no context '{name}'; " + (f"there are {names}" if names else "'shoal connect' makes one"))

    def find(self, name: str) -> Context | None:
        return next((context for context in self.all if context.name == name), None)

    def used(self, name: str) -> "Contexts":
        """With this one as the current one. Raises NotFound."""
        return self.stored(self.get(name))

    def stored(self, context: Context) -> "Contexts":
        """With this one, in the place of one of the same name, as the current one."""
        return Contexts((context, *(other for other in self.all if other.name != context.name)))

    def removed(self, name: str) -> "Contexts":
        """Without this one. Raises NotFound."""
        gone = self.get(name)
        return Contexts(tuple(context for context in self.all if context is not gone))


def contexts_file() -> Path:
    """$SHOAL_CONTEXTS, else $XDG_CONFIG_HOME/shoal/contexts.yaml, by default in ~/.config."""
    if given := os.environ.get(FILE_VARIABLE):
        return Path(given)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "shoal" / "contexts.yaml"


class ContextFile:
    """The file: read whole, replaced whole, by one process at a time."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or contexts_file()

    def read(self) -> Contexts:
        """No contexts if there is no file. Raises Corrupt for one that cannot be read, or is not one of contexts."""
        try:
            document = yaml.safe_load(self.path.read_bytes())
            entries = () if document is None else document["contexts"]
            contexts = tuple(Context.from_document(entry) for entry in entries)
        except FileNotFoundError:
            return Contexts()
        except OSError as error:
            raise Corrupt(f"contexts file {self.path}: {error.strerror}") from error
        except (yaml.YAMLError, TypeError, KeyError, AttributeError, UnicodeDecodeError) as error:
            mark = getattr(error, "problem_mark", None)
            where = "" if mark is None else f", line {mark.line + 1}"
            raise Corrupt(
                f"contexts file {self.path}{where}: not a list of contexts; correct it or delete it"
            ) from error
        if len({context.name for context in contexts}) != len(contexts):
            raise Corrupt(f"contexts file {self.path}: a name is there twice; correct it or delete it")
        return Contexts(contexts)

    def store(self, context: Context) -> Contexts:
        """Makes it the current one. Raises Corrupt, InvalidInput (cannot be written)."""
        with self._alone():
            return self._replace(self.read().stored(context))

    def use(self, name: str) -> Contexts:
        """Raises NotFound, Corrupt, InvalidInput (cannot be written)."""
        with self._alone():
            return self._replace(self.read().used(name))

    def remove(self, name: str) -> Contexts:
        """Raises NotFound, Corrupt, InvalidInput (cannot be written)."""
        with self._alone():
            return self._replace(self.read().removed(name))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else changes the file meanwhile. The lock is a file of its own, as the other one is replaced."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.path.with_name(self.path.name + ".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _replace(self, contexts: Contexts) -> Contexts:
        text = yaml.safe_dump({"contexts": [context.to_document() for context in contexts.all]}, sort_keys=False)
        try:
            fd, name = tempfile.mkstemp(prefix=self.path.name + ".", dir=self.path.parent)  # mode 0600
            temporary = Path(name)
            try:
                with open(fd, "w") as file:
                    file.write(_HEAD + text)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(self.path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise self._unwritable(error) from error
        return contexts

    def _unwritable(self, error: OSError) -> InvalidInput:
        return InvalidInput(
            f"contexts file {self.path}: {error.strerror}; name another one by ${FILE_VARIABLE}", field="contexts"
        )
