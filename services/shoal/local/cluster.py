"""Starts, disturbs and stops the processes of one local cluster."""

import shutil
import signal
import tempfile
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from shoal.core.errors import Internal, NotFound, Refused, ShoalError
from shoal.local import processes
from shoal.local.processes import Member
from shoal.sdk import Client

LEASE_SECONDS = 4.0  # no network lies between the processes of one machine: a shorter silence tells than elsewhere
READY_SECONDS = 90.0  # torch's first import from a cold disk takes most of it
GRACE_SECONDS = 5.0  # from SIGTERM to SIGKILL


class Cluster:
    """A master, `shards` parameter servers and `workers` workers as processes of this machine.

    They are named master, ps-1, ps-2, ..., worker-1, worker-2, ... and die with this process, even if it is killed
    with SIGKILL (use one thread, or one that lives as long, for start and add_worker). `folder` keeps their logs and
    files; by default a temporary one, which `stop` removes. `worker_options` and the like are further flags of the
    roles (docs/settings.md). A context manager: entering starts it, leaving stops it.
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        shards: int = 2,
        host: str = "127.0.0.1",
        port: int = 0,
        folder: str | Path | None = None,
        log_level: str = "info",
        detached: bool = False,
        master_options: Sequence[str] = (),
        server_options: Sequence[str] = (),
        worker_options: Sequence[str] = (),
    ) -> None:
        self.cluster_id = uuid.uuid4().hex
        self.workers_started = 0  # those that have ended since, too
        self._host = host
        self._port = port
        self._wanted_workers = workers
        self._wanted_shards = shards
        self._own_folder = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="shoal-")) if folder is None else Path(folder)
        self._log_level = log_level
        self._detached = detached
        self._options = {"master": master_options, "ps": server_options, "worker": worker_options}
        self._members: dict[str, Member] = {}
        self._pause = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """HOST:PORT of the master."""
        return f"{self._host}:{self._port}"

    @property
    def members(self) -> tuple[Member, ...]:
        return tuple(self._members.values())

    @property
    def workers(self) -> tuple[str, ...]:
        """Names of the workers whose process runs, frozen ones included."""
        return tuple(member.name for member in self.members if member.role == "worker" and member.running)

    @property
    def shards(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.members if member.role == "ps" and member.running)

    def client(self) -> Client:
        return Client(self.address)

    def log(self, name: str) -> str:
        """What a member has logged."""
        return self.member(name).log_file.read_text(errors="replace")

    def start(self) -> None:
        """Returns once every process serves. Raises Unavailable with the last log lines of one that ended instead."""
        if self._port:
            processes.require_free_port(self._host, self._port)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # The master first: it takes a free port itself, which nobody can take from it as from a port that was
            # only looked up. It needs no torch and is there in less than a second.
            master = self._start_master()
            told = processes.wait_ready([master], seconds=READY_SECONDS, pause=self._pause)
            self._port = int(told["master"]["port"])
            for number in range(1, self._wanted_shards + 1):
                self._start_server(f"ps-{number}")
            for _ in range(self._wanted_workers):
                self._start_worker()
            processes.wait_ready(self.members, seconds=READY_SECONDS, pause=self._pause)
        except BaseException as error:
            if isinstance(error, ShoalError):
                self.keep_folder()  # the logs tell why
            self.stop()
            raise

    def stop(self) -> None:
        """Workers first, the master last; then nothing of the cluster runs. Raises Internal if something does."""
        groups = []
        for role in ("worker", "ps", "master"):
            pids = [member.pid for member in self.members if member.role == role and member.running]
            groups.append([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)])
        left = processes.stop_all(self.cluster_id, groups, grace_seconds=GRACE_SECONDS)
        for member in self.members:
            member.process.poll()
        if left:
            raise Internal(f"{left} processes of the cluster could not be ended")
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def keep_folder(self) -> None:
        """Lets `stop` leave the folder with the logs, to find out what went wrong."""
        self._own_folder = False

    def add_worker(self, *, wait: bool = True) -> str:
        """Starts one more worker; returns its name once it serves (or, without `wait`, at once)."""
        member = self._start_worker()
        if wait:
            processes.wait_ready([member], seconds=READY_SECONDS, pause=self._pause)
        return member.name

    def kill_worker(self, name: str) -> None:
        """SIGKILL to the agent and its trainers. Raises NotFound if it does not run."""
        member = self._running(name)
        processes.signal_group(member.pid, signal.SIGKILL)
        member.process.wait()

    def freeze_worker(self, name: str) -> None:
        """SIGSTOP to the agent and its trainers: alive to the kernel, silent to everybody else."""
        processes.signal_group(self._running(name).pid, signal.SIGSTOP)

    def thaw_worker(self, name: str) -> None:
        """SIGCONT to the agent and its trainers."""
        processes.signal_group(self._running(name).pid, signal.SIGCONT)

    def kill_server(self, name: str) -> None:
        """SIGKILL to a parameter server. Raises NotFound if it does not run."""
        member = self._running(name)
        processes.signal_group(member.pid, signal.SIGKILL)
        member.process.wait()

    def restart_server(self, name: str, *, wait: bool = True) -> None:
        """Starts a parameter server that has ended anew, with the files that it had; returns once it serves (or,
        without `wait`, at once). Raises Refused if it runs.
        """
        if self.member(name).running:
            raise Refused(f"{name} runs")
        member = self._start_server(name)
        if wait:
            processes.wait_ready([member], seconds=READY_SECONDS, pause=self._pause)

    def kill_master(self) -> None:
        """SIGKILL to the master. Raises NotFound if it does not run."""
        member = self._running("master")
        processes.signal_group(member.pid, signal.SIGKILL)
        member.process.wait()

    def restart_master(self, *, wait: bool = True) -> None:
        """Starts a master that has ended anew, at the same address and with its files; returns once it serves (or,
        without `wait`, at once). Raises Refused if it runs.
        """
        if self.member("master").running:
            raise Refused("master runs")
        member = self._start_master()
        if wait:
            processes.wait_ready([member], seconds=READY_SECONDS, pause=self._pause)

    def freeze_server(self, name: str) -> None:
        """SIGSTOP to a parameter server: alive to the kernel, silent to everybody else."""
        processes.signal_group(self._running(name).pid, signal.SIGSTOP)

    def thaw_server(self, name: str) -> None:
        """SIGCONT to a parameter server."""
        processes.signal_group(self._running(name).pid, signal.SIGCONT)

    def _start_master(self) -> Member:
        listening = ("--port", str(self._port), "--data-dir", str(self.folder / "master"))
        return self._start("master", "master", *listening, "--lease-seconds", str(LEASE_SECONDS))

    def _start_server(self, name: str) -> Member:
        return self._start(name, "ps", *self._joining, "--server-id", name, "--data-dir", str(self.folder / name))

    @property
    def _joining(self) -> tuple[str, ...]:
        return ("--port", "0", "--master", self.address)

    def _start_worker(self) -> Member:
        self.workers_started += 1
        name = f"worker-{self.workers_started}"
        return self._start(name, "worker", *self._joining, "--worker-id", name)

    def _start(self, name: str, role: str, *options: str) -> Member:
        common = ("--host", self._host, "--metrics-port", "0", "--log-level", self._log_level)
        member = processes.start(
            name,
            role,
            (*common, *options, *self._options[role]),
            folder=self.folder,
            cluster_id=self.cluster_id,
            with_parent=not self._detached,
        )
        self._members[name] = member
        return member

    def member(self, name: str) -> Member:
        """Raises NotFound."""
        if name not in self._members:
            raise NotFound(f"no process '{name}' in this cluster; there are {', '.join(self._members)}")
        return self._members[name]

    def _running(self, name: str) -> Member:
        member = self.member(name)
        if not member.running:
            raise NotFound(f"{name} does not run any more")
        return member
