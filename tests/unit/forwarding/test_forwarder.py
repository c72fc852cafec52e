"""The forwarder between real sockets: clients on one side, a fake API server with real services on the other."""

import contextlib
import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from shoal.core.errors import InvalidInput
from shoal.forwarding.carrying import HELD_BYTES
from shoal.forwarding.forwarder import CONNECTIONS, Forwarder, listen
from shoal.forwarding.kube import Route
from tests.fake_kubernetes import pod, service

SECONDS = 20.0


def echo(connection: socket.socket) -> None:
    while data := connection.recv(1 << 16):
        connection.sendall(data)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def forward(fake, kubernetes, serving, said) -> Iterator[Callable[..., Forwarder]]:
    """Starts a service in a pod, and a forwarder to it."""
    started: list[Forwarder] = []

    def start(talk: Callable[[socket.socket], None] = echo) -> Forwarder:
        fake.services = [service()]
        fake.pods = [pod(port=serving(talk))]
        cluster = kubernetes()
        route = Route(cluster, cluster.find_master())
        started.append(Forwarder(route=route, listener=listen(0), say=said.append))
        started[-1].start()
        return started[-1]

    yield start
    for forwarder in started:
        forwarder.close()
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith("forward-")]
    assert names == []


def connect(forwarder: Forwarder) -> socket.socket:
    host, _, port = forwarder.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=SECONDS)


