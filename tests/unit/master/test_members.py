"""Who may have which id, and when somebody counts as lost."""

from dataclasses import replace

import pytest

from shoal.core.errors import FencedOff, InvalidInput
from shoal.core.job import Capabilities, Load, Progress
from shoal.master.membership.members import Application, Finding, Members, MemberState, Role, Timing
from shoal.process.clock import FakeClock

TIMING = Timing(lease_seconds=10, suspect_grace_seconds=1, server_grace_seconds=3, lost_kept_seconds=300)
WORKER = Application(
    member_id="worker-1",
    role=Role.WORKER,
    incarnation="a",
    host="h",
    port=7,
    metrics_port=8,
    capabilities=Capabilities(has_gpu=False, supported_models=frozenset({"mlp"}), max_concurrent_jobs=1),
)
SERVER = replace(WORKER, member_id="ps-0", role=Role.PARAMETER_SERVER, incarnation="s")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def members(clock) -> Members:
    return Members(clock=clock, timing=TIMING)


def state(members, member_id="worker-1"):
    return members.get(member_id).state


def expire(members, finding=Finding.SILENT):
    """As the coordinator does it; whoever is asked answers with `finding`."""
    for member in members.take_doubtful():
        members.found(member.member_id, member.incarnation, finding)
    return members.expire()


def test_a_newcomer_gets_the_id_it_asks_for(members):
    registration = members.register(WORKER)
    assert (registration.member.member_id, registration.renamed, registration.newcomer) == ("worker-1", False, True)
    assert registration.member.state is MemberState.ALIVE


def test_a_live_incarnation_keeps_its_id_and_the_newcomer_is_told_another(members):
    members.register(WORKER)
    second = members.register(replace(WORKER, incarnation="b"))
    third = members.register(replace(WORKER, incarnation="c"))
    assert (second.member.member_id, second.renamed) == ("worker-1-2", True)
    assert "worker-1 belongs to a live worker: registered as worker-1-2" in second.message
    assert third.member.member_id == "worker-1-3"
    assert members.get("worker-1").incarnation == "a"


@pytest.mark.parametrize("asked", ["worker-1", "worker-1-2"])
def test_an_incarnation_that_registers_again_keeps_the_id_it_was_given(members, asked):
    members.register(WORKER)
    members.register(replace(WORKER, incarnation="b"))
    again = members.register(replace(WORKER, incarnation="b", member_id=asked))
    assert (again.member.member_id, again.newcomer) == ("worker-1-2", False)


def test_the_id_of_the_dead_can_be_used_again(members, clock):
    members.register(WORKER)
    clock.advance(10)
    expire(members)
    newcomer = members.register(replace(WORKER, incarnation="b"))
    assert (newcomer.member.member_id, newcomer.renamed) == ("worker-1", False)
    assert members.heard("worker-1", "a") is None


def test_a_newcomer_takes_the_id_of_one_whose_connection_broke(members):
    members.register(WORKER)
    members.connection_broke("worker-1", "a")
    assert members.register(replace(WORKER, incarnation="b")).member.member_id == "worker-1"
    assert members.heard("worker-1", "a") is None


def test_a_server_that_listens_where_the_old_one_did_replaces_it(members):
    members.register(SERVER)
    successor = members.register(replace(SERVER, incarnation="t"))
    elsewhere = members.register(replace(SERVER, incarnation="u", port=99))
    assert successor.member.member_id == "ps-0"
    assert members.heard("ps-0", "s") is None
    assert elsewhere.member.member_id == "ps-0-2"


def test_a_plain_client_is_known_by_its_id_and_address(members):
    plain = replace(WORKER, incarnation="")
    members.register(plain)
    assert members.register(plain).member.member_id == "worker-1"
    assert members.register(replace(plain, port=99)).member.member_id == "worker-1-2"
    assert members.register(WORKER).member.member_id == "worker-1-3"


def test_roles_do_not_share_ids(members):
    members.register(WORKER)
    assert members.register(replace(SERVER, member_id="worker-1")).member.member_id == "worker-1-2"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"member_id": ""}, "worker_id"),
        ({"member_id": "a b"}, "worker_id"),
        ({"member_id": "../x"}, "worker_id"),
        ({"member_id": "x" * 200}, "worker_id"),
        ({"port": -1}, "port"),
        ({"port": 70_000}, "port"),
        ({"role": Role.PARAMETER_SERVER, "port": 0}, "port"),
        ({"capabilities": replace(WORKER.capabilities, max_concurrent_jobs=-1)}, "capabilities.max_concurrent_jobs"),
    ],
)
def test_what_can_not_be_a_member_is_refused_by_field(members, change, field):
    with pytest.raises(InvalidInput) as caught:
        members.register(replace(WORKER, **change))
    assert caught.value.field == field


