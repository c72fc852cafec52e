"""Every sample counts once: a model whose weights are a ledger of how often each sample has contributed.

It is an ordinary job: the logistic model, SGD, images of one lit pixel each. Sample i lights pixel i, and a third class
that no sample has is so much more likely than the others that the softmax is exactly (0, 0, 1): the cross entropy's
derivative is -1 at the sample's own class and +1 at the third one, whatever the weights. With a learning rate of N, the
samples of a step, each contribution adds exactly 1 to the weight (class of i, pixel i) and takes 1 from (third class,
pixel i). A job of one step makes the weights to begin with: all 0, and the third class' bias far above the others.
"""

import hashlib
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from shoal.core.job import Phase
from shoal.models.folder import read_folder
from shoal.sdk import Client, JobView
from tests.chaos.cluster import ChaosCluster

pytestmark = pytest.mark.timeout(300)
SECONDS = 250.0
SIDE = 32
SAMPLES = SIDE * SIDE  # one page of weights for each class: with three shards, each has one
CLASSES = 3
THIRD = 2
SEED = 5
WORLD_SIZE, BATCH = 4, 8
GLOBAL_BATCH = WORLD_SIZE * BATCH  # N: a power of two, so that 1/N is exact; it divides SAMPLES
EPOCHS, STEPS_BEYOND = 300, 11  # a quick machine makes 1,400 steps while the master is away
STEPS = EPOCHS * SAMPLES // GLOBAL_BATCH + STEPS_BEYOND
APART = 100  # steps
FAULTS, SHARD_FAULTS = 6, 3
CLEARING = 2.0**20  # a step of w - CLEARING * (g + w / CLEARING) leaves exactly -CLEARING * g

Ledger = npt.NDArray[np.float64]


def write_idx(folder: Path, pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> None:
    """A folder of IDX files; the only held-out sample is dark, and of the third class."""
    folder.mkdir()
    parts = {"train": (pixels, labels), "t10k": (np.zeros((1, SIDE, SIDE), np.uint8), np.full(1, THIRD, np.uint8))}
    for part, (images, classes) in parts.items():
        header = struct.pack(">4B3I", 0, 0, 8, 3, *images.shape)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">4BI", 0, 0, 8, 1, len(classes)) + bytes(classes)
        )


def job_of(folder: Path, **rest: Any) -> dict[str, Any]:
    return {"name": folder.name, "model": {"type": "logistic"}, "data": {"source": f"file://{folder}"}, **rest}


def due() -> npt.NDArray[np.int64]:
    """How often each sample is due: once an epoch, and the first ones of the last epoch's shuffle.

    The shuffle as documented in data/sampler.py and core/seeds.py: the stable order of raw Philox4x64-10 draws, keyed
    by 63 bits of the BLAKE2b hash of "SEED/epoch/EPOCH".
    """
    digest = hashlib.blake2b(f"{SEED}/epoch/{EPOCHS}".encode(), digest_size=8).digest()
    draws = np.random.Philox(key=int.from_bytes(digest, "little") >> 1).random_raw(SAMPLES)
    counts = np.full(SAMPLES, EPOCHS)
    counts[np.argsort(draws, kind="stable")[: STEPS_BEYOND * GLOBAL_BATCH]] += 1
    return counts


def labels_of_samples() -> npt.NDArray[np.uint8]:
    return (np.arange(SAMPLES) % 2).astype(np.uint8)


class Disturbance:
    """Faults, each when the job has made `APART` steps since the last one; `done_at` has their steps."""

    def __init__(self, *faults: Callable[[], bool]) -> None:
        self._left = list(faults)
        self.done_at: list[int] = []

    def at(self, step: int) -> None:
        if self._left and step >= (self.done_at[-1] if self.done_at else 0) + APART:
            assert self._left.pop(0)(), "whom it was meant for had ended"
            self.done_at.append(step)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ChaosCluster]:
    with ChaosCluster(folder=tmp_path / "cluster", servers=3) as running:
        yield running


