"""Only what lies under a configured root may be read."""

from pathlib import Path

import pytest

from shoal.core.errors import Forbidden, InvalidInput, NotFound, ShoalError
from shoal.data.catalog import open_dataset
from shoal.data.paths import resolve_file


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """root/ (allowed) beside secret/ (not), with links of each kind."""
    (tmp_path / "root" / "inner").mkdir(parents=True)
    (tmp_path / "root" / "inner" / "a b.csv").write_text("x,label\n1,0\n")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "a.csv").write_text("x,label\n1,0\n")
    (tmp_path / "root-2").mkdir()
    (tmp_path / "root-2" / "a.csv").write_text("")
    (tmp_path / "root" / "within").symlink_to(tmp_path / "root" / "inner")
    (tmp_path / "root" / "out").symlink_to(tmp_path / "secret")
    (tmp_path / "root" / "out.csv").symlink_to(tmp_path / "secret" / "a.csv")
    (tmp_path / "root" / "dangling.csv").symlink_to(tmp_path / "root" / "nothing.csv")
    (tmp_path / "root" / "loop.csv").symlink_to(tmp_path / "root" / "loop.csv")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "resolved"),
    [
        ("file://{tree}/root/inner/a b.csv", "root/inner/a b.csv"),
        ("file://{tree}/root/inner/a%20b.csv", "root/inner/a b.csv"),
        ("file://localhost{tree}/root/within/a b.csv", "root/inner/a b.csv"),
        ("file://{tree}/root", "root"),
        ("file://{tree}/root/./inner//a b.csv", "root/inner/a b.csv"),
    ],
)
def test_paths_under_a_root_are_found(tree: Path, path: str, resolved: str) -> None:
    assert resolve_file(path.format(tree=tree), [tree / "elsewhere", tree / "root"]) == tree / resolved


@pytest.mark.parametrize(
    ("path", "error", "said"),
    [
        ("file://{tree}/secret/a.csv", Forbidden, "outside the data roots"),
        ("file://{tree}/root-2/a.csv", Forbidden, "outside the data roots"),
        ("file://{tree}/root/../secret/a.csv", Forbidden, "'..'"),
        ("file://{tree}/root/%2e%2e/secret/a.csv", Forbidden, "'..'"),
        ("file://{tree}/root/inner/../inner/a b.csv", Forbidden, "'..'"),
        ("file://{tree}/root/out/a.csv", Forbidden, "links to"),
        ("file://{tree}/root/out.csv", Forbidden, "links to"),
        ("file:///etc/passwd", Forbidden, "outside the data roots"),
        ("file:///nowhere/at/all.csv", Forbidden, "outside the data roots"),
        ("file://{tree}/root/absent.csv", NotFound, "no such file"),
        ("file://{tree}/root/dangling.csv", NotFound, "no such file"),
        ("file://{tree}/root/loop.csv", InvalidInput, "loop.csv"),
        ("file://relative/a.csv", InvalidInput, "three slashes"),
        ("file:relative.csv", InvalidInput, "three slashes"),
        ("file://", InvalidInput, "three slashes"),
        ("file://{tree}/root/a?x=1", InvalidInput, "%3F"),
        ("file://{tree}/root/a%00.csv", InvalidInput, "NUL"),
    ],
)
def test_everything_else_is_refused_in_one_line(tree: Path, path: str, error: type[ShoalError], said: str) -> None:
    with pytest.raises(error) as caught:
        resolve_file(path.format(tree=tree), [tree / "root"])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_roots_no_file_is_read(tree: Path) -> None:
    with pytest.raises(Forbidden, match="none is configured"):
        resolve_file(f"file://{tree}/root/inner", [])


def test_a_root_may_be_a_link(tree: Path) -> None:
    (tree / "alias").symlink_to(tree / "root")
    for root in ("alias", "root"):
        assert resolve_file(f"file://{tree}/alias/inner", [tree / root]) == tree / "root" / "inner"


@pytest.mark.parametrize(
    ("source", "error", "said"),
    [
        ("digits", InvalidInput, "no scheme"),
        ("data/a.csv", InvalidInput, "no scheme"),
        ("/data/a.csv", InvalidInput, "file:///PATH"),
        ("builtins://digits", InvalidInput, "did you mean 'builtin://'"),
        ("s3://bucket/a.csv", InvalidInput, "known: builtin://, file://"),
        ("http://example.org/a.csv", InvalidInput, "unknown scheme 'http://'"),
        ("builtin://digit", InvalidInput, "did you mean 'builtin://digits'"),
        ("builtin://__class__", InvalidInput, "known: breast_cancer, digits, iris, wine"),
        ("file://{tree}/root/inner/a.txt", InvalidInput, ".csv or .parquet"),
    ],
)
def test_unknown_sources_are_refused_with_what_would_be_right(
    tree: Path, source: str, error: type[ShoalError], said: str
) -> None:
    (tree / "root" / "inner" / "a.txt").write_text("")
    with pytest.raises(error) as caught:
        open_dataset(
            source=source.format(tree=tree), label=None, heldout_fraction=0.2, split_seed=0, roots=[tree / "root"]
        )
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