def test_an_unknown_worker_is_not_recognized(members):
    assert members.heard("worker-1", "a") is None


def test_another_incarnation_is_not_recognized(members):
    members.register(WORKER)
    assert members.heard("worker-1", "b") is None
    assert members.heard("worker-1", "") is None


def test_a_heartbeat_renews_the_lease_and_brings_figures(members, clock):
    members.register(WORKER)
    load = Load(cpu_percent=50, memory_percent=25, current_jobs=1)
    progress = Progress(job_id="j", attempt=2, step=7, seconds_per_unit=0.25)
    for _ in range(5):
        clock.advance(9)
        members.heard("worker-1", "a", load=load, progress=(progress,))
        assert expire(members).lost == ()
    member = members.get("worker-1")
    assert member.load == load
    assert (member.seconds_per_unit("j", 2), member.seconds_per_unit("j", 1)) == (0.25, 0.0)


def test_a_silent_member_is_lost_when_its_lease_ends(members, clock):
    members.register(WORKER)
    clock.advance(9.9)
    assert expire(members).lost == ()
    clock.advance(0.1)
    assert [member.member_id for member in expire(members).lost] == ["worker-1"]
    assert state(members) is MemberState.LOST
    assert expire(members).lost == ()
    assert members.heard("worker-1", "a") is None


def test_a_worker_whose_connection_broke_is_suspect_at_once_and_lost_soon(members, clock):
    members.register(WORKER)
    members.connection_broke("worker-1", "a")
    assert state(members) is MemberState.SUSPECT
    assert members.next_expiry() == clock.monotonic() + 1
    clock.advance(1)
    assert [member.member_id for member in expire(members).lost] == ["worker-1"]


def test_a_suspect_that_is_heard_is_alive_again(members, clock):
    members.register(WORKER)
    members.connection_broke("worker-1", "a")
    clock.advance(0.5)
    members.heard("worker-1", "a")
    clock.advance(5)
    assert expire(members).lost == ()
    assert state(members) is MemberState.ALIVE


def test_a_server_has_time_for_heartbeats_before_it_is_lost(members, clock):
    members.register(SERVER)
    members.connection_broke("ps-0", "s")
    clock.advance(2.9)
    assert expire(members).lost == ()
    clock.advance(0.1)
    assert len(expire(members).lost) == 1


def test_a_broken_connection_of_an_old_incarnation_says_nothing(members):
    members.register(WORKER)
    members.connection_broke("worker-1", "old")
    assert state(members) is MemberState.ALIVE


def test_a_broken_connection_does_not_lengthen_a_lease(members, clock):
    members.register(WORKER)
    clock.advance(9.5)
    members.connection_broke("worker-1", "a")
    clock.advance(0.5)
    assert len(expire(members).lost) == 1


def test_an_expected_member_has_one_lease_to_come_back(members, clock):
    members.expect("worker-1", Role.WORKER)
    members.expect("worker-2", Role.WORKER)
    assert members.heard("worker-1", "") is None
    clock.advance(5)
    assert members.register(WORKER).member.member_id == "worker-1"
    clock.advance(5)
    assert [member.member_id for member in expire(members).lost] == ["worker-2"]


def test_expecting_somebody_who_is_here_changes_nothing(members):
    members.register(WORKER)
    members.expect("worker-1", Role.WORKER)
    assert state(members) is MemberState.ALIVE


def test_the_lost_are_listed_for_a_while_and_then_forgotten(members, clock):
    members.register(WORKER)
    clock.advance(10)
    expire(members)
    clock.advance(299)
    expire(members)
    assert [member.member_id for member in members.of(Role.WORKER)] == ["worker-1"]
    clock.advance(1)
    assert [member.member_id for member in expire(members).forgotten] == ["worker-1"]
    assert members.of(Role.WORKER) == ()


def test_a_leaver_stays_known_but_is_leaving_whatever_else_it_says(members, clock):
    members.register(WORKER)
    assert members.leaves("worker-1", "a").state is MemberState.LEAVING
    assert members.heard("worker-1", "a").state is MemberState.LEAVING
    members.connection_broke("worker-1", "a")
    assert state(members) is MemberState.LEAVING
    clock.advance(1)
    assert [member.member_id for member in expire(members).lost] == ["worker-1"]


def test_a_registration_that_comes_twice_takes_no_leaving_back(members, clock):
    members.register(WORKER)
    members.leaves("worker-1", "a")
    assert members.register(WORKER).member.state is MemberState.LEAVING
    members.left("worker-1", "a")
    assert members.register(WORKER).member.left
    assert [member.member_id for member in expire(members).lost] == ["worker-1"]


