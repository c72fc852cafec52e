"""What a real master's clients do when the connection breaks under them, as a port-forward's does."""

import gc
import hashlib
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import safetensors.numpy

from shoal.core.errors import Unavailable
from shoal.models.folder import weights_sha256
from shoal.sdk import Client, JobView
from shoal.wire.v1 import master_pb2, shard_pb2
from tests.cutting_proxy import CuttingProxy
from tests.integration.master.conftest import CALL_SECONDS, RunningMaster, eventually, running, settings_of
from tests.integration.master.fake_shards import FakeShard
from tests.unit.cli.shell import SHOAL, environment, shoal

SPEC = {"model": {"type": "mlp"}}
TWO_SHARDS = "{model: {type: mlp}, resources: {shards: 2}}"
SPEC_FILE = Path(__file__).resolve().parents[3] / "examples" / "digits.yaml"

ROWS = 6_000_000  # 24 MB a shard: several times what gRPC and the sockets hold between two ends
WEIGHTS = np.arange(2 * ROWS, dtype=np.float32)


class ModelShard(FakeShard):
    """Its snapshot is one half of a model, as the real one writes it."""

    def Snapshot(self, request, context):
        answer = super().Snapshot(request, context)
        index = self._share(request.job_id).index
        first, last = index * ROWS, (index + 1) * ROWS
        layout = [{"name": "weight", "shape": [2 * ROWS], "first": first, "last": last}]
        data = safetensors.numpy.save(
            {"weight": WEIGHTS[first:last]}, metadata={"layout": json.dumps(layout), "version": str(answer.version)}
        )
        self.files[request.job_id, answer.file_name] = data
        digest = hashlib.sha256(data).hexdigest()
        return shard_pb2.SnapshotResponse(
            file_name=answer.file_name, size=len(data), sha256=digest, version=answer.version
        )


@pytest.fixture
def master(tmp_path: Path) -> Iterator[RunningMaster]:
    with running(settings_of(tmp_path)) as master:
        yield master


@pytest.fixture
def proxy(master: RunningMaster) -> Iterator[CuttingProxy]:
    with CuttingProxy(f"127.0.0.1:{master.port}") as proxy:
        yield proxy


@pytest.fixture
def client(proxy: CuttingProxy) -> Iterator[Client]:
    with Client(proxy.address) as client:
        yield client


