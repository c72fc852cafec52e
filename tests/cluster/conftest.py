"""One release in one namespace that enforces the restricted standard, for all cluster tests of this session."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shoal import __version__
from shoal.jobspec.reading import parse_spec
from shoal.sdk import Client
from shoal.sdk.contexts import ContextFile
from shoal.sdk.views import JobView
from tests.cluster.kube import CHART, ROOT, SECONDS, Kube, command, nodes, until
from tests.connected import Connected
from tests.unit.cli.shell import Done, environment, shoal

VALUES = Path(__file__).with_name("values.yaml")
DATASETS = Path("/usr/share/datasets")
SHOAL = Path(sys.executable).with_name("shoal")  # the command
RELEASE = "shoal"
MASTER = "app.kubernetes.io/component=master"
SERVERS = "app.kubernetes.io/component=parameter-server"
WORKERS = "app.kubernetes.io/component=worker"
POOL = "statefulset/shoal-worker-cpu"
MASTER_PORT = 7070
# Of the jobs that are compared; {}: as examples/fashion-mnist.yaml has it.
LENGTHS: tuple[dict[str, int], ...] = ({}, {"epochs": 2}, {"epochs": 3}, {"steps": 200})


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    kube: Kube
    installed_at: float  # time.monotonic() just before `helm install`

    def submit(self, client: Client, name: str, **training: Any) -> str:
        """Fashion-MNIST as examples/fashion-mnist.yaml has it, with another length."""
        return client.submit(fashion_mnist(name, **training)).job_id

    def scale(self, replicas: int) -> None:
        self.kube.kubectl("scale", POOL, f"--replicas={replicas}")

    def worker_pods(self) -> list[str]:
        return sorted(pod["metadata"]["name"] for pod in self.kube.pods(WORKERS))


def fashion_mnist(name: str, **training: Any) -> dict[str, Any]:
    spec = parse_spec((ROOT / "examples" / "fashion-mnist.yaml").read_text()).model_dump(exclude_unset=True)
    spec["name"] = name
    if "steps" in training:
        del spec["training"]["epochs"]
    spec["training"].update(training)
    return spec


def image_values() -> list[str]:
    """Where the images are: SHOAL_TEST_IMAGE_REGISTRY and SHOAL_TEST_IMAGE_TAG; else this version's, on the nodes."""
    return [
        "--set",
        f"image.registry={os.environ.get('SHOAL_TEST_IMAGE_REGISTRY', '')}",
        "--set-string",
        f"image.tag={os.environ.get('SHOAL_TEST_IMAGE_TAG', __version__)}",
    ]


def release_values() -> list[str]:
    """What does not move stays on the first node, so that tests can take the others away."""
    first = nodes()[0]
    fixed = [f"{role}.nodeSelector.kubernetes\\.io/hostname={first}" for role in ("master", "parameterServers")]
    return ["--values", str(VALUES), *image_values(), "--set", ",".join(fixed)]


@pytest.fixture(scope="session")
def kube() -> Iterator[Kube]:
    for program in ("kubectl", "helm"):
        assert shutil.which(program), f"{program} is not on PATH"
    assert os.environ.get("KUBECONFIG"), "KUBECONFIG names the cluster to test on"
    space = Kube(namespace=f"shoal-test-{uuid.uuid4().hex[:6]}")
    command("kubectl", "create", "namespace", space.namespace)
    try:
        command("kubectl", "label", "namespace", space.namespace, "pod-security.kubernetes.io/enforce=restricted")
        yield space
    finally:
        command("kubectl", "delete", "namespace", space.namespace, "--wait=false")


@pytest.fixture(scope="session")
def data(kube: Kube) -> None:
    """A claim `datasets` with Fashion-MNIST, put there through a pod."""
    source = DATASETS / "fashion-mnist"
    assert source.is_dir(), f"{source} is missing; on Debian: apt-get install dataset-fashion-mnist"
    registry = os.environ.get("SHOAL_TEST_IMAGE_REGISTRY", "")
    tag = os.environ.get("SHOAL_TEST_IMAGE_TAG", __version__)
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "datasets"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "200Mi"}}},
    }
    loader = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "loader"},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "fsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "loader",
                    "image": f"{registry}/shoal-master:{tag}".lstrip("/"),
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python", "-c", "import signal; signal.pause()"],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                        "readOnlyRootFilesystem": True,
                    },
                    "volumeMounts": [{"name": "datasets", "mountPath": "/data"}],
                }
            ],
            "volumes": [{"name": "datasets", "persistentVolumeClaim": {"claimName": "datasets"}}],
        },
    }
    kube.apply(claim, loader)
    kube.kubectl("wait", "--for=condition=Ready", "pod/loader", f"--timeout={SECONDS:g}s")
    with tempfile.TemporaryFile() as packed:
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(source, arcname="fashion-mnist")
        packed.seek(0)
        kube.kubectl("exec", "--stdin", "loader", "--", "tar", "--extract", "--directory=/data", stdin=packed.read())
    kube.kubectl("delete", "pod", "loader")