def test_who_has_left_is_lost_at_once_and_its_id_is_free(members):
    members.register(WORKER)
    members.left("worker-1", "a")
    assert members.register(replace(WORKER, incarnation="b")).member.member_id == "worker-1"
    members.left("worker-1", "b")
    members.heard("worker-1", "b")
    assert [member.left for member in expire(members).lost] == [True]
    assert state(members) is MemberState.LOST


def test_only_who_is_known_can_leave(members):
    members.register(WORKER)
    assert members.leaves("worker-1", "b") is None
    assert members.left("nobody", "a") is None
    assert state(members) is MemberState.ALIVE


def test_a_silent_member_is_asked_once_and_lost_when_it_does_not_answer_either(members, clock):
    members.register(WORKER)
    clock.advance(TIMING.lease_seconds - 0.001)
    assert members.take_doubtful() == ()
    clock.advance(0.001)
    assert [member.member_id for member in members.take_doubtful()] == ["worker-1"]
    assert members.take_doubtful() == ()
    assert members.expire().lost == ()
    assert members.next_expiry() == clock.monotonic() + TIMING.probe_seconds
    clock.advance(TIMING.probe_seconds)
    assert [member.member_id for member in members.expire().lost] == ["worker-1"], "no answer prolongs nothing"


def test_one_whose_connection_broke_is_asked_at_once_and_lost_when_nobody_listens_there(members):
    members.register(WORKER)
    members.connection_broke("worker-1", "a")
    assert [member.member_id for member in expire(members, Finding.GONE).lost] == ["worker-1"]


def test_silence_after_a_broken_connection_changes_nothing(members, clock):
    members.register(WORKER)
    members.connection_broke("worker-1", "a")
    assert expire(members, Finding.SILENT).lost == ()
    clock.advance(TIMING.suspect_grace_seconds - 0.001)
    assert expire(members).lost == ()
    clock.advance(0.001)
    assert [member.member_id for member in expire(members).lost] == ["worker-1"]


def test_the_answer_of_the_same_incarnation_prolongs_the_lease_once(members, clock):
    members.register(WORKER)
    clock.advance(TIMING.lease_seconds)
    assert expire(members, Finding.ALIVE).lost == ()
    clock.advance(TIMING.lease_seconds - 0.001)
    assert expire(members, Finding.ALIVE).lost == ()
    clock.advance(0.001)
    assert [member.member_id for member in expire(members, Finding.ALIVE).lost] == ["worker-1"]


def test_who_is_heard_again_is_asked_again_at_the_next_silence(members, clock):
    members.register(WORKER)
    clock.advance(TIMING.lease_seconds)
    expire(members, Finding.ALIVE)
    members.heard("worker-1", "a")
    assert state(members) is MemberState.ALIVE
    clock.advance(TIMING.lease_seconds)
    assert [member.member_id for member in members.take_doubtful()] == ["worker-1"]


def test_an_answer_that_comes_too_late_or_for_another_incarnation_changes_nothing(members, clock):
    members.register(WORKER)
    members.connection_broke("worker-1", "a")
    members.take_doubtful()
    members.found("worker-1", "b", Finding.GONE)
    assert members.expire().lost == ()
    members.heard("worker-1", "a")
    members.found("worker-1", "a", Finding.GONE)
    assert members.expire().lost == ()
    assert state(members) is MemberState.ALIVE


def test_a_worker_that_counts_as_lost_must_come_back_as_another_incarnation(members, clock):
    members.register(WORKER)
    clock.advance(TIMING.lease_seconds)
    expire(members)
    with pytest.raises(FencedOff, match="begin anew"):
        members.register(WORKER)
    anew = members.register(replace(WORKER, incarnation="b"))
    assert (anew.member.member_id, anew.displaced.incarnation) == ("worker-1", "a")


def test_who_has_left_does_not_come_back_by_a_late_registration_once_its_id_is_anothers(members, clock):
    members.register(WORKER)
    members.left("worker-1", "a")
    members.register(replace(WORKER, incarnation="b"))
    with pytest.raises(FencedOff, match="incarnation a of worker-1 has been counted as dead"):
        members.register(WORKER)
    assert [member.member_id for member in members.everyone] == ["worker-1"]
    clock.advance(TIMING.lost_kept_seconds)
    members.heard("worker-1", "b")
    members.expire()
    assert members.register(WORKER).member.member_id == "worker-1-2", "nothing is kept for ever"


def test_a_parameter_server_that_counts_as_lost_may_come_back(members, clock):
    members.register(SERVER)
    clock.advance(TIMING.lease_seconds)
    expire(members)
    assert members.register(SERVER).member.state is MemberState.ALIVE


def test_a_restart_of_the_master_displaces_nobody(members):
    members.expect("worker-1", Role.WORKER)
    assert members.register(WORKER).displaced is None
    assert members.register(WORKER).displaced is None
