"""IDX folders: what is written is read, and damage of each kind is told."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from shoal.core.errors import Corrupt, Forbidden, InvalidInput, NotFound, ShoalError
from shoal.data.catalog import open_dataset
from shoal.data.split import Dataset

Bytes = npt.NDArray[np.uint8]
FASHION = Path("/usr/share/datasets/fashion-mnist")


def idx(array: Bytes) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def arrays() -> dict[str, Bytes]:
    generator = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": generator.integers(0, 256, (7, 4, 3), np.uint8),
        "train-labels-idx1-ubyte": np.array([0, 1, 2, 3, 0, 1, 2], np.uint8),
        "t10k-images-idx3-ubyte": generator.integers(0, 256, (3, 4, 3), np.uint8),
        "t10k-labels-idx1-ubyte": np.array([3, 2, 1], np.uint8),
    }


@pytest.fixture
def folder(tmp_path: Path, arrays: dict[str, Bytes]) -> Path:
    for name, array in arrays.items():
        (tmp_path / name).write_bytes(idx(array))
    return tmp_path


def opened(folder: Path) -> Dataset:
    return open_dataset(source=f"file://{folder}", label=None, heldout_fraction=0.5, split_seed=0, roots=[folder])


def test_images_are_scaled_and_the_test_files_are_held_out(folder: Path, arrays: dict[str, Bytes]) -> None:
    dataset = opened(folder)
    facts = dataset.facts
    assert (facts.train_samples, facts.heldout_samples, facts.input_shape, facts.classes) == (7, 3, (1, 4, 3), 4)
    x, y = dataset.train.batch(np.array([6, 0, 6]))
    assert (x.dtype, x.shape, y.dtype) == (np.float32, (3, 1, 4, 3), np.int64)
    assert y.tolist() == [2, 0, 2]
    images = arrays["train-images-idx3-ubyte"][[6, 0, 6], np.newaxis]
    assert np.array_equal(x, images.astype(np.float32) / np.float32(255))
    assert dataset.heldout.batch(np.arange(3))[1].tolist() == [3, 2, 1]


def test_gzip_and_plain_files_are_the_same_dataset(folder: Path, arrays: dict[str, Bytes]) -> None:
    plain = opened(folder).facts
    for name, array in arrays.items():
        (folder / name).unlink()
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    assert opened(folder).facts == plain


def test_one_other_pixel_is_another_fingerprint(folder: Path, arrays: dict[str, Bytes]) -> None:
    before = opened(folder).facts.fingerprint
    arrays["t10k-images-idx3-ubyte"][2, 3, 2] ^= 1
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx(arrays["t10k-images-idx3-ubyte"]))
    assert opened(folder).facts.fingerprint != before


def change(name: str, content: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content((folder / name).read_bytes()))

    return damage


def gzipped(content: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "train-labels-idx1-ubyte"
        path.with_name(path.name + ".gz").write_bytes(content(gzip.compress(path.read_bytes())))
        path.unlink()

    return damage


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [
        (lambda folder: (folder / IMAGES).unlink(), NotFound, f"neither {IMAGES} nor {IMAGES}.gz"),
        (change(IMAGES, lambda b: b[:-1]), Corrupt, "needs 100"),
        (change(IMAGES, lambda b: b + b"\0"), Corrupt, "needs 100"),
        (change(IMAGES, lambda b: b[:9]), Corrupt, "shorter than an IDX header"),
        (change(IMAGES, lambda _: b""), Corrupt, "shorter than an IDX header"),
        (change(IMAGES, lambda b: b"\0\0\x0d\x03" + b[4:]), Corrupt, "begins with 00000d03"),
        (change(IMAGES, lambda b: b"\x1f\x8b" + b[2:]), Corrupt, "begins with 1f8b"),
        (change(LABELS, lambda _: idx(np.zeros(6, np.uint8))), Corrupt, "7 train images but 6 labels"),
        (change(LABELS, lambda b: b"\0\0\x08\x03" + b[4:]), Corrupt, "begins with 00000803"),
        (change(IMAGES, lambda _: idx(np.zeros((7, 3, 4), np.uint8))), Corrupt, "test images are (1, 4, 3)"),
        (gzipped(lambda b: b[:-9]), Corrupt, "not a whole gzip file"),
        (gzipped(lambda b: b[:-8] + b"\0" * 8), Corrupt, "not a whole gzip file"),
        (gzipped(lambda b: b[:12] + b"\xff\xff" + b[14:]), Corrupt, "not a whole gzip file"),
        (gzipped(lambda _: b"plain"), Corrupt, "not a whole gzip file"),
    ],
)
def test_damage_is_told_in_one_line(
    folder: Path, damage: Callable[[Path], None], error: type[ShoalError], said: str
) -> None:
    damage(folder)
    with pytest.raises(error) as caught:
        opened(folder)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_training_split_is_refused(folder: Path) -> None:
    (folder / IMAGES).write_bytes(idx(np.zeros((0, 4, 3), np.uint8)))
    (folder / LABELS).write_bytes(idx(np.zeros(0, np.uint8)))
    with pytest.raises(InvalidInput, match="no training images"):
        opened(folder)


def test_a_file_that_links_out_of_the_root_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / LABELS
    (folder / LABELS).rename(outside)
    (folder / LABELS).symlink_to(outside)
    with pytest.raises(Forbidden, match="links to"):
        opened(folder)


def test_a_label_column_makes_no_sense_here(folder: Path) -> None:
    with pytest.raises(InvalidInput, match="has no columns"):
        open_dataset(source=f"file://{folder}", label="y", heldout_fraction=0.2, split_seed=0, roots=[folder])


@pytest.mark.skipif(not FASHION.exists(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_is_what_its_paper_says() -> None:
    """Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747: 60,000 and 10,000 images of 28x28, ten classes alike."""
    dataset = open_dataset(
        source=f"file://{FASHION}", label=None, heldout_fraction=0.2, split_seed=0, roots=[FASHION.parent]
    )
    facts = dataset.facts
    assert (facts.train_samples, facts.heldout_samples) == (60_000, 10_000)
    assert (facts.input_shape, facts.classes) == ((1, 28, 28), 10)
    for split, each in ((dataset.train, 6000), (dataset.heldout, 1000)):
        assert np.bincount(split.batch(np.arange(len(split)))[1]).tolist() == [each] * 10
    x, _ = dataset.train.batch(np.arange(1000))
    assert 0.0 == x.min() < x.max() == 1.0
