"""CSV and Parquet: numbers, labels, and what is wrong with a file, by column and row."""

import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from shoal.core.errors import InvalidInput
from shoal.data.catalog import open_dataset
from shoal.data.split import Dataset

ROWS = "size,weight,kind\n1,0.5,cat\n2,1.5,dog\n3,2.5,ant\n4,3.5,dog\n5,4.5,cat\n"


def opened(path: Path, *, label: str | None = "kind", heldout_fraction: float = 0.4, split_seed: int = 0) -> Dataset:
    return open_dataset(
        source=f"file://{path}",
        label=label,
        heldout_fraction=heldout_fraction,
        split_seed=split_seed,
        roots=[path.parent],
    )


def csv(folder: Path, text: str) -> Path:
    (folder / "table.csv").write_text(text)
    return folder / "table.csv"


def all_rows(dataset: Dataset) -> list[tuple[list[float], int]]:
    rows = []
    for split in (dataset.train, dataset.heldout):
        x, y = split.batch(np.arange(len(split)))
        assert (x.dtype, y.dtype) == (np.float32, np.int64)
        rows += list(zip(x.tolist(), y.tolist(), strict=True))
    return sorted(rows)


EXPECTED = [([1.0, 0.5], 1), ([2.0, 1.5], 2), ([3.0, 2.5], 0), ([4.0, 3.5], 2), ([5.0, 4.5], 1)]


def test_text_labels_become_classes_in_ascending_order(tmp_path: Path) -> None:
    dataset = opened(csv(tmp_path, ROWS))
    facts = dataset.facts
    assert (facts.train_samples, facts.heldout_samples, facts.input_shape, facts.classes) == (3, 2, (2,), 3)
    assert all_rows(dataset) == EXPECTED


def test_parquet_gives_the_same_dataset_as_csv(tmp_path: Path) -> None:
    table = pyarrow.table(
        {"size": [1, 2, 3, 4, 5], "weight": [0.5, 1.5, 2.5, 3.5, 4.5], "kind": ["cat", "dog", "ant", "dog", "cat"]}
    )
    pyarrow.parquet.write_table(table, tmp_path / "table.parquet")
    assert opened(tmp_path / "table.parquet").facts == opened(csv(tmp_path, ROWS)).facts


def test_whole_numbers_are_labels_too_and_label_is_the_default_column(tmp_path: Path) -> None:
    dataset = opened(csv(tmp_path, "x,label\n0.5,10\n1.5,-3\n2.5,10\n"), label=None, heldout_fraction=0.0)
    assert all_rows(dataset) == [([0.5], 1), ([1.5], 0), ([2.5], 1)]
    assert dataset.facts.classes == 2


def test_the_split_is_a_function_of_its_seed(tmp_path: Path) -> None:
    path = csv(tmp_path, "x,kind\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(50)))
    prints = [opened(path, split_seed=seed).facts.fingerprint for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("home", "tmp", "data"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    opened(csv(tmp_path / "data", ROWS))
    assert not list((tmp_path / "home").iterdir())
    assert not list((tmp_path / "tmp").iterdir())
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["table.csv"]


@pytest.mark.parametrize(
    ("text", "field", "said"),
    [
        ("size,kind\n1,cat\n,dog\n", "data.source", "column 'size', row 2: the value is empty or NaN"),
        ("size,kind\n1,cat\n2,dog\n1e60,dog\n", "data.source", "column 'size', row 3: the value is infinite"),
        ("size,name,kind\n1,a,cat\n2,b,dog\n", "data.source", "column 'name' is large_string, not numeric"),
        ("size,kind\n1,cat\n2,\n", "data.label", "column 'kind', row 2: empty"),
        ("size,kind\n1,0.5\n2,1\n", "data.label", "column 'kind', row 1: 0.5 is no class"),
        ("size,kind\n1,cat\n2,cat\n", "data.label", "one class only, 'cat'"),
        ("size,colour\n1,red\n2,blue\n", "data.label", "no column 'kind'; its columns: size, colour"),
        ("kind\ncat\ndog\n", "data.source", "no columns besides 'kind'"),
        ("size,kind\n", "data.source", "no rows"),
        ("", "data.source", "cannot be read"),
        ("size,kind\n1,cat\n1,2,3,dog\n", "data.source", "cannot be read"),
    ],
)
def test_what_is_wrong_is_told_by_column_and_row(tmp_path: Path, text: str, field: str, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        opened(csv(tmp_path, text))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.field == field


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_without_hugging_face_datasets_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).write_text(ROWS)
    monkeypatch.setitem(sys.modules, "datasets", None)  # what the import of a module that is not installed finds
    with pytest.raises(InvalidInput) as caught:
        opened(tmp_path / name)
    for said in (name, "'datasets'", "shoal[tables]", "EXTRAS=tables"):
        assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.field == "data.source"


def test_a_file_that_is_not_parquet_is_told(tmp_path: Path) -> None:
    (tmp_path / "table.parquet").write_text(ROWS)
    with pytest.raises(InvalidInput, match=r"table\.parquet cannot be read"):
        opened(tmp_path / "table.parquet")


def test_nested_columns_are_refused(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"x": [[1.0], [2.0]], "kind": [0, 1]}), tmp_path / "table.parquet")
    with pytest.raises(InvalidInput, match="column 'x' is list"):
        opened(tmp_path / "table.parquet")


def test_parquet_without_rows_is_told(tmp_path: Path) -> None:
    empty = pyarrow.table({"x": pyarrow.array([], pyarrow.float64()), "kind": pyarrow.array([], pyarrow.int64())})
    pyarrow.parquet.write_table(empty, tmp_path / "table.parquet")
    with pytest.raises(InvalidInput, match="no rows"):
        opened(tmp_path / "table.parquet")


def test_missing_numbers_in_parquet_are_told(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"x": [1, None], "kind": [0, 1]}), tmp_path / "table.parquet")
    with pytest.raises(InvalidInput, match="column 'x', row 2"):
        opened(tmp_path / "table.parquet")
