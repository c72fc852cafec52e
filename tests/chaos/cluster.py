"""A cluster for faults: masters behind one address, and whoever ends starts again with its files."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil

from shoal.local import processes
from shoal.local.processes import MARK, Member
from shoal.process.lifetime import DIE_WITH_PARENT
from shoal.sdk import Client
from tests.chaos.network import Network, Place
from tests.chaos.proxy import Address, Proxies, Proxy, Service
from tests.ports import free_port

SECONDS = 60.0  # for whatever is waited for here, on a busy machine
LEASE_SECONDS = 2.5  # of members
LEADERSHIP_SECONDS = 3.0
PATIENCE_SECONDS = 90.0  # of clients: an election, a database that starts and a busy machine fit in
DEPOSED = 75  # exit code of a master that leads no more


_LOOPBACK = "127.0.0.1"
_FRONT = "127.0.0.2"  # where proxies listen that have a server's own port


def until(condition: Callable[[], object], what: str, *, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@dataclass(kw_only=True, eq=False)
class Seat:
    """A name in the cluster, and the process that has it now: as a pod of a StatefulSet."""

    name: str
    role: str
    options: tuple[str, ...]
    folder: Path
    cluster_id: str
    entry: tuple[str, ...] = ()  # in front of the command: into a namespace
    environment: dict[str, str] = field(default_factory=dict)
    serves: Address | None = None  # known beforehand, of a master
    member: Member = field(init=False)
    killed: set[int] = field(default_factory=set)  # process ids that were ended by a fault

    def __post_init__(self) -> None:
        self.fill()

    def fill(self) -> None:
        """Starts a process."""
        ready_file, log_file = self.folder / f"{self.name}.ready", self.folder / f"{self.name}.log"
        ready_file.unlink(missing_ok=True)
        command = (*self.entry, sys.executable, "-m", f"shoal.{self.role}", "--ready-file", str(ready_file))
        with log_file.open("ab") as log:
            process = subprocess.Popen(
                (*command, *self.options),
                env={**os.environ, **self.environment, MARK: self.cluster_id, DIE_WITH_PARENT: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.member = Member(name=self.name, role=self.role, process=process, ready_file=ready_file, log_file=log_file)

    def trainers(self) -> list[psutil.Process]:
        """Those that live, the warm ones too."""
        try:
            return [child for child in psutil.Process(self.member.pid).children() if is_alive(child)]
        except psutil.NoSuchProcess:
            return []


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class ChaosCluster:
    """`masters` masters, `servers` parameter servers, three workers. Use one thread for all but clients.

    Everybody else reaches the master that leads at `address`, through `to_master`. ps-1 and worker-1 are on this
    machine's own network and share memory; what ps-1 hears from others comes through `to_server`. With `network`
    the other servers and workers have a namespace each (`places`); without, they are on loopback as well.
    """

    def __init__(
        self, *, folder: Path, masters: int = 1, servers: int = 2, store: str = "", network: Network | None = None
    ) -> None:
        self.folder = folder
        self.seats: dict[str, Seat] = {}
        self.places: dict[str, Place] = {}
        self.ended_by_themselves: list[str] = []
        self._masters = masters
        self._servers = servers
        self._store = store
        self._network = network
        self._cluster_id = uuid.uuid4().hex
        self._stack = ExitStack()
        self._service: Service
        self.proxies: Proxies
        self.to_master: Proxy
        self.to_server: Proxy
        self.address = ""

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def client(self) -> Client:
        return Client(self.address, retry_seconds=PATIENCE_SECONDS, patience_seconds=PATIENCE_SECONDS)

    @property
    def masters(self) -> list[Seat]:
        return [seat for seat in self.seats.values() if seat.role == "master"]

    def leader(self) -> Seat | None:
        """The master that was ready a moment ago."""
        ready = self._service.ready()
        return next((seat for seat in self.masters if ready is not None and seat.serves == ready), None)

    def log(self, name: str) -> str:
        return self.seats[name].member.log_file.read_text(errors="replace")

    def tend(self) -> None:
        """Starts again whoever has ended. To be called all the time."""
        for seat in self.seats.values():
            if seat.member.running:
                continue
            code = seat.member.process.returncode
            if seat.member.pid not in seat.killed and (seat.role, code) != ("master", DEPOSED):
                self.ended_by_themselves.append(f"{seat.name} ended with code {code}")
            seat.fill()

    def tend_until(self, condition: Callable[[], object], what: str, *, seconds: float = SECONDS) -> None:
        def tended() -> object:
            self.tend()
            return condition()

        until(tended, what, seconds=seconds)

    def kill(self, name: str, *, whole_group: bool = True) -> bool:
        """SIGKILL to the process, or to it and what it has started. `tend` starts it again. False: it had ended."""
        seat = self.seats[name]
        if not seat.member.running:
            return False
        seat.killed.add(seat.member.pid)
        self.signal(name, signal.SIGKILL, whole_group=whole_group)
        return seat.member.process.wait(SECONDS) == -signal.SIGKILL

    def signal(self, name: str, number: signal.Signals, *, whole_group: bool = True) -> None:
        seat = self.seats[name]
        if whole_group:
            processes.signal_group(seat.member.pid, number)
        else:
            seat.member.process.send_signal(number)

    def await_leader(self) -> None:
        until(self.leader, "no master leads")

    # -- starting and ending ----------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.proxies = self._stack.enter_context(Proxies())
        self._service = Service([self._start_master(number) for number in range(1, self._masters + 1)])
        self.proxies.run(self._service.look_forever())
        host = _LOOPBACK if self._network is None else self._network.address
        self.to_master, port = self.proxies.open(host, 0, self._service.ready)
        self.address = f"{host}:{port}"
        self.await_leader()
        server = (_LOOPBACK, free_port())
        front = _FRONT if self._network is None else self._network.address
        self.to_server, _ = self.proxies.open(front, server[1], lambda: server)
        self._start_member("ps-1", "--port", str(server[1]), "--advertise-host", front)
        self._start_member("worker-1", "--port", "0")
        apart = [f"ps-{number}" for number in range(2, self._servers + 1)]
        for name in (*apart, "worker-2", "worker-3"):
            if self._network is not None:
                self.places[name] = self._network.place()
            self._start_member(name, "--port", "0")
        waiting = [seat.member for seat in self.seats.values() if seat.role != "master"]
        processes.wait_ready(waiting, seconds=SECONDS, pause=threading.Event())

    def _start_master(self, number: int) -> tuple[Address, Address]:
        """Where it serves, and where it tells whether it is ready."""
        serves, tells = (_LOOPBACK, free_port()), (_LOOPBACK, free_port())
        options = (
            "--port", str(serves[1]), "--metrics-port", str(tells[1]), "--data-dir", str(self.folder / "master"),
            "--lease-seconds", str(LEASE_SECONDS), "--heartbeat-seconds", "0.5",
            "--leadership-lease-seconds", str(LEADERSHIP_SECONDS),
        )  # fmt: skip
        name = f"master-{number}"
        self.seats[name] = Seat(
            name=name,
            role="master",
            options=options,
            folder=self.folder,
            cluster_id=self._cluster_id,
            environment={"SHOAL_MASTER_STORE": self._store} if self._store else {},
            serves=serves,
        )
        return serves, tells

    def _start_member(self, name: str, *options: str) -> None:
        place = self.places.get(name)
        host = _LOOPBACK if place is None else place.address
        role = name.partition("-")[0]
        common = ("--host", host, "--metrics-port", "0", "--master", self.address)
        own = {
            "ps": ("--server-id", name, "--data-dir", str(self.folder / name)),
            "worker": ("--worker-id", name, "--max-concurrent-jobs", "4", "--data-roots", str(self.folder)),
        }
        self.seats[name] = Seat(
            name=name,
            role=role,
            options=(*common, *own[role], *options),
            folder=self.folder,
            cluster_id=self._cluster_id,
            entry=() if place is None else place.entry,
        )

    def _stop(self) -> None:
        for seat in self.seats.values():
            self.signal(seat.name, signal.SIGKILL)
            seat.member.process.wait()
        left = processes.stop_all(self._cluster_id, [], grace_seconds=5)
        self._stack.close()
        assert not left, f"{left} processes of the cluster could not be ended"