def await_job(cluster: ChaosCluster, client: Client, job_id: str, step_seen: Callable[[int], None]) -> JobView:
    """The ended job. The cluster is tended meanwhile."""

    def follow() -> JobView:
        for view in client.watch(job_id, timeout=SECONDS):
            steps.append(view.step)
        return view

    steps = [0]
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(follow)

        def is_over() -> bool:
            step_seen(steps[-1])
            return ended.done()

        cluster.tend_until(is_over, "the job does not end", seconds=SECONDS)
    return ended.result()


def download(client: Client, job_id: str, folder: Path) -> tuple[Ledger, Ledger]:
    """weight [class, pixel] and bias [class]."""
    client.download(job_id, folder)
    _, saved = read_folder(folder)
    (bias,) = [tensor for tensor in saved.values() if tensor.ndim == 1]
    (weight,) = [tensor for tensor in saved.values() if tensor.ndim == 2]
    return weight.astype(np.float64), bias.astype(np.float64)


def test_every_weight_is_the_number_of_times_its_sample_was_due(cluster: ChaosCluster, tmp_path: Path) -> None:
    """Every worker is killed, every shard, two of them at once, and the master twice."""
    dark, lit = cluster.folder / "dark", cluster.folder / "lit"
    write_idx(dark, np.zeros((8, SIDE, SIDE), np.uint8), np.array([0, 1, *[THIRD] * 6], np.uint8))
    pixels = (np.eye(SAMPLES) * 255).astype(np.uint8).reshape(SAMPLES, SIDE, SIDE)  # 255: exactly 1.0
    write_idx(lit, pixels, labels_of_samples())
    disturbance = Disturbance(
        lambda: cluster.kill("worker-1"),
        lambda: cluster.kill("ps-1"),
        lambda: cluster.kill("master-1"),
        lambda: cluster.kill("worker-2", whole_group=False) and cluster.kill("ps-3"),
        lambda: cluster.kill("ps-1") and cluster.kill("ps-2"),
        lambda: cluster.kill("master-1") and cluster.kill("worker-3"),
    )
    with cluster.client() as client:
        first = client.submit(
            job_of(
                dark,
                training={"world_size": 1, "batch_size": 8, "steps": 1},
                optimizer={"name": "sgd", "learning_rate": CLEARING, "weight_decay": 1 / CLEARING},
            )
        ).job_id
        assert await_job(cluster, client, first, lambda _: None).phase is Phase.SUCCEEDED
        weight, bias_before = download(client, first, tmp_path / "first")
        assert not weight.any()
        falls = 1.5 * STEPS * GLOBAL_BATCH + 2 * EPOCHS  # the third class loses all samples, the others gain half each
        assert bias_before[THIRD] - bias_before[:THIRD].max() > falls + 200, "the softmax would not stay (0, 0, 1)"
        ledger = client.submit(
            job_of(
                lit,
                training={"world_size": WORLD_SIZE, "batch_size": BATCH, "steps": STEPS, "seed": SEED},
                optimizer={"name": "sgd", "learning_rate": GLOBAL_BATCH},
                initial_weights={"job": first},
                resources={"shards": 3},
                snapshots={"every_steps": 40},
            )
        ).job_id
        job = await_job(cluster, client, ledger, disturbance.at)
        assert job.phase is Phase.SUCCEEDED, (job.phase, job.message, job.results)
        weight, bias = download(client, ledger, tmp_path / "ledger")
    assert len(disturbance.done_at) == FAULTS, disturbance.done_at
    assert job.attempt == 1 + SHARD_FAULTS
    assert "Restored" in [event.reason for event in job.events]
    counts, labels = due(), labels_of_samples()
    assert counts.sum() == STEPS * GLOBAL_BATCH == job.samples
    for number in range(CLASSES):
        expected = -counts if number == THIRD else np.where(labels == number, counts, 0)
        assert np.array_equal(weight[number], expected), f"the shard with class {number}"
    by_class = [counts[labels == 0].sum(), counts[labels == 1].sum(), -counts.sum()]
    assert np.array_equal(bias - bias_before, by_class)
