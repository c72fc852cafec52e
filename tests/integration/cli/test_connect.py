"""`shoal connect` as a command, a real master behind it, and a fake of the Kubernetes API between them."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from shoal.sdk.contexts import Context, ContextFile
from tests.connected import SECONDS, Connected
from tests.fake_kubernetes import FakeKubernetes, pod, service
from tests.integration.cli.left import TAG, new_tag, none_left
from tests.integration.master.conftest import RunningMaster, running, settings_of
from tests.ports import free_port
from tests.unit.cli.shell import SHOAL, Done, environment, shoal

SPEC_FILE = Path(__file__).resolve().parents[3] / "examples" / "digits.yaml"


@pytest.fixture
def fake() -> Iterator[FakeKubernetes]:
    with FakeKubernetes() as fake:
        fake.services = [service()]
        yield fake


@pytest.fixture
def master(fake: FakeKubernetes, tmp_path: Path) -> Iterator[RunningMaster]:
    with running(settings_of(tmp_path)) as master:
        fake.pods = [pod(port=master.port)]
        yield master


class User:
    """Somebody with a kubeconfig and contexts of their own."""

    def __init__(self, fake: FakeKubernetes, folder: Path) -> None:
        self.tag = new_tag()
        self.contexts = ContextFile(folder / "contexts.yaml")
        self.variables = {
            "KUBECONFIG": str(fake.kubeconfig(folder / "kubeconfig")),
            "SHOAL_CONTEXTS": str(self.contexts.path),
            "XDG_STATE_HOME": str(folder),
            TAG: self.tag,
        }

    def __call__(self, *arguments: str | Path) -> Done:
        return shoal(*arguments, **self.variables)


@pytest.fixture
def user(fake: FakeKubernetes, tmp_path: Path) -> User:
    return User(fake, tmp_path)


@pytest.fixture
def connected(user: User) -> Iterator[Callable[..., Connected]]:
    made: list[Connected] = []

    def start(*arguments: str) -> Connected:
        made.append(Connected(*arguments, **user.variables))
        return made[-1]

    yield start
    for each in made:
        each.close()
    assert none_left(user.tag, seconds=5)


class TestForward:
    def test_every_command_goes_through_it_without_being_told_where(self, master, user, connected):
        port = free_port()
        forward = connected("--local-port", str(port))
        assert forward.first_line() == (
            f"127.0.0.1:{port} is the master of default/shoal; this is the current context, Ctrl-C ends it"
        )
        job_id = user("submit", SPEC_FILE).out.strip()
        assert [job["job_id"] for job in json.loads(user("list", "-o", "json").out)] == [job_id]
        current = user.contexts.read().current
        assert current == Context(
            name="default/shoal",
            address=f"127.0.0.1:{port}",
            command=f"shoal connect --namespace default --local-port {port} --name default/shoal",
        )

    def test_a_program_is_told_where(self, master, fake, user, connected):
        forward = connected("--local-port", "0", "--name", "mine", "-o", "json")
        assert forward.process.stdout is not None
        lines = [forward.first_line()]
        while lines[-1] != "}":
            lines.append(forward.first_line())
        document = json.loads("\n".join(lines))
        assert document | {"address": ""} == {
            "address": "",
            "context": "mine",
            "namespace": "default",
            "release": "shoal",
            "service": "shoal-master",
            "pod": "shoal-master-a",
        }
        assert user("list", "-m", document["address"]).code == 0

    def test_it_waits_for_a_master_that_is_not_ready_yet(self, master, fake, user, connected):
        ready, fake.pods = fake.pods, []
        forward = connected("--local-port", "0")
        forward.await_said("no pod of the master is ready; waiting for one")
        fake.pods = ready
        assert "is the master of default/shoal" in forward.first_line()

    def test_a_job_is_followed_over_broken_connections_and_a_new_pod(self, master, fake, user, connected):
        forward = connected("--local-port", "0")
        forward.first_line()
        job_id = user("submit", SPEC_FILE).out.strip()
        watch = subprocess.Popen(
            [SHOAL, "watch", job_id],
            env=environment(**user.variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert watch.stderr is not None
        assert watch.stderr.readline().startswith("pending")
        assert fake.break_tunnels() >= 1
        forward.await_said("broke (the Kubernetes API ended it without a word)")
        fake.pods = []
        fake.break_tunnels()
        forward.await_said("no pod of the master is ready")
        fake.pods = [pod("shoal-master-b", port=master.port)]
        forward.await_said("forwarding to pod shoal-master-b now")
        assert user("cancel", job_id).code == 0
        out, _ = watch.communicate(timeout=SECONDS)
        assert watch.returncode == 103
        assert "CANCELLED" in out


class TestEnd:
    @pytest.mark.parametrize(
        ("number", "code", "words"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
    )
    def test_it_leaves_nothing_but_the_context(self, master, fake, user, connected, number, code, words):
        port = free_port()
        forward = connected("--local-port", str(port))
        forward.first_line()
        with socket.create_connection(("127.0.0.1", port)) as open_connection:
            open_connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            fake.await_tunnels(1)
            assert psutil.Process(forward.process.pid).num_threads() >= 4  # main, accepting, looking, carrying
            assert forward.end(number) == code
        assert forward.said[-1] == (
            f"{words}: nothing is forwarded any more; context 'default/shoal' stays for the next 'shoal connect'"
        )
        assert not any("Traceback" in line for line in forward.said)
        assert none_left(user.tag, seconds=1)
        fake.await_tunnels(0)
        socket.create_server(("127.0.0.1", port)).close()
        user("list").fails_with(1, "context 'default/shoal'", f"shoal connect --namespace default --local-port {port}")

    def test_the_next_one_has_the_same_port_and_one_more_is_told(self, master, user, connected):
        forward = connected("--local-port", "0")
        address = forward.first_line().split()[0]
        user("connect").fails_with(2, address.rpartition(":")[2], "is taken", "another 'shoal connect'", "--local-port")
        assert forward.end() == 130
        assert connected().first_line().startswith(f"{address} is the master")

    def test_while_it_waits_for_a_pod_it_can_be_ended_too(self, fake, user, connected):
        forward = connected("--local-port", "0")
        forward.await_said("no pod of the master is ready")
        assert forward.end() == 130


class TestErrors:
    def test_no_kubeconfig(self, user, tmp_path):
        user("connect", "--kubeconfig", tmp_path / "absent").fails_with(2, "no kubeconfig", "absent", "--kubeconfig")

    def test_no_such_kube_context(self, user):
        user("connect", "--kube-context", "prod").fails_with(2, "no context 'prod'", "fake")

    def test_no_cluster(self, fake, user):
        path = Path(user.variables["KUBECONFIG"])
        nobody = f"http://127.0.0.1:{free_port()}"
        path.write_text(path.read_text().replace(fake.url, nobody))
        user("connect").fails_with(1, nobody, "cannot be reached", "refused")

    def test_no_rights(self, fake, user):
        fake.refused = {"services": 403}
        user("connect").fails_with(2, "no right to list services in namespace default")

    def test_no_login(self, fake, user):
        fake.token = "another"
        user("connect").fails_with(2, "does not accept the credentials", "log in")

    def test_no_release(self, fake, user):
        fake.services = []
        user("connect", "-n", "ml").fails_with(102, "no release of Shoal in namespace ml", "--namespace")
        user("connect", "--release", "x").fails_with(102, "no release 'x'")

    def test_several_releases(self, fake, user):
        fake.services = [service("a-master", release="a"), service("b-master", release="b")]
        user("connect").fails_with(2, "several releases", "a, b", "--release")

    def test_a_name_that_is_taken(self, user):
        user("connect", "--name", "local").fails_with(2, "--name local", "shoal up")

    def test_a_damaged_contexts_file(self, user):
        user.contexts.path.write_text("words")
        user("connect").fails_with(1, str(user.contexts.path))
        assert user.contexts.path.read_text() == "words"

    def test_nothing_is_stored_by_one_that_failed(self, fake, user):
        fake.services = []
        user("connect")
        assert not os.path.exists(user.contexts.path)
