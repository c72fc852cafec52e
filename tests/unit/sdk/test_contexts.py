import stat
import threading

import pytest

from shoal.core.errors import Corrupt, InvalidInput, NotFound
from shoal.sdk.contexts import Context, ContextFile, contexts_file


def context(name: str, port: int = 7070) -> Context:
    return Context(name=name, address=f"127.0.0.1:{port}", command=f"shoal connect --name {name}")


@pytest.fixture
def file(tmp_path):
    return ContextFile(tmp_path / "shoal" / "contexts.yaml")


def names(file: ContextFile) -> list[str]:
    return [known.name for known in file.read().all]


def test_what_is_stored_is_read_back_and_current(file):
    assert file.read().current is None
    file.store(context("a"))
    file.store(context("b", 7071))
    assert file.read().current == context("b", 7071)
    assert file.read().get("a") == context("a")


def test_storing_again_replaces(file):
    file.store(context("a"))
    file.store(context("b"))
    file.store(context("a", 7072))
    assert [(known.name, known.address) for known in file.read().all] == [
        ("a", "127.0.0.1:7072"),
        ("b", "127.0.0.1:7070"),
    ]


def test_the_one_used_before_is_current_when_the_current_one_goes(file):
    for name in ("a", "b", "c"):
        file.store(context(name))
    file.use("a")
    assert names(file) == ["a", "c", "b"]
    file.remove("c")
    assert names(file) == ["a", "b"]
    file.remove("a")
    assert file.read().current == context("b")
    assert file.remove("b").current is None


def test_a_name_that_is_not_there_is_told_with_those_that_are(file):
    with pytest.raises(NotFound, match="no context 'x'; 'shoal connect' makes one"):
        file.use("x")
    file.store(context("a"))
    file.store(context("b"))
    for call in (file.use, file.remove):
        with pytest.raises(NotFound, match="no context 'x'; there are b, a"):
            call("x")


def test_only_its_user_can_read_it_and_nothing_is_left_beside_it(file):
    file.store(context("a"))
    file.store(context("b"))
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700
    assert sorted(path.name for path in file.path.parent.iterdir()) == ["contexts.yaml", "contexts.yaml.lock"]


@pytest.mark.parametrize(
    "text",
    [
        "contexts: [",
        "contexts:",
        "just words",
        "[]",
        "other: []",
        "contexts: [{name: a}]",
        "contexts: [{name: 1, address: '127.0.0.1:1'}]",
        "contexts: [words]",
        "contexts: [{name: a, address: b}, {name: a, address: c}]",
        "\t",
        b"\xff\xfe\xff",
    ],
)
def test_a_damaged_file_is_one_line_and_is_left_as_it_is(file, text):
    content = text if isinstance(text, bytes) else text.encode()
    file.path.parent.mkdir()
    file.path.write_bytes(content)
    for call in (file.read, lambda: file.store(context("a")), lambda: file.use("a"), lambda: file.remove("a")):
        with pytest.raises(Corrupt, match=f"contexts file {file.path}.*; correct it or delete it") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert file.path.read_bytes() == content


def test_the_line_of_a_mistake_is_told(file):
    file.path.parent.mkdir()
    file.path.write_text("contexts:\n- name: a\n  address: [\n")
    with pytest.raises(Corrupt, match=r"contexts\.yaml, line \d: "):
        file.read()


def test_an_empty_file_has_no_contexts(file):
    file.path.parent.mkdir()
    file.path.write_text("")
    assert names(file) == []


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match=r"contexts\.yaml: .*; name another one by \$SHOAL_CONTEXTS"):
        ContextFile(tmp_path / "file" / "contexts.yaml").store(context("a"))


def test_many_at_once_lose_nothing(file):
    threads = [
        threading.Thread(target=lambda number=number: file.store(context(f"c{number}")), name="storing")
        for number in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(names(file)) == sorted(f"c{number}" for number in range(20))


def test_its_place(monkeypatch, tmp_path):
    monkeypatch.delenv("SHOAL_CONTEXTS", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert contexts_file() == tmp_path / ".config" / "shoal" / "contexts.yaml"
    monkeypatch.setenv("XDG_CONFIG_HOME", "/x")
    assert str(contexts_file()) == "/x/shoal/contexts.yaml"
    monkeypatch.setenv("SHOAL_CONTEXTS", "/y/z.yaml")
    assert str(contexts_file()) == "/y/z.yaml"
