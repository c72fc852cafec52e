"""The protos' generated code and their contract.

    python tools/protos.py write            regenerate services/shoal/wire/v1 and record additions in the contract
    python tools/protos.py check            fail unless the generated code is fresh and nothing is broken
    python tools/protos.py accept-breakage  as `write`, but record a break, too: a deliberate act, for CHANGELOG.md

The contract, `proto/contract.txt`, has one line per field, enum value and method of the last version. A line that is
gone breaks clients; a new line is an addition, which older clients do not notice.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorSet,
)

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "proto"
CONTRACT = PROTOS / "contract.txt"
GENERATED = Path("shoal/wire/v1")


def protoc(*arguments: str, protos: Path = PROTOS) -> None:
    """Runs the compiler of grpcio-tools over every proto. Raises CalledProcessError."""
    files = sorted(str(path.relative_to(protos)) for path in protos.rglob("*.proto"))
    plugins = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{protos}", *arguments, *files]
    subprocess.run(command, check=True, cwd=protos, env={**os.environ, "PATH": plugins})


def generate(into: Path) -> None:
    protoc(
        f"--python_out={into}", f"--grpc_python_out={into}", f"--mypy_out=quiet:{into}", f"--mypy_grpc_out=quiet:{into}"
    )


def stale() -> list[str]:
    """Names of generated files that differ from what the protos give now."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = {path.name: path.read_bytes() for path in (Path(folder) / GENERATED).iterdir()}
    committed = ROOT / "services" / GENERATED
    have = {path.name: path.read_bytes() for path in committed.glob("*_pb2*")}
    return sorted(name for name in fresh.keys() | have.keys() if fresh.get(name) != have.get(name))


def contract(protos: Path = PROTOS) -> list[str]:
    """One line per field, enum value and method, sorted."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "set.binpb"
        protoc(f"--descriptor_set_out={target}", protos=protos)
        files = FileDescriptorSet.FromString(target.read_bytes()).file
    lines: list[str] = []
    for file in files:
        for service in file.service:
            for method in service.method:
                asks = "stream " * method.client_streaming + method.input_type.lstrip(".")
                answers = "stream " * method.server_streaming + method.output_type.lstrip(".")
                lines.append(f"method {file.package}.{service.name} {method.name} : {asks} -> {answers}")
        for message in file.message_type:
            lines.extend(_message_lines(file.package, message))
        for enum in file.enum_type:
            lines.extend(_enum_lines(file.package, enum))
    return sorted(lines)


def _message_lines(scope: str, message: DescriptorProto) -> Iterator[str]:
    name = f"{scope}.{message.name}"
    for field in message.field:
        yield f"field {name} {field.number} = {field.name} : {_type_of(field)}"
    for nested in message.nested_type:
        yield from _message_lines(name, nested)
    for enum in message.enum_type:
        yield from _enum_lines(name, enum)


def _enum_lines(scope: str, enum: EnumDescriptorProto) -> Iterator[str]:
    for value in enum.value:
        yield f"enum {scope}.{enum.name} {value.number} = {value.name}"


def _type_of(field: FieldDescriptorProto) -> str:
    label = "repeated " if field.label == FieldDescriptorProto.LABEL_REPEATED else ""
    presence = "optional " if field.proto3_optional else ""
    plain = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    return label + presence + (field.type_name.lstrip(".") or plain)


def breakages(old: list[str], new: list[str]) -> list[str]:
    """What of `old` no longer holds in `new`, one line each. Additions are none."""
    now = {_key(line): line for line in new}
    problems = []
    for line in sorted(set(old) - set(new)):
        key = _key(line)
        if key in now:
            problems.append(f"changed: {line}   is now: {now[key]}")
        elif moved := [other for other in new if _named(other) == _named(line)]:
            problems.append(f"renumbered: {line}   is now: {moved[0]}")
        else:
            problems.append(f"removed: {line}")
    return problems


def _key(line: str) -> tuple[str, str, str]:
    """What identifies the item on the wire: a field's and an enum value's number, a method's name."""
    kind, owner, item, *_ = line.split()
    return kind, owner, item


def _named(line: str) -> tuple[str, str, str]:
    """What identifies it in source code."""
    kind, owner, item, *rest = line.split()
    return kind, owner, item if kind == "method" else rest[1]


def main(command: str) -> int:
    recorded = CONTRACT.read_text().splitlines() if CONTRACT.exists() else []
    current = contract()
    problems = breakages(recorded, current)
    if command != "accept-breakage" and problems:
        print(*problems, sep="\n", file=sys.stderr)
        print("error: the protos break existing clients; add a field or method beside the old one", file=sys.stderr)
        return 1
    if command == "check":
        files = stale()
        if files or recorded != current:
            print(f"error: out of date: {', '.join(files) or 'proto/contract.txt'}; run `make protos`", file=sys.stderr)
            return 1
        return 0
    generate(ROOT / "services")
    CONTRACT.write_text("".join(line + "\n" for line in current))
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ("write", "check", "accept-breakage"):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
