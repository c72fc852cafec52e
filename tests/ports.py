"""Ports for servers that a test names before they start."""

import random
import socket
from pathlib import Path

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")  # what the kernel gives to outgoing connections


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody uses and that no outgoing connection of another test will take meanwhile."""
    first_ephemeral = int(_EPHEMERAL.read_text().split()[0])
    while True:
        port = random.randrange(20_000, max(20_001, first_ephemeral))
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            if probe.connect_ex((host, port)) != 0:
                return port
