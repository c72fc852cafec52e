"""Level-triggered assignments, their revisions, and the polls that wait for them."""

import asyncio

import pytest

from shoal.core.job import Capabilities, Grant
from shoal.master.membership.members import Application, Members, MemberState, Role, Timing
from shoal.master.membership.polls import Polls
from shoal.master.scheduling.grants import GrantBook
from shoal.process.clock import FakeClock


def grant(job_id="j", first=0, last=8, attempt=1):
    return Grant(
        job_id=job_id, attempt=attempt, revision=0, spec_json="{}", first_rank=first, last_rank=last, shards=()
    )


@pytest.fixture
def book() -> GrantBook:
    return GrantBook(first_revision=1_000)


def test_a_revision_is_never_zero_and_above_the_first(book):
    assert book.of("w").revision > 1_000
    assert book.of("w") == book.of("w")


def test_each_change_raises_the_revision_of_the_workers_it_touches(book):
    before = {name: book.of(name).revision for name in ("a", "b", "c")}
    changes = book.set_job("j", {"a": grant(last=4), "b": grant(first=4)})
    assert set(changes.granted) == {"a", "b"}
    assert book.of("a").revision > before["a"]
    assert book.of("c").revision == before["c"]
    assert [one.ranks for one in book.of("b").grants] == [range(4, 8)]


def test_every_grant_carries_the_revision_of_its_list(book):
    book.set_job("j", {"a": grant("j")})
    book.set_job("k", {"a": grant("k")})
    held = book.of("a")
    assert {one.revision for one in held.grants} == {held.revision}


def test_the_same_grants_again_change_nothing(book):
    book.set_job("j", {"a": grant()})
    before = book.of("a")
    changes = book.set_job("j", {"a": grant()})
    assert (dict(changes.granted), changes.withdrawn) == ({}, ())
    assert book.of("a") == before


def test_a_worker_that_is_left_out_loses_the_job(book):
    book.set_job("j", {"a": grant(last=4), "b": grant(first=4)})
    before = book.of("b").revision
    assert book.set_job("j", {"a": grant()}).withdrawn == ("b",)
    assert book.of("b").grants == ()
    assert book.of("b").revision > before
    assert book.holds("a", "j")
    assert not book.holds("b", "j")


def test_revisions_rise_above_what_a_worker_has_seen_before_a_restart(book):
    book.rise_above("a", 5_000)
    assert book.of("a").revision > 5_000
    book.set_job("j", {"b": grant()})
    assert book.of("b").revision > 5_000


def test_a_forgotten_worker_starts_anew_with_a_higher_revision(book):
    book.set_job("j", {"a": grant()})
    before = book.of("a").revision
    book.forget("a")
    assert book.of("a").revision > before
    assert book.of("a").grants == ()


async def test_a_poll_with_another_revision_returns_at_once(book):
    held = await book.wait_for_change("a", 0, seconds=60)
    assert held.revision > 0


async def test_a_poll_returns_as_soon_as_the_grants_change(book):
    known = book.of("a").revision
    poll = asyncio.ensure_future(book.wait_for_change("a", known, seconds=60))
    await asyncio.sleep(0)
    book.set_job("j", {"a": grant()})
    assert (await poll).grants[0].job_id == "j"


async def test_a_poll_for_which_nothing_changes_returns_the_same_list(book):
    known = book.of("a")
    assert await book.wait_for_change("a", known.revision, seconds=0.01) == known
    assert await book.wait_for_change("a", known.revision, seconds=0) == known


@pytest.fixture
def members() -> Members:
    timing = Timing(lease_seconds=10, suspect_grace_seconds=1, server_grace_seconds=3, lost_kept_seconds=300)
    members = Members(clock=FakeClock(), timing=timing)
    for incarnation, name in (("", "plain"), ("x", "w")):
        members.register(
            Application(
                member_id=name,
                role=Role.WORKER,
                incarnation=incarnation,
                host="",
                port=0,
                metrics_port=0,
                capabilities=Capabilities(has_gpu=False, supported_models=frozenset(), max_concurrent_jobs=2),
            )
        )
    return members


async def test_a_plain_client_is_handed_each_job_of_an_attempt_once(book, members):
    polls = Polls(grants=book, members=members)
    assert (await polls.take_one("plain", seconds=0)).grant is None
    book.set_job("j", {"plain": grant("j")})
    book.set_job("k", {"plain": grant("k")})
    taken = [await polls.take_one("plain", seconds=0) for _ in range(3)]
    assert [one.grant.job_id if one.grant else None for one in taken] == ["j", "k", None]
    book.set_job("j", {"plain": grant("j", attempt=2)})
    assert (await polls.take_one("plain", seconds=0)).grant.attempt == 2


async def test_a_plain_client_that_waits_gets_the_job_when_it_comes(book, members):
    polls = Polls(grants=book, members=members)
    poll = asyncio.ensure_future(polls.take_one("plain", seconds=60))
    await asyncio.sleep(0)
    book.set_job("j", {"plain": grant("j")})
    assert (await poll).grant.job_id == "j"


async def test_a_broken_poll_is_suspicious_unless_another_one_is_open(book, members):
    polls = Polls(grants=book, members=members)
    known = book.of("w").revision
    first = asyncio.ensure_future(polls.wait("w", "x", known_revision=known, seconds=60))
    second = asyncio.ensure_future(polls.wait("w", "x", known_revision=known, seconds=60))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    polls.broke("w", "x")
    assert members.get("w").state is MemberState.ALIVE
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    polls.broke("w", "x")
    assert members.get("w").state is MemberState.SUSPECT
