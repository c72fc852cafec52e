import threading
import time

import pytest

from shoal.core.errors import Unavailable
from shoal.forwarding.target import Pod, Target

FIRST = Pod(name="master-a", uid="1", port=7070)
SECOND = Pod(name="master-b", uid="2", port=7070)


class World:
    """What the Kubernetes API would say."""

    def __init__(self) -> None:
        self.pod: Pod | None = None
        self.error: Unavailable | None = None
        self.looks = 0

    def find(self) -> Pod | None:
        self.looks += 1
        if self.error is not None:
            raise self.error
        return self.pod


@pytest.fixture
def world():
    return World()


@pytest.fixture
def said():
    return []


@pytest.fixture
def target(world, said):
    target = Target(find=world.find, say=said.append, look_seconds=0.01)
    thread = threading.Thread(target=target.run, name="target")
    thread.start()
    yield target
    target.close()
    thread.join(10)
    assert not thread.is_alive()


def wait(target: Target) -> Pod | None:
    return target.wait(still_wanted=lambda: True)


def test_a_pod_is_asked_for_once_and_kept(world, said, target):
    world.pod = FIRST
    assert [wait(target) for _ in range(3)] == [FIRST] * 3
    assert said[-1] == "forwarding to pod master-a"


def test_a_doubt_that_was_wrong_is_nobodys_business(world, said, target):
    world.pod = FIRST
    wait(target)
    told, looks = list(said), world.looks
    target.doubt(FIRST)
    assert wait(target) == FIRST
    assert world.looks == looks + 1
    assert said == told


def test_another_pod_takes_its_place(world, said, target):
    world.pod = FIRST
    wait(target)
    world.pod = None
    target.doubt(FIRST)
    waiting = threading.Thread(target=lambda: said.append(wait(target)), name="waiting")
    waiting.start()
    _eventually(lambda: "no pod of the master is ready; waiting for one" in said)
    world.pod = SECOND
    waiting.join(10)
    assert SECOND in said
    assert "forwarding to pod master-b now" in said


def test_a_doubt_about_a_pod_that_was_replaced_already_changes_nothing(world, target):
    world.pod = SECOND
    wait(target)
    looks = world.looks
    target.doubt(FIRST)
    assert wait(target) == SECOND
    assert world.looks == looks


def test_trouble_is_told_once_and_so_is_its_end(world, said, target):
    world.pod = FIRST
    wait(target)
    said.clear()
    world.error = Unavailable("the API cannot be reached")
    target.doubt(FIRST)
    _eventually(lambda: world.looks > 5)
    world.error = None
    assert wait(target) == FIRST
    assert said == ["the API cannot be reached; still trying", "forwarding to pod master-a again"]


def test_one_that_is_not_wanted_any_more_is_not_waited_for(target):
    assert target.wait(still_wanted=lambda: False) is None


def test_closing_ends_every_wait(target):
    answers = []
    waiting = [threading.Thread(target=lambda: answers.append(wait(target)), name="waiting") for _ in range(3)]
    for thread in waiting:
        thread.start()
    target.close()
    for thread in waiting:
        thread.join(10)
    assert answers == [None] * 3


def _eventually(true):
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)
