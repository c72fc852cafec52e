"""What agent and trainer say to each other survives the pipe; what makes no sense is Corrupt and nothing else."""

import json
import math
from dataclasses import fields, is_dataclass
from typing import get_args

import hypothesis
import hypothesis.strategies as st
import pytest

from shoal.core.errors import Corrupt
from shoal.core.job import Grant, Results, ShardAddress
from shoal.worker import control
from shoal.worker.control import (
    Advanced,
    Assignment,
    Beat,
    Failed,
    Fenced,
    Finished,
    Message,
    Pushed,
    Ready,
    from_line,
    to_line,
)

numbers = st.integers(0, 2**63)
floats = st.floats(allow_nan=False)
texts = st.text(max_size=40)
shards = st.builds(ShardAddress, server_id=texts, host=texts, port=st.integers(0, 65_535), index=numbers)
grants = st.builds(
    Grant,
    job_id=texts,
    attempt=numbers,
    revision=numbers,
    spec_json=texts,
    first_rank=numbers,
    last_rank=numbers,
    shards=st.lists(shards, max_size=4).map(tuple),
)
pushed = st.builds(Pushed, transport=texts, blocks=numbers, size=numbers)
results = st.builds(
    Results,
    success=st.booleans(),
    accuracy=floats,
    loss=floats,
    metrics=st.dictionaries(texts, floats, max_size=4),
    errors=st.lists(texts, max_size=3).map(tuple),
    weights_sha256=texts,
    steps=numbers,
    samples=numbers,
)
KINDS: dict[type, st.SearchStrategy[Message]] = {
    Assignment: st.builds(Assignment, grant=grants, worker_id=texts, incarnation=texts),
    Ready: st.builds(Ready),
    Beat: st.builds(Beat, lease_seconds=st.floats(min_value=0)),
    Advanced: st.builds(
        Advanced,
        step=numbers,
        seconds_per_unit=floats,
        unit_seconds=st.lists(floats, max_size=5).map(tuple),
        wait_seconds=st.lists(floats, max_size=5).map(tuple),
        pushed=st.lists(pushed, max_size=3).map(tuple),
    ),
    Finished: st.builds(Finished, results=results),
    Failed: st.builds(Failed, error=texts, fatal=st.booleans()),
    Fenced: st.builds(Fenced, reason=texts),
}


def test_every_kind_of_message_is_drawn_below() -> None:
    assert set(KINDS) == set(get_args(Message))
    assert len({kind.kind for kind in KINDS}) == len(KINDS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", KINDS)
@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(data=st.data())
def test_a_message_comes_back_as_it_was_sent(kind: type, data: st.DataObject) -> None:
    message = data.draw(KINDS[kind])
    line = to_line(message)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert from_line(line) == message
    assert hash_of(from_line(line)) == hash_of(message)  # tuples came back as tuples


def hash_of(value: object) -> object:
    if is_dataclass(value):
        return tuple(hash_of(getattr(value, field.name)) for field in fields(value))
    return tuple(sorted(value.items())) if isinstance(value, dict) else hash(value)


def test_a_loss_that_is_no_number_comes_back_as_none() -> None:
    message = from_line(to_line(Finished(results=Results(success=True, loss=math.nan))))
    assert isinstance(message, Finished)
    assert math.isnan(message.results.loss)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"nonsense\n",
        b"\xff\xfe\n",
        b"5\n",
        b"null\n",
        b'"ready"\n',
        b"[]\n",
        b"{}\n",
        b'{"kind": "nonsense"}\n',
        b'{"kind": null}\n',
        b'{"kind": []}\n',
        b'{"kind": "ready", "more": 1}\n',
        b'{"kind": "failed", "error": "x"}\n',
        b'{"kind": "finished", "results": null}\n',
        b'{"kind": "finished", "results": {"success": true}}\n',
        b'{"kind": "finished", "results": {"success": true, "errors": 5}}\n',
        b'{"kind": "assignment", "grant": 5, "worker_id": "w", "incarnation": "i"}\n',
        b'{"kind": "assignment", "grant": {"shards": [1]}, "worker_id": "w", "incarnation": "i"}\n',
        b'{"kind": "advanced", "pushed": {}}\n',
        b'{"kind": "fenced", "reason": "x"}{"kind": "ready"}\n',
    ],
    ids=repr,
)
def test_a_line_that_makes_no_sense_is_corrupt(line: bytes) -> None:
    with pytest.raises(Corrupt, match="control message"):
        from_line(line)


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(data=st.data())
def test_any_other_line_is_a_message_or_corrupt(data: st.DataObject) -> None:
    """Bytes at random, JSON at random, and true messages with something in them replaced."""
    scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
    values = st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    )
    document = json.loads(to_line(data.draw(st.one_of(*KINDS.values()))))
    document[data.draw(st.sampled_from(sorted(document)))] = data.draw(values)
    lines = (data.draw(st.binary(max_size=30)), json.dumps(data.draw(values)).encode(), json.dumps(document).encode())
    for line in lines:
        try:
            message = from_line(line)
        except Corrupt:
            continue
        assert isinstance(message, get_args(control.Message))
