"""Processes of a cluster: started with a mark in their environment, by which every one of them is found again.

The mark, unlike a process id, is never reused and is inherited by what the processes start themselves, so "nothing is
left" can be said of trainers, too.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from shoal.core.errors import DeadlineExceeded, InvalidInput, Unavailable
from shoal.process.lifetime import DIE_WITH_PARENT

MARK = "SHOAL_LOCAL_CLUSTER"  # environment: the cluster's id
POLL_SECONDS = 0.02

_CLIENT_VARIABLES = ("SHOAL_MASTER_ADDRESS", MARK, DIE_WITH_PARENT)


@dataclass(frozen=True, kw_only=True)
class Member:
    """One role's process. It leads a process group of its own, in which its trainers are, too."""

    name: str
    role: str  # master, ps, worker
    process: "subprocess.Popen[bytes]"
    ready_file: Path
    log_file: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None


def start(name: str, role: str, options: Sequence[str], *, folder: Path, cluster_id: str, with_parent: bool) -> Member:
    """Starts `python -m shoal.<role>` in its own session, so that Ctrl-C reaches only the starter.

    `with_parent`: it dies with this process (and with this thread, see process/lifetime.py).
    """
    ready_file, log_file = folder / f"{name}.ready", folder / f"{name}.log"
    ready_file.unlink(missing_ok=True)
    environment = {key: value for key, value in os.environ.items() if key not in _CLIENT_VARIABLES}
    environment[MARK] = cluster_id
    if with_parent:
        environment[DIE_WITH_PARENT] = str(os.getpid())
    command = [sys.executable, "-m", f"shoal.{role}", "--ready-file", str(ready_file), *options]
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    return Member(name=name, role=role, process=process, ready_file=ready_file, log_file=log_file)


def wait_ready(members: Iterable[Member], *, seconds: float, pause: threading.Event) -> dict[str, Mapping[str, Any]]:
    """What the members' ready files say. Raises Unavailable for one that ended, DeadlineExceeded for a slow one."""
    waiting = list(members)
    ready: dict[str, Mapping[str, Any]] = {}
    polls_left = round(seconds / POLL_SECONDS)
    while waiting:
        for member in list(waiting):
            if member.ready_file.exists():
                ready[member.name] = json.loads(member.ready_file.read_text())
                waiting.remove(member)
            elif not member.running:
                raise Unavailable(
                    f"{member.name} ended with code {member.process.returncode}: {last_words(member)} "
                    f"(its log: {member.log_file})"
                )
        if waiting:
            if polls_left == 0:
                names = ", ".join(member.name for member in waiting)
                raise DeadlineExceeded(f"{names} not ready after {seconds:g} s; see {waiting[0].log_file}")
            polls_left -= 1
            pause.wait(POLL_SECONDS)
    return ready


def last_words(member: Member) -> str:
    """Its own error message or, for want of one, the last line of its log."""
    try:
        told = [line.strip() for line in member.log_file.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return "no log"
    errors = [line.removeprefix("error: ") for line in told if line.startswith("error: ")]
    return (errors or told or ["no log"])[-1]


def signal_group(pid: int, number: signal.Signals) -> None:
    """To a member and everything in its group. Without effect if all of them are gone."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return


def marked(cluster_id: str) -> list[psutil.Process]:
    """Every living process of the cluster, trainers included."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == cluster_id and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            continue  # ended meanwhile, or somebody else's
    return found


def stop_all(cluster_id: str, groups: Sequence[Sequence[psutil.Process]], *, grace_seconds: float) -> int:
    """Ends the groups one after the other by SIGTERM, then whatever the mark still finds by SIGKILL.

    Returns how many were left after that: 0, unless the kernel holds one.
    """
    for group in groups:
        alive = [process for process in group if process.is_running()]
        for process in alive:
            _send(process, signal.SIGTERM)
            _send(process, signal.SIGCONT)  # a frozen one must be able to hear it
        psutil.wait_procs(alive, timeout=grace_seconds)
    for _ in range(3):  # again, for what was being started meanwhile
        rest = marked(cluster_id)
        if not rest:
            return 0
        for process in rest:
            _send(process, signal.SIGKILL)
        psutil.wait_procs(rest, timeout=grace_seconds)
    return len(marked(cluster_id))


def _send(process: psutil.Process, number: signal.Signals) -> None:
    """psutil checks that it is still the same process and not one with a reused id."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def require_free_port(host: str, port: int) -> None:
    """Raises InvalidInput if somebody listens there."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InvalidInput(
                f"port {port} on {host}: {(error.strerror or 'not usable').lower()}; choose another one by --port",
                field="port",
            ) from error