def read(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (more := connection.recv(min(1 << 16, size - len(data)))):
        data += more
    return bytes(data)


def exchange(forwarder: Forwarder, message: bytes) -> bytes:
    with connect(forwarder) as connection:
        connection.sendall(message)
        return read(connection, len(message))


def eventually(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_bytes_come_back_unchanged(forward):
    forwarder = forward()
    with connect(forwarder) as connection:
        for size in (1, 125, 126, 32_767, 32_768, 65_536, 300_000):
            message = os.urandom(size)
            sending = threading.Thread(target=connection.sendall, args=(message,), name="sending")
            sending.start()
            assert read(connection, size) == message
            sending.join()


def test_many_connections_at_once_do_not_mix(forward, fake):
    forwarder = forward()
    messages = [os.urandom(200_000) for _ in range(30)]

    def slowly(message: bytes) -> bytes:
        with connect(forwarder) as connection:
            sending = threading.Thread(target=connection.sendall, args=(message,), name="sending")
            sending.start()
            answer = read(connection, len(message))
            sending.join()
            return answer

    with ThreadPoolExecutor(30) as pool:
        assert list(pool.map(slowly, messages)) == messages
    assert fake.tunnels == 30  # one each


def test_more_connections_than_it_serves_at_once_wait_for_their_turn(forward, fake):
    forwarder = forward()
    first = [connect(forwarder) for _ in range(CONNECTIONS)]
    for connection in first:
        connection.sendall(b"x")
        assert read(connection, 1) == b"x"
    with connect(forwarder) as late:
        late.sendall(b"late")
        late.settimeout(0.3)
        with pytest.raises(TimeoutError):
            late.recv(1)
        assert fake.tunnels == CONNECTIONS
        first.pop().close()
        late.settimeout(SECONDS)
        assert read(late, 4) == b"late"
    for connection in first:
        connection.close()


def test_a_slow_reader_slows_its_writer(forward):
    sent = 0
    stop = threading.Event()

    def pour(connection: socket.socket) -> None:
        nonlocal sent
        connection.recv(1)
        connection.settimeout(1.0)
        try:
            while not stop.is_set():
                sent += connection.send(b"x" * 65_536)
        except TimeoutError:
            stop.set()

    forwarder = forward(pour)
    with connect(forwarder) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        connection.sendall(b"!")
        assert stop.wait(SECONDS)  # the service could not write for a second
        # Sockets of this machine hold up to 6 MB each; the three pairs of them, and what the forwarder holds itself.
        assert sent < 3 * 12_000_000 + 2 * HELD_BYTES
        assert read(connection, sent) == b"x" * sent


def test_a_slow_service_slows_its_client(forward):
    go_on = threading.Event()
    digest = hashlib.sha256()

    def sip(connection: socket.socket) -> None:
        assert go_on.wait(SECONDS)
        while data := connection.recv(1 << 16):
            digest.update(data)
        connection.sendall(b".")

    forwarder = forward(sip)
    with connect(forwarder) as connection:
        connection.settimeout(1.0)
        poured, total = hashlib.sha256(), 0
        with contextlib.suppress(TimeoutError):
            while total < 1 << 30:
                chunk = os.urandom(16_384)
                size = connection.send(chunk)
                poured.update(chunk[:size])
                total += size
        assert total < 3 * 12_000_000 + 2 * HELD_BYTES
        go_on.set()
    eventually(lambda: digest.digest() == poured.digest())


def test_a_client_that_has_said_all_still_gets_its_answer(forward):
    def answer_once(connection: socket.socket) -> None:
        assert connection.recv(64) == b"question"
        for _ in range(3):
            threading.Event().wait(0.2)  # thinks
            connection.sendall(b"answer.")

    forwarder = forward(answer_once)
    with connect(forwarder) as connection:
        connection.sendall(b"question")
        connection.shutdown(socket.SHUT_WR)
        assert read(connection, 100) == b"answer." * 3


def test_the_end_of_the_service_is_the_end_of_the_connection_behind_its_last_byte(forward, said):
    forwarder = forward(lambda connection: connection.sendall(b"x" * 1_000_000) if connection.recv(1) else None)
    with connect(forwarder) as connection:
        connection.sendall(b"!")
        assert read(connection, 2_000_000) == b"x" * 1_000_000
        assert connection.recv(1) == b""
    assert not any("broke" in line for line in said)


def test_a_client_that_goes_leaves_no_tunnel(forward, fake):
    forwarder = forward()
    for _ in range(5):
        assert exchange(forwarder, b"hello") == b"hello"
    fake.await_tunnels(0)


def test_one_that_only_looks_whether_somebody_listens_costs_no_tunnel(forward, fake):
    forwarder = forward()
    for _ in range(5):
        connect(forwarder).close()
    assert exchange(forwarder, b"hello") == b"hello"
    assert fake.tunnels == 1


def test_a_broken_tunnel_ends_its_connection_and_the_next_one_works(forward, fake, said):
    forwarder = forward()
    with connect(forwarder) as connection:
        connection.sendall(b"hello")
        assert read(connection, 5) == b"hello"
        assert fake.break_tunnels() == 1
        assert connection.recv(1) == b""
    assert exchange(forwarder, b"again") == b"again"
    told = "a connection to pod shoal-master-a broke (the Kubernetes API ended it without a word)"
    eventually(lambda: any(told in line for line in said))


def test_a_pod_that_was_replaced_is_followed(forward, fake, serving, said):
    forwarder = forward()
    assert exchange(forwarder, b"hello") == b"hello"
    fake.pods = []
    with connect(forwarder) as waiting:
        waiting.sendall(b"anybody")
        eventually(lambda: said[-1] == "no pod of the master is ready; waiting for one")
        fake.pods = [pod("shoal-master-b", port=serving(echo))]
        assert read(waiting, 7) == b"anybody"
    assert said[-1] == "forwarding to pod shoal-master-b now"


def test_what_a_kubelet_says_is_told_and_it_is_tried_again(forward, fake, said):
    forwarder = forward()
    forwarder.wait_ready()
    fake.kubelet_says = "cannot attach:\nno such container"
    with connect(forwarder) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b""
    eventually(lambda: any("(cannot attach: no such container)" in line for line in said))
    fake.kubelet_says = ""
    assert exchange(forwarder, b"hello") == b"hello"


def test_a_refusal_is_told_once_and_waited_out_as_long_as_the_client_does(forward, fake, said):
    forwarder = forward()
    forwarder.wait_ready()
    fake.refused = {"portforward": 403}
    with connect(forwarder) as connection:
        connection.sendall(b"hello")
        eventually(lambda: fake.asked.count("/api/v1/namespaces/default/pods/shoal-master-a/portforward") >= 2)
        fake.refused = {}
        assert read(connection, 5) == b"hello"
    assert len([line for line in said if "no right to create pods/portforward" in line]) == 1


def test_closing_ends_what_is_open_and_frees_the_port(forward, fake):
    forwarder = forward()
    port = int(forwarder.address.rpartition(":")[2])
    connections = [connect(forwarder) for _ in range(3)]
    for connection in connections[:2]:  # the third has said nothing yet
        connection.sendall(b"x")
        assert read(connection, 1) == b"x"
    forwarder.close()
    for connection in connections:
        assert connection.recv(1) == b""
        connection.close()
    fake.await_tunnels(0)
    listen(port).close()


def test_a_taken_port_is_told_with_what_to_do(forward):
    port = int(forward().address.rpartition(":")[2])
    with pytest.raises(InvalidInput, match=f"port {port} is taken, perhaps by another 'shoal connect'; .*--local-port"):
        listen(port)