class Heard:
    """A listener that writes down what it hears."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.waiting_now = threading.Event()
        self.back = 0

    def waiting(self, reason: str, seconds: float) -> None:
        assert seconds > 0
        self.reasons.append(reason)
        self.waiting_now.set()

    def answers(self) -> None:
        self.back += 1


class TestSubmit:
    def test_a_submit_whose_answer_was_lost_makes_one_job(self, proxy, client):
        proxy.cut_at = b"twin-"  # the beginning of the job's id, in the answer
        submitted = client.submit({**SPEC, "name": "twin"})
        assert proxy.cuts == 1
        assert not submitted.created  # by the try that was answered: the one before it had done it
        assert [job.job_id for job in client.list()] == [submitted.job_id]

    def test_the_command_too_makes_one_job_and_outlives_a_restart_of_the_forward(self, proxy, client):
        proxy.cut_at = b"digits-"
        command = [SHOAL, "submit", str(SPEC_FILE), "-m", proxy.address]
        running = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
        )
        proxy.await_cuts(1)
        proxy.close()
        assert running.stderr is not None
        told = running.stderr.readline()
        assert told.startswith("waiting for up to ")
        assert proxy.address in told
        proxy.open()
        out, err = running.communicate(timeout=30)
        assert (running.returncode, err) == (0, f"the master at {proxy.address} answers again\n")
        assert [job.job_id for job in client.list()] == [out.strip()]

    def test_answers_that_do_not_come_are_asked_for_again_and_it_stays_one_job(self, proxy):
        heard = Heard()
        with Client(proxy.address, timeout_seconds=0.5, patience_seconds=30, listener=heard) as client:
            assert client.list() == ()
            proxy.stall()
            release = threading.Thread(target=lambda: (heard.waiting_now.wait(20), proxy.flow()), name="release")
            release.start()
            submitted = client.submit(SPEC)
            release.join()
            assert [job.job_id for job in client.list()] == [submitted.job_id]
        assert "has not answered in 0.5 s" in heard.reasons[0]

    def test_patience_ends(self, proxy):
        proxy.close()
        heard = Heard()
        with Client(proxy.address, patience_seconds=3, listener=heard, advice="do this") as client:
            with pytest.raises(Unavailable, match="cannot be reached; do this"):
                client.submit(SPEC)
        assert len(heard.reasons) == 1
        assert heard.back == 0


def log(master: RunningMaster, job_id: str, *texts: str) -> None:
    lines = [master_pb2.LogLine(unix_seconds=1.0, worker_id="worker-1", text=text) for text in texts]
    request = master_pb2.ReportLogsRequest(
        worker_id="worker-1", job_id=job_id, attempt=1, incarnation="of-worker-1", lines=lines
    )
    master.master.ReportLogs(request, timeout=CALL_SECONDS)


@pytest.fixture
def started(master: RunningMaster) -> Iterator[tuple[str, FakeShard]]:
    """A job that has its worker, and the shard that decides about its steps."""
    shard = FakeShard("ps-0")
    master.register("worker-1")
    master.add_shard(shard)
    job_id = master.submit()
    master.grants("worker-1")
    yield job_id, shard
    shard.kill()


def streams() -> list[grpc.RpcError]:
    """Those of synchronous clients, open and broken: gRPC has one class for a stream and for its error."""
    return [found for found in gc.get_objects() if isinstance(found, grpc.RpcError)]


def seen_over_cuts(views: Iterator[JobView], proxy: CuttingProxy, shard: FakeShard, job_id: str) -> list[JobView]:
    """The connection is cut before each of the first three steps."""
    seen = [next(views)]
    for step in range(1, 4):
        assert proxy.cut() >= 1
        shard.commit(job_id, steps=1)
        while seen[-1].step < step:
            seen.append(next(views))
    return seen


class TestStreams:
    def test_a_watch_goes_on_over_cuts_and_a_restart_of_the_forward(self, master, proxy, started):
        job_id, shard = started
        heard = Heard()
        with Client(proxy.address, listener=heard) as client:
            views = client.watch(job_id)
            seen = seen_over_cuts(views, proxy, shard, job_id)
            assert heard.reasons == []  # nobody's business
            proxy.close()
            threading.Thread(target=lambda: (heard.waiting_now.wait(20), proxy.open()), name="restart").start()
            shard.commit(job_id, steps=1)
            while seen[-1].step < 4:
                seen.append(next(views))
            assert (len(heard.reasons), heard.back) == (1, 1)
            master.complete(job_id)
            assert list(views)[-1].succeeded
        assert [view.step for view in seen] == sorted(view.step for view in seen)
        assert proxy.cuts >= 4

    def test_nothing_of_the_broken_ones_is_left(self, master, proxy, client, started):
        """One that is first found by Python's search for circles when the process ends may keep it from ending."""
        job_id, shard = started
        gc.collect()
        before = streams()
        gc.disable()
        try:
            views = client.watch(job_id)
            seen_over_cuts(views, proxy, shard, job_id)
            master.complete(job_id)
            assert list(views)[-1].succeeded
            assert streams() == before
        finally:
            gc.enable()

    def test_a_wait_ends_with_the_job_though_every_connection_is_cut(self, master, proxy, client, started):
        job_id, _ = started
        ended = []
        waiting = threading.Thread(target=lambda: ended.append(client.wait(job_id, timeout=60)), name="waiting")
        waiting.start()
        for count in range(1, 6):
            proxy.await_connections(count)
            eventually(proxy.cut)
        master.complete(job_id)
        waiting.join(30)
        assert ended[0].succeeded
        assert proxy.cuts >= 5

    def test_logs_come_once_and_in_order_though_every_connection_is_cut(self, master, proxy, client, started):
        job_id, _ = started
        lines = [f"line {number} {'x' * 500}" for number in range(400)]
        log(master, job_id, *lines[:200])
        proxy.cut_after = [2_000, 20_000, 50_000, 1_000]
        read = []
        for line in client.logs(job_id, follow=True):
            read.append(line.text)
            if len(read) == 200:
                proxy.cut()
                log(master, job_id, *lines[200:])
            if len(read) == 400:
                master.complete(job_id)
        assert read == lines
        assert proxy.cut_after == []
        assert proxy.cuts == 5


@pytest.fixture(scope="class")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningMaster, str, list[ModelShard]]]:
    """A job that has SUCCEEDED, its model in two files of 24 MB."""
    shards = [ModelShard(f"ps-{index}") for index in range(2)]
    settings = settings_of(tmp_path_factory.mktemp("master"), lease_seconds=600.0)  # nobody sends heartbeats
    with running(settings) as master:
        master.register("worker-1")
        for shard in shards:
            master.add_shard(shard)
        job_id = master.submit(TWO_SHARDS)
        master.grants("worker-1")
        for shard in shards:
            shard.commit(job_id, steps=3)
        master.complete(job_id, weights_sha256=weights_sha256({"weight": WEIGHTS}))
        master.phase_is(job_id, "SUCCEEDED")
        yield master, job_id, shards
        for shard in shards:
            shard.kill()


