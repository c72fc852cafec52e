import json
import os
import socket

import pytest

from shoal.process.clock import FakeClock, SystemClock
from shoal.process.identity import host_id, host_to_tell, new_incarnation, write_ready_file


def test_every_start_is_a_new_incarnation_on_one_host():
    assert new_incarnation() != new_incarnation()
    assert host_id() == host_id() != ""


@pytest.mark.parametrize(
    ("listening_on", "advertised", "told"),
    [
        ("10.0.0.7", "", "10.0.0.7"),
        ("10.0.0.7", "ps-0.shards", "ps-0.shards"),
        ("0.0.0.0", "ps-0.shards", "ps-0.shards"),
        ("0.0.0.0", "", socket.gethostname()),
        ("[::]", "", socket.gethostname()),
    ],
)
def test_nobody_is_told_to_dial_all_addresses(listening_on, advertised, told):
    assert host_to_tell(listening_on=listening_on, advertised=advertised) == told


def test_a_ready_file_appears_whole(tmp_path):
    write_ready_file(tmp_path / "ready", host="127.0.0.1", port=1, metrics_port=2, incarnation="abc")
    assert [path.name for path in tmp_path.iterdir()] == ["ready"]
    document = json.loads((tmp_path / "ready").read_text())
    assert document == {"host": "127.0.0.1", "port": 1, "metrics_port": 2, "pid": os.getpid(), "incarnation": "abc"}


def test_a_fake_clock_moves_only_when_told():
    clock = FakeClock(5.0)
    assert (clock.monotonic(), clock.unix()) == (5.0, 5.0)
    clock.advance(2.5)
    assert clock.monotonic() == 7.5
    assert SystemClock().unix() > 1.7e9
    assert SystemClock().monotonic() <= SystemClock().monotonic()
