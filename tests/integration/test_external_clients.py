"""Jobs with `trainers: external`: clients in any language train them by the unary calls alone."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpc_tools import protoc

from shoal.core.job import Phase
from shoal.local import Cluster
from shoal.models.folder import read_folder

ROOT = Path(__file__).parents[2]
EXTERNAL = Path(__file__).parent / "external"


def submit_external(cluster: Cluster, *, shards: int) -> str:
    """A job with its shares in place."""
    with cluster.client() as client:
        job_id = client.submit(
            {
                "name": "external",
                "model": {"type": "mlp", "hidden": [100], "input_shape": [32], "classes": 4},
                "training": {"steps": 1000},
                "optimizer": {"name": "sgd", "learning_rate": 0.5, "momentum": 0.9},
                "resources": {"shards": shards},
                "trainers": "external",
            }
        ).job_id
        deadline = time.monotonic() + 60
        while sum(job_id in server.job_ids for server in client.parameter_servers()) < shards:
            assert time.monotonic() < deadline, client.get(job_id)
            assert not client.get(job_id).ended
        return job_id


def run(*command: object, folder: Path | None = None) -> dict[str, Any]:
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=100, cwd=folder)
    assert result.returncode == 0, result.stderr
    answers: dict[str, Any] = json.loads(result.stdout)
    return answers


def test_a_client_of_grpcio_and_the_protos_trains_a_job(cluster: Cluster, tmp_path: Path) -> None:
    generated = tmp_path / "generated"
    generated.mkdir()
    protos = sorted((ROOT / "proto" / "shoal" / "wire" / "v1").glob("*.proto"))
    arguments = ["protoc", f"-I{ROOT / 'proto'}", f"--python_out={generated}", f"--grpc_python_out={generated}"]
    assert protoc.main([*arguments, *map(str, protos)]) == 0

    job_id = submit_external(cluster, shards=2)
    answers = run(sys.executable, "-P", EXTERNAL / "client.py", generated, cluster.address, job_id)

    assert answers["shards"] == 2
    assert sorted(answers["layers"]) == ["1.bias", "1.weight", "3.bias", "3.weight"]
    assert answers["version"] == 5
    assert answers["bytes when the version is held"] == 0
    expected: dict[str, np.ndarray[Any, Any]] = {}
    for name, parts in answers["layers"].items():
        pieces = []
        for (first, last), weights in zip(parts, answers["weights"][name], strict=True):
            pieces.append(momentum_by_hand(np.array(weights["first"], np.float32), first, last))
            np.testing.assert_allclose(weights["last"], pieces[-1], rtol=1e-6, atol=1e-6)
        expected[name] = np.concatenate(pieces)
    assert answers["completed"][0] is True

    with cluster.client() as client:
        job = client.wait(job_id, timeout=30)
        assert job.phase is Phase.SUCCEEDED
        assert job.results is not None
        assert (job.results.accuracy, job.results.loss) == (0.5, 1.5)
        client.download(job_id, tmp_path / "model")
    _, saved = read_folder(tmp_path / "model")
    for name, weights in expected.items():
        np.testing.assert_allclose(saved[name].reshape(-1), weights, rtol=1e-6, atol=1e-6)

    wrong = answers["wrong"]
    assert wrong.pop("version after all of it") == 5
    assert wrong.pop("stale version") == [False, "computed at version 4, the layer is at 5: pull it first", 5]
    assert wrong.pop("future version") == [False, "version 6 does not exist, the layer is at 5", 5]
    fragments = {
        "length": ("INVALID_ARGUMENT", "this shard's part is elements"),
        "dtype": ("INVALID_ARGUMENT", "dtype 'float64' is not taken; use float32"),
        "not finite": ("INVALID_ARGUMENT", "not finite"),
        "layer": ("NOT_FOUND", "layer '9.weight'"),
        "job": ("NOT_FOUND", "job 'nobody-0' has no share"),
        "no worker id": ("INVALID_ARGUMENT", "worker_id must not be empty"),
        "attempt": ("ABORTED", "attempt 99"),
        "pull of an unknown layer": ("NOT_FOUND", "layer '9.weight'"),
        "version of an unknown job": ("NOT_FOUND", "job 'nobody-0'"),
    }
    assert wrong.keys() == fragments.keys()
    for name, (code, text) in fragments.items():
        assert wrong[name].startswith(code + ": "), wrong[name]
        assert text in wrong[name]


def momentum_by_hand(weights: "np.ndarray[Any, Any]", first: int, last: int) -> "np.ndarray[Any, Any]":
    """Five steps of SGD with rate 0.5 and momentum 0.9 on the client's gradients, as the textbook has it."""
    weights = weights.astype(np.float64)
    velocity = np.zeros_like(weights)
    for step in range(5):
        gradient = np.arange(first, last) % 7 - 3.0 + step
        velocity = gradient if step == 0 else 0.9 * velocity + gradient
        weights = weights - 0.5 * velocity
    return weights


def test_a_client_in_another_language_trains_a_job(cluster: Cluster, tmp_path: Path) -> None:
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed: the JavaScript client was NOT tested")
    for name in ("client.mjs", "package.json"):
        shutil.copy(EXTERNAL / name, tmp_path)
    install = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run(install, cwd=tmp_path, check=True, capture_output=True, timeout=100)
    job_id = submit_external(cluster, shards=1)
    answers = run("node", "client.mjs", ROOT / "proto", cluster.address, job_id, folder=tmp_path)
    np.testing.assert_allclose(answers["after"], np.array(answers["before"]) - 0.5, rtol=1e-6, atol=1e-6)
    assert answers["version"] == 1
    assert answers["code"] == 5  # NOT_FOUND
    assert answers["completed"] is True


def test_trainers_pushes_are_refused_where_a_client_trains_and_the_other_way_round(cluster: Cluster) -> None:
    with cluster.client() as client:
        job_id = client.submit({"model": {"type": "logistic"}, "training": {"steps": 1_000_000}}).job_id
        deadline = time.monotonic() + 60
        while client.get(job_id).step < 1:
            assert time.monotonic() < deadline
        (server,) = [each for each in client.parameter_servers() if job_id in each.job_ids]
        import grpc

        from shoal.wire.v1 import parameter_server_pb2, parameter_server_pb2_grpc

        with grpc.insecure_channel(f"{server.host}:{server.port}") as channel:
            stub = parameter_server_pb2_grpc.ParameterServerServiceStub(channel)
            with pytest.raises(grpc.RpcError) as refused:
                stub.PushGradients(
                    parameter_server_pb2.PushGradientsRequest(worker_id="x", job_id=job_id, layer_name="1.bias"),
                    timeout=10,
                )
            assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert "trained by workers" in (refused.value.details() or "")
            pulled = stub.PullParameters(
                parameter_server_pb2.PullParametersRequest(worker_id="x", job_id=job_id, layer_name="1.bias"),
                timeout=10,
            )
            assert len(pulled.parameter_data) == 40  # anybody may look at the weights of a job that runs
        assert client.cancel(job_id) is Phase.CANCELLED
