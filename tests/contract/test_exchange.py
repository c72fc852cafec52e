"""One suite for the exchange, over every transport: real parameter servers, real sockets."""

import dataclasses
import gc
import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shoal.core.errors import FencedOff, InvalidInput, NotFound, ShoalError, Stale, Unavailable
from shoal.core.layout import LayerKind
from shoal.core.tree import Block
from shoal.models.catalog import build_model
from shoal.models.evaluation import EvaluationSums
from shoal.wire.exchange.base import Hello
from shoal.wire.exchange.frames import Frame, Kind
from shoal.wire.exchange.grpc_stream import GrpcLink
from shoal.wire.options import open_channel
from shoal.worker.trainer.parameters import Parameters
from tests.shards import FACTS, Shards, await_version, running_shards, shared_memories, spec_of


@pytest.fixture(params=["auto", "grpc"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def shards(transport: str, tmp_path: Path) -> Iterator[Shards]:
    with running_shards(spec_of(transport), tmp_path) as running:
        yield running


def rank_gradient(shards: Shards, step: int, rank: int) -> Tensor:
    """A flat gradient that differs for each (step, rank); its padding is 0, as a trainer's is."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    flat = torch.zeros(shards.layout.length)
    for layer, offset in zip(shards.layout.layers, shards.layout.offsets, strict=True):
        flat[offset : offset + layer.elements] = torch.randn(layer.elements, generator=generator)
    return flat


def push(
    shards: Shards, parameters: Parameters, step: int, start: int, size: int = 1, *, slot: int = 0, loss: float = 0.5
) -> None:
    """Pushes a block's sum, added up in the tree's order."""

    def total(block: Block) -> Tensor:
        if block.size == 1:
            return rank_gradient(shards, step, block.start)
        left, right = block.halves
        return total(left) + total(right)

    block = Block(start=start, size=size)
    parameters.slot(slot).copy_(total(block))
    parameters.push(step=step, block=block, slot=slot, loss=loss * size, integers=b"")


def expected_weights(shards: Shards, steps: int) -> dict[str, Tensor]:
    """torch.optim alone, fed with the tree's sums."""
    spec = shards.spec
    model = build_model(spec.model, input_shape=FACTS.input_shape, classes=FACTS.classes, seed=spec.training.seed)
    named = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    for step in range(steps):
        ranks = [rank_gradient(shards, step, rank) for rank in range(4)]
        total = (ranks[0] + ranks[1]) + (ranks[2] + ranks[3])
        for layer, offset in zip(shards.layout.layers, shards.layout.offsets, strict=True):
            named[layer.name].grad = total[offset : offset + layer.elements].view(layer.shape)
        optimizer.step()
    return {name: parameter.detach() for name, parameter in named.items()}


def held_weights(shards: Shards, parameters: Parameters) -> dict[str, Tensor]:
    for _ in range(100):  # None: other news came before the weights; a trainer asks again
        if (flat := parameters.flat(parameters.version)) is not None:
            break
        parameters.wait(0.1)
    assert flat is not None
    return {
        layer.name: flat[offset : offset + layer.elements].view(layer.shape).clone()
        for layer, offset in zip(shards.layout.layers, shards.layout.offsets, strict=True)
        if layer.kind is LayerKind.PARAMETER
    }


def assert_equal_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor.view(-1).view(torch.int32), other[name].reshape(-1).view(torch.int32)), name


def wait_for_ever(parameters: Parameters) -> None:
    while True:
        parameters.wait(5.0)


def test_the_transport_that_was_asked_for_is_the_one_in_use(shards: Shards, transport: str) -> None:
    parameters = shards.attach()
    links = [shard.link.transport for shard in parameters._shards]
    assert links == [{"auto": "shared_memory", "grpc": "grpc"}[transport]] * 2
    parameters.close()


def test_a_trainer_starts_with_the_weights_of_the_seed(shards: Shards) -> None:
    parameters = shards.attach()
    await_version(parameters, 0)
    assert_equal_bits(held_weights(shards, parameters), expected_weights(shards, 0))
    parameters.close()


@pytest.mark.parametrize(
    "blocks",
    [
        [(0, 4)],
        [(0, 1), (1, 1), (2, 1), (3, 1)],
        [(3, 1), (2, 1), (1, 1), (0, 1)],
        [(2, 2), (0, 1), (1, 1)],
        [(1, 1), (0, 2), (2, 1), (3, 1)],  # the second contains the first and replaces it
        [(1, 1), (1, 1), (0, 2), (0, 1), (2, 2)],  # duplicates
    ],
    ids=str,
)
def test_blocks_in_any_order_give_the_bits_of_torch_optim(shards: Shards, blocks: list[tuple[int, int]]) -> None:
    parameters = shards.attach()
    await_version(parameters, 0)
    for step in range(3):
        for slot, (start, size) in enumerate(blocks):
            push(shards, parameters, step, start, size, slot=slot)
        await_version(parameters, step + 1)
        assert parameters.loss == 2.0
    assert_equal_bits(held_weights(shards, parameters), expected_weights(shards, 3))
    parameters.close()


def test_two_trainers_share_the_ranks_and_see_the_same_weights(shards: Shards) -> None:
    one, two = shards.attach("one"), shards.attach("two")
    for parameters in (one, two):
        await_version(parameters, 0)
    for step in range(3):
        push(shards, one, step, 0, 2)
        push(shards, two, step, 2, 2)
        await_version(one, step + 1)
        await_version(two, step + 1)
    assert_equal_bits(held_weights(shards, one), expected_weights(shards, 3))
    assert_equal_bits(held_weights(shards, two), expected_weights(shards, 3))
    one.close()
    two.close()


def test_the_work_of_a_trainer_that_is_gone_still_counts(shards: Shards) -> None:
    one, two = shards.attach("one"), shards.attach("two")
    await_version(one, 0)
    await_version(two, 0)
    push(shards, one, 0, 0, 2)
    await_ranks_missing(two, 0, (2, 3))
    one.close()
    push(shards, two, 0, 2, 2)
    await_version(two, 1)
    assert_equal_bits(held_weights(shards, two), expected_weights(shards, 1))
    two.close()


def await_ranks_missing(parameters: Parameters, step: int, ranks: tuple[int, ...]) -> None:
    """Both shards say that just these ranks are missing."""
    for shard in parameters._shards:
        for _ in range(1000):
            parameters.missing = None
            shard.link.send(Frame(Kind.ASK_MISSING, attempt=1, step=step))
            while parameters.missing is None:
                parameters.wait(5.0)
            if parameters.missing.ranks == ranks:
                break
        else:
            pytest.fail(f"shard misses {parameters.missing} and not {ranks}")


def test_a_newcomer_gets_the_version_before_while_a_step_is_complete_on_one_shard_only(shards: Shards) -> None:
    one = shards.attach("one")
    await_version(one, 0)
    one.slot(0).copy_(rank_gradient(shards, 0, 0) * 0)
    push_to = one._shards[0]
    frame = Frame(Kind.PUSHED, attempt=1, step=0, start=0, size=4, slot=0, value=1.0)
    push_to.link.push(frame)
    while push_to.version < 1:
        one.wait(5.0)
    assert one.version == 0
    two = shards.attach("two")
    await_version(two, 0)
    assert two.version == 0
    assert_equal_bits(held_weights(shards, two), expected_weights(shards, 0))
    one.close()
    two.close()


def test_values_that_are_not_finite_are_refused_and_change_nothing(shards: Shards) -> None:
    parameters = shards.attach()
    await_version(parameters, 0)
    before = held_weights(shards, parameters)
    for value in (math.nan, math.inf):
        parameters.slot(0).copy_(rank_gradient(shards, 0, 0))
        parameters.slot(0)[-2048] = value  # the last page but one belongs to the last shard
        parameters.refused.clear()
        parameters.push(step=0, block=Block(start=0, size=1), slot=0, loss=1.0, integers=b"")
        while not parameters.refused:
            parameters.wait(5.0)
        assert parameters.refused == [(0, Block(start=0, size=1))]
    assert parameters.version == 0
    assert_equal_bits(held_weights(shards, parameters), before)
    parameters.close()


def test_three_pushes_in_a_row_that_are_not_finite_end_the_attempt(shards: Shards) -> None:
    parameters = shards.attach()
    await_version(parameters, 0)

    def push_nothing_but_nan() -> None:
        while True:
            parameters.slot(0).fill_(math.nan)
            parameters.refused.clear()
            parameters.push(step=0, block=Block(start=0, size=1), slot=0, loss=1.0, integers=b"")
            while not parameters.refused:
                parameters.wait(5.0)

    with pytest.raises((Stale, Unavailable), match="not finite"):
        push_nothing_but_nan()
    progress = shards.servers[0].shares.get("job").progress(from_version=0, known_evaluations=0, wait_seconds=5.0)
    assert "not finite" in progress.failure
    assert progress.version == 0
    parameters.close()


def test_evaluations_are_added_up_once_per_rank(shards: Shards) -> None:
    one, two = shards.attach("one"), shards.attach("two")
    await_version(one, 0)
    await_version(two, 0)
    half = EvaluationSums(correct=20, samples=50, loss=25.0)
    one.push_evaluation(version=0, block=Block(start=0, size=2), sums=half)
    one.push_evaluation(version=0, block=Block(start=0, size=2), sums=half)
    two.push_evaluation(version=0, block=Block(start=2, size=2), sums=half)
    for parameters in (one, two):
        while 0 not in parameters.evaluations:
            parameters.wait(5.0)
        assert parameters.evaluations[0].correct == 40
        assert parameters.evaluations[0].samples == 100
        assert parameters.evaluations[0].loss == 0.5
        parameters.close()


def test_a_trainer_of_an_old_attempt_is_told_so_and_changes_nothing(shards: Shards) -> None:
    parameters = shards.attach()
    await_version(parameters, 0)
    for server in shards.servers:
        server.shares.get("job").fence(2)

    def push_again_and_again() -> None:
        while True:
            push(shards, parameters, 0, 0, 4)
            parameters.wait(1.0)

    with pytest.raises((Stale, Unavailable), match="attempt"):
        push_again_and_again()
    parameters.close()
    assert [server.shares.get("job").version for server in shards.servers] == [0, 0]
    with pytest.raises(Stale, match="attempt 1 of job job is over: 2 runs"):
        shards.attach()


def test_a_push_for_a_step_that_is_over_is_a_duplicate(shards: Shards) -> None:
    early, late = shards.attach("early"), shards.attach("late")
    for parameters in (early, late):
        await_version(parameters, 0)
    push(shards, early, 0, 0, 4)
    await_version(early, 1)
    for server in shards.servers:  # as it arrives, whatever its sender knows by then
        share = server.shares.get("job")
        (session,) = [session for session in share._sessions if session.hello.worker_id == "late"]
        share.receive(session, Frame(Kind.PUSHED, attempt=1, step=0, start=0, size=4))
    push(shards, early, 1, 0, 4)
    await_version(early, 2)
    assert_equal_bits(held_weights(shards, early), expected_weights(shards, 2))
    early.close()
    late.close()


def test_a_stream_that_breaks_before_a_push_is_complete_changes_nothing(shards: Shards, transport: str) -> None:
    broken, living = shards.attach("broken"), shards.attach("living")
    for parameters in (broken, living):
        await_version(parameters, 0)
    broken.slot(0).fill_(7.0)
    if transport == "grpc":  # by shared memory a push is one message: it comes whole or not at all
        for shard in broken._shards:
            some = Frame(Kind.GRADIENT, attempt=1, step=0, start=0, size=4, payload=bytes(1024))
            shard.link.send(some)
    broken.close()
    push(shards, living, 0, 0, 4)
    await_version(living, 1)
    assert_equal_bits(held_weights(shards, living), expected_weights(shards, 1))
    living.close()


def test_a_push_whose_answer_is_lost_counts_once_when_it_is_made_again(shards: Shards) -> None:
    """The link ends before the news of the next version; the trainer comes back and pushes the same."""
    witness, parameters = shards.attach("witness"), shards.attach("once")
    for trainer in (witness, parameters):
        await_version(trainer, 0)
    push(shards, parameters, 0, 0, 4)
    await_version(witness, 1)
    parameters.close()
    again = shards.attach("once")
    await_version(again, 1)
    for shard in again._shards:
        shard.version = 0  # what it knew when the link broke
    push(shards, again, 0, 0, 4)
    push(shards, witness, 1, 0, 4)
    await_version(witness, 2)
    assert_equal_bits(held_weights(shards, witness), expected_weights(shards, 2))
    again.close()
    witness.close()


def test_a_hello_for_a_job_that_is_not_here_is_refused(shards: Shards) -> None:
    hello = Hello(job_id="no-such-job", worker_id="worker", incarnation="i", attempt=1)
    for server in shards.servers:
        with pytest.raises(NotFound, match="no-such-job"):
            server.shares.endpoint(hello)
        with open_channel(f"127.0.0.1:{server.port}") as channel, pytest.raises(NotFound):
            GrpcLink(channel, hello, 1)


def fence(shards: Shards, **whom: list[str]) -> list[int]:
    whom = {"incarnations": [], "worker_ids": []} | whom
    return [server.shares.get("job").fence_off(attempt=1, **whom) for server in shards.servers]


@pytest.mark.parametrize("whom", ["incarnations", "worker_ids"])
def test_nothing_of_an_incarnation_counts_any_more_once_it_is_fenced_off_and_the_living_go_on(
    shards: Shards, whom: str
) -> None:
    """What it pushed before stays: a unit is the same, whoever computed it."""
    dead, living = shards.attach("dead"), shards.attach("living")
    for parameters in (dead, living):
        await_version(parameters, 0)
    push(shards, dead, 0, 0, 2)
    for shard in dead._shards:
        dead.missing = None
        shard.link.send(Frame(Kind.ASK_MISSING, attempt=1, step=0))
        while dead.missing is None:
            dead.wait(5.0)
        assert dead.missing.ranks == (2, 3), "the push has come"
    assert fence(shards, **{whom: ["dead"]}) == [1, 1]
    assert fence(shards, incarnations=["dead"]) == [0, 0], "twice is once"
    with pytest.raises(FencedOff, match="incarnation dead has been counted as dead"):
        wait_for_ever(dead)
    with pytest.raises(FencedOff):
        shards.attach("dead")
    push(shards, living, 0, 2, 2)
    await_version(living, 1)
    push(shards, living, 1, 0, 4)
    await_version(living, 2)
    assert_equal_bits(held_weights(shards, living), expected_weights(shards, 2))
    dead.close()
    living.close()


def test_a_push_of_the_dead_that_is_under_way_when_it_is_fenced_off_does_not_count(shards: Shards) -> None:
    """A frozen one that wakes sends before it reads."""
    dead, living = shards.attach("dead"), shards.attach("living")
    for parameters in (dead, living):
        await_version(parameters, 0)
    for server in shards.servers:  # the fence without the cut: what comes on the old link is refused by itself
        server.shares.get("job")._fenced.add("dead")
    push(shards, dead, 0, 0, 4)
    with pytest.raises((FencedOff, Unavailable)):
        wait_for_ever(dead)
    assert [server.shares.get("job").version for server in shards.servers] == [0, 0]
    push(shards, living, 0, 0, 4)
    await_version(living, 1)
    assert_equal_bits(held_weights(shards, living), expected_weights(shards, 1))
    dead.close()
    living.close()


def test_a_fence_of_an_old_attempt_is_refused(shards: Shards) -> None:
    parameters = shards.attach()
    for server in shards.servers:
        server.shares.get("job").fence(2)
    with pytest.raises(Stale, match="attempt 1 of job job is over"):
        fence(shards, incarnations=["worker"])
    parameters.close()


def test_a_worker_with_other_data_is_refused(shards: Shards) -> None:
    parameters = shards.attach()
    other = dataclasses.replace(FACTS, fingerprint="g")
    with pytest.raises(InvalidInput, match="fingerprint g here, f there"):
        shards.attach("other", facts=other)
    parameters.close()


def test_a_link_ends_with_a_reason_when_a_frame_makes_no_sense(shards: Shards) -> None:
    parameters = shards.attach()
    await_version(parameters, 0)
    for shard in parameters._shards:
        shard.link.send(Frame(Kind.WEIGHTS, attempt=1, step=0))
    with pytest.raises(ShoalError, match="a trainer does not send WEIGHTS"):
        wait_for_ever(parameters)
    parameters.close()


def test_a_trainer_that_does_not_read_holds_nobody_up_and_catches_up(shards: Shards) -> None:
    frozen, working = shards.attach("frozen"), shards.attach("working")
    await_version(frozen, 0)
    await_version(working, 0)
    for step in range(1500):  # more than any buffer between them holds
        push(shards, working, step, 0, 4)
        await_version(working, step + 1)
    while frozen.version < 1500:
        # What a trainer does that waits in vain: it asks what is missing, and is told the state.
        frozen.ask_missing(step=max(frozen.version, 0), evaluation=False)
        frozen.wait(0.2)
    assert_equal_bits(held_weights(shards, frozen), held_weights(shards, working))
    frozen.close()
    working.close()


@pytest.mark.parametrize("first", ["trainer", "share"])
def test_the_memory_of_a_share_is_given_back_by_a_server_that_does_nothing_else(shards: Shards, first: str) -> None:
    """Such a server makes no objects, so nothing has Python look for circles of them: there must be none."""
    before = len(shared_memories())
    gc.disable()
    try:
        parameters = shards.attach()
        await_version(parameters, 0)
        push(shards, parameters, 0, 0, 4)
        await_version(parameters, 1)
        assert len(shared_memories()) >= before + 2 * len(shards.servers)
        if first == "trainer":
            parameters.close()
        for server in shards.servers:
            server.shares.drop("job", "the job has ended")
        if first == "share":
            with pytest.raises(Stale, match="the job has ended"):
                wait_for_ever(parameters)
            parameters.close()
        deadline = time.monotonic() + 20
        while left := shared_memories()[before:]:
            assert time.monotonic() < deadline, left
            time.sleep(0.02)
    finally:
        gc.enable()


def test_a_closed_shard_ends_its_links(shards: Shards) -> None:
    parameters = shards.attach()
    await_version(parameters, 0)
    for server in shards.servers:
        server.shares.drop("job", "the job has ended")
    with pytest.raises(Stale, match="the job has ended"):
        wait_for_ever(parameters)
    parameters.close()