class TestDownload:
    FILE = WEIGHTS.nbytes // 2  # about: the file's head comes on top

    @pytest.mark.parametrize(
        "cuts",
        [
            [0],
            [100],
            [50_000],
            [FILE // 2],
            [FILE - 100_000, 200_000],  # around the end of the first file
            [FILE + 4_000, 4_000, 4_000, 4_000],
            [FILE // 3] * 4,
            [2 * FILE - 50_000],
        ],
        ids=str,
    )
    def test_it_goes_on_where_it_was(self, finished, tmp_path, cuts):
        master, job_id, _ = finished
        with CuttingProxy(f"127.0.0.1:{master.port}") as proxy, Client(proxy.address) as client:
            proxy.cut_after = list(cuts)
            saved = client.download(job_id, tmp_path)
            assert proxy.cuts == len(cuts)
        assert saved.weights_sha256 == weights_sha256({"weight": WEIGHTS})
        assert proxy.served < 1.5 * WEIGHTS.nbytes
        assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]

    def test_a_cut_between_the_files_repeats_none_of_them(self, finished, tmp_path):
        master, job_id, _ = finished
        with CuttingProxy(f"127.0.0.1:{master.port}") as proxy, Client(proxy.address) as client:
            proxy.cut_at = f"{job_id}-1.safetensors".encode()  # the announcement of the second file
            saved = client.download(job_id, tmp_path)
            assert proxy.cuts == 1
        assert saved.weights_sha256 == weights_sha256({"weight": WEIGHTS})
        assert proxy.served < 1.3 * WEIGHTS.nbytes

    def test_a_lost_goodbye_repeats_nothing(self, finished, tmp_path):
        master, job_id, _ = finished
        with CuttingProxy(f"127.0.0.1:{master.port}") as proxy, Client(proxy.address) as client:
            proxy.cut_at = b"grpc-status"  # behind the last byte of the last file
            saved = client.download(job_id, tmp_path)
            assert proxy.cuts == 1
        assert saved.weights_sha256 == weights_sha256({"weight": WEIGHTS})
        assert proxy.served < 1.1 * WEIGHTS.nbytes

    def test_the_command_outlives_a_restart_of_the_forward_and_says_that_it_waits(self, finished, tmp_path):
        master, job_id, _ = finished
        with CuttingProxy(f"127.0.0.1:{master.port}") as proxy:
            proxy.cut_after = [self.FILE // 2]
            command = [SHOAL, "download", job_id, str(tmp_path), "-m", proxy.address, "-o", "json"]
            running = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
            )
            proxy.await_cuts(1)
            proxy.close()
            assert running.stderr is not None
            assert running.stderr.readline().startswith("waiting for up to ")
            proxy.open()
            out, _ = running.communicate(timeout=60)
        assert running.returncode == 0
        assert json.loads(out)["weights_sha256"] == weights_sha256({"weight": WEIGHTS})
        assert proxy.served < 1.5 * WEIGHTS.nbytes

    def test_a_parameter_server_that_is_away_for_a_while_is_waited_for(self, finished, tmp_path):
        master, job_id, shards = finished
        heard = Heard()
        files, port = shards[1].files, shards[1].port
        shards[1].kill()

        def come_back() -> None:
            heard.waiting_now.wait(20)
            shards[1] = ModelShard("ps-1", port=port)
            shards[1].files = files
            master.add_shard(shards[1])

        returning = threading.Thread(target=come_back, name="returning")
        returning.start()
        with Client(f"127.0.0.1:{master.port}", listener=heard) as client:
            saved = client.download(job_id, tmp_path)
        returning.join()
        assert saved.weights_sha256 == weights_sha256({"weight": WEIGHTS})
        assert len(heard.reasons) == 1

    def test_a_file_that_stays_wrong_is_an_error_and_leaves_nothing(self, finished, tmp_path):
        master, job_id, shards = finished
        (key,) = shards[0].files
        good = shards[0].files[key]
        shards[0].files[key] = good[:-1] + bytes([good[-1] ^ 1])
        done = shoal("download", job_id, tmp_path, "-m", f"127.0.0.1:{master.port}")
        shards[0].files[key] = good
        done.fails_with(1, "sha256")
        assert list(tmp_path.iterdir()) == []
