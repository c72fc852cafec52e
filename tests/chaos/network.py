"""Network namespaces with one address each, which can be cut off, both ways or one way.

A namespace is held by a process that dies with this one, and ends with the last process in it; its links and rules go
with it. So nothing is left, even after SIGKILL. This machine's own namespace gets one link with a private address to a
bridge, which lies in a namespace, too; no rule of its own firewall is touched, and no packet leaves it.
"""

import contextlib
import os
import random
import re
import shutil
import subprocess
import time
from typing import Self

PROGRAMS = {
    "ip": "iproute2",
    "iptables": "iptables",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "nsenter": "util-linux",
}
INBOUND, OUTBOUND = "INPUT", "OUTPUT"  # iptables' chains

_SECONDS = 10.0
_LINK = "eth0"  # within a namespace


def what_is_missing() -> str:
    """Why there can be no namespaces here; '': there can."""
    if os.geteuid() != 0:
        return "network partitions need root"
    missing = [f"{program} (Debian: {package})" for program, package in PROGRAMS.items() if not shutil.which(program)]
    if missing:
        return f"network partitions need {', '.join(missing)}"
    try:
        with Network() as network:
            place = network.place()
            place.drop(INBOUND)
            place.heal()
    except NotPossible as error:
        return f"network partitions are not possible here: {error}"
    return ""


class NotPossible(Exception):
    """The kernel or its policy does not allow it."""


class Place:
    """A namespace. `entry` is put before a command that is to run in it."""

    def __init__(self) -> None:
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"]
        self._holder = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self.address = ""
        own = os.readlink("/proc/self/ns/net")
        deadline = time.monotonic() + _SECONDS
        while self._namespace() == own:
            if self._holder.poll() is not None or time.monotonic() > deadline:
                raise NotPossible("unshare --net")
            time.sleep(0.01)
        self.run("ip", "link", "set", "lo", "up")

    @property
    def entry(self) -> tuple[str, ...]:
        return ("nsenter", f"--net=/proc/{self.pid}/ns/net", "--")

    @property
    def pid(self) -> int:
        return self._holder.pid

    def run(self, *command: str) -> str:
        return _run(*self.entry, *command)

    def drop(self, *chains: str) -> None:
        """From now on nothing comes in (INBOUND), or goes out (OUTBOUND)."""
        for chain in chains:
            self.run("iptables", "-w", "-A", chain, "-i" if chain == INBOUND else "-o", _LINK, "-j", "DROP")

    def dropped(self) -> int:
        """How many packets did not come through since `drop`."""
        told = self.run("iptables", "-w", "-L", "-v", "-x", "-n")
        return sum(int(packets) for packets in re.findall(r"^\s*(\d+)\s+\d+\s+DROP\b", told, re.MULTILINE))

    def heal(self) -> None:
        """Everything passes again."""
        self.run("iptables", "-w", "-F")

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()

    def _namespace(self) -> str:
        try:
            return os.readlink(f"/proc/{self.pid}/ns/net")
        except OSError:
            return ""  # it has ended


class Network:
    """Places on one bridge, and this machine's own leg, at `address`."""

    def __init__(self) -> None:
        self._prefix = _free_prefix()
        self._places: list[Place] = []
        self._hub = Place()
        self._leg = f"shoal{os.getpid() % 10_000_000}"  # at most 15 characters
        try:
            self._hub.run("ip", "link", "add", "bridge", "type", "bridge")
            self._hub.run("ip", "link", "set", "bridge", "up")
            _run("ip", "link", "add", self._leg, "type", "veth", "peer", "name", "leg", "netns", str(self._hub.pid))
            self._plug("leg")
            self.address = f"{self._prefix}.1"
            _run("ip", "address", "add", f"{self.address}/24", "dev", self._leg)
            _run("ip", "link", "set", self._leg, "up")
        except NotPossible:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def place(self) -> Place:
        """A new one, with an address of its own."""
        place = Place()
        self._places.append(place)
        number = len(self._places) + 1
        self._hub.run(
            "ip", "link", "add", f"port{number}", "type", "veth", "peer", "name", _LINK, "netns", str(place.pid)
        )
        self._plug(f"port{number}")
        place.address = f"{self._prefix}.{number}"
        place.run("ip", "address", "add", f"{place.address}/24", "dev", _LINK)
        place.run("ip", "link", "set", _LINK, "up")
        return place

    def close(self) -> None:
        """The kernel removes links with their namespaces, in its own time; this machine's leg at once."""
        with contextlib.suppress(NotPossible):  # it was not made, or is gone with its other end
            _run("ip", "link", "delete", self._leg)
        for place in (*self._places, self._hub):
            place.close()

    def _plug(self, link: str) -> None:
        self._hub.run("ip", "link", "set", link, "master", "bridge")
        self._hub.run("ip", "link", "set", link, "up")


def _free_prefix() -> str:
    """Three numbers of a private /24 that this machine has no route to."""
    routes = _run("ip", "-4", "route", "show", "table", "all")
    while True:
        prefix = f"10.{random.randrange(200, 250)}.{random.randrange(256)}"
        if f" {prefix}." not in f" {routes}" and f"\n{prefix}." not in routes:
            return prefix


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    if done.returncode != 0:
        raise NotPossible(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
