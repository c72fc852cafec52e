"""Who and where this process is."""

import json
import os
import socket
import uuid
from pathlib import Path

_ALL_ADDRESSES = ("", "0.0.0.0", "::", "[::]")


def new_incarnation() -> str:
    """Minted once at process start: the same name in a new process is somebody else."""
    return uuid.uuid4().hex


def host_id() -> str:
    """The same in two processes of one booted kernel. A hint that shared memory may work; a handshake proves it."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else socket.gethostname()


def host_to_tell(*, listening_on: str, advertised: str) -> str:
    """By which host others are told to reach this process; '' for `advertised` leaves the choice to it.

    Nobody can dial "all addresses", so a process that listens on all of them gives this machine's name.
    """
    if advertised:
        return advertised
    return socket.gethostname() if listening_on in _ALL_ADDRESSES else listening_on


def write_ready_file(path: Path, *, host: str, port: int, metrics_port: int, incarnation: str) -> None:
    """Says, in one rename, that the process serves and where."""
    place = {"host": host, "port": port, "metrics_port": metrics_port}
    document = {**place, "pid": os.getpid(), "incarnation": incarnation}
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(document))
    temporary.rename(path)