@pytest.fixture(scope="session")
def release(request: pytest.FixtureRequest, kube: Kube, data: None, undisturbed: "Undisturbed") -> Iterator[Release]:
    """Installed, with one worker; uninstalled at the end unless a test has done that.

    What its jobs will be compared with begins to run now, if a test of this session compares.
    """
    if any("undisturbed" in item.fixturenames for item in request.session.items if isinstance(item, pytest.Function)):
        for length in LENGTHS:
            undisturbed.begin(**length)
    began = time.monotonic()
    kube.helm("install", RELEASE, str(CHART), *release_values())
    try:
        yield Release(kube=kube, installed_at=began)
    finally:
        if RELEASE in kube.helm("list", "--short").split():
            kube.helm("uninstall", RELEASE)


@pytest.fixture
def client(release: Release) -> Iterator[Client]:
    """Through `kubectl port-forward`, as a user has it."""
    release.kube.ready(MASTER, 1)
    with release.kube.forwarded("service/shoal-master", MASTER_PORT) as address, Client(address) as connected:
        yield connected


class User:
    """Somebody with contexts of their own, at a terminal outside the cluster."""

    def __init__(self, kube: Kube, folder: Path) -> None:
        self.kube = kube
        self.contexts = ContextFile(folder / "contexts.yaml")
        self.variables = {"SHOAL_CONTEXTS": str(self.contexts.path)}

    def __call__(self, *arguments: str | Path) -> Done:
        return shoal(*arguments, timeout=SECONDS, **self.variables)

    def ask(self, *arguments: str | Path) -> Any:
        done = self(*arguments, "-o", "json")
        assert done.code == 0, done
        return json.loads(done.out)

    def start(self, *arguments: str | Path) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [SHOAL, *map(str, arguments)],
            env=environment(**self.variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def user(release: Release, tmp_path: Path) -> User:
    release.kube.ready(MASTER, 1)
    release.kube.ready(SERVERS, 2)
    if not release.worker_pods():
        release.scale(1)
    release.kube.ready(WORKERS, len(release.worker_pods()))
    return User(release.kube, tmp_path)


@pytest.fixture
def connect(user: User) -> Iterator[Callable[..., Connected]]:
    """Starts `shoal connect` to the release; it is ready when this returns."""
    made: list[Connected] = []

    def start(*arguments: str) -> Connected:
        made.append(Connected("--namespace", user.kube.namespace, "--local-port", "0", *arguments, **user.variables))
        assert "this is the current context" in made[-1].first_line()
        return made[-1]

    yield start
    for connected in made:
        connected.close()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Undisturbed"]:
    """The same jobs on this one machine: one worker, nothing happens."""
    with ThreadPoolExecutor(1) as pool:
        yield Undisturbed(folder=tmp_path_factory.mktemp("undisturbed"), pool=pool)
        pool.shutdown(cancel_futures=True)


class Undisturbed:
    """Runs one after the other, with the least priority, beside what the tests wait for."""

    def __init__(self, *, folder: Path, pool: ThreadPoolExecutor) -> None:
        self._folder = folder
        self._pool = pool
        self._runs: dict[str, Future[str]] = {}

    def begin(self, **training: Any) -> "Future[str]":
        key = json.dumps(training, sort_keys=True)
        if key not in self._runs:
            self._runs[key] = self._pool.submit(self._run, fashion_mnist("undisturbed", **training))
        return self._runs[key]

    def sha256(self, **training: Any) -> str:
        """Of the weights that `shoal run` with one worker gives."""
        return self.begin(**training).result()

    def _run(self, job: dict[str, Any]) -> str:
        spec = self._folder / "job.json"  # JSON is YAML
        spec.write_text(json.dumps(job))
        options = ("--workers", "1", "--out", self._folder / "model", "-o", "json")
        done = subprocess.run(
            ["nice", "-n", "19", SHOAL, "run", spec, *options],
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["weights_sha256"])


def at_step(client: Client, job_id: str, step: int) -> JobView:
    """The job once it has committed that step."""
    for view in client.watch(job_id, timeout=SECONDS):
        if view.step >= step:
            return view
        assert not view.ended, (view.phase, view.message)
    raise AssertionError("the watch ended")


def finished(client: Client, job_id: str) -> JobView:
    job = client.wait(job_id, timeout=600)
    assert job.succeeded, (job.phase, job.message, [f"{event.reason}: {event.message}" for event in job.events])
    return client.get(job_id)


def reasons_of(job: JobView) -> list[str]:
    return [event.reason for event in job.events]


def hosts(client: Client, job_id: str) -> set[str]:
    return {share.worker_id for share in client.get(job_id).workers}


def trains_on(client: Client, job_id: str, workers: int) -> set[str]:
    """Waits until the job has its ranks on that many workers; their names."""
    until(lambda: len(hosts(client, job_id)) == workers, f"job {job_id} on {workers} workers")
    return hosts(client, job_id)


def master_pod(kube: Kube) -> dict[str, Any]:
    (pod,) = kube.pods(MASTER)
    return pod
