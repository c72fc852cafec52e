"""Scheduling as tables: who starts, who waits and why, who gets whose workers."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.job import Capabilities, Requirements
from shoal.master.scheduling.scheduler import (
    Cluster,
    JobFacts,
    Move,
    Recover,
    ServerFacts,
    Start,
    Wait,
    WorkerFacts,
    decide,
)
from shoal.master.scheduling.spread import Hysteresis

HYSTERESIS = Hysteresis(gain=0.25, gain_seconds=0.001, seconds=5.0)
NOW = 1000.0


def worker(name, *, gpu=False, models=("mlp", "cnn"), slots=1, **facts):
    capabilities = Capabilities(has_gpu=gpu, supported_models=frozenset(models), max_concurrent_jobs=slots)
    return WorkerFacts(worker_id=name, capabilities=capabilities, **facts)


def cluster(*workers, servers=2, shares=()):
    held = dict(shares)
    named = tuple(ServerFacts(server_id=f"ps-{n}", shares=held.get(f"ps-{n}", 0)) for n in range(servers))
    return Cluster(workers=workers, servers=named)


def job(name, *, age=0.0, ranks=None, requirements=(), **facts):
    wanted = Requirements(
        **{
            "model_type": "mlp",
            "gpu": False,
            "world_size": 8,
            "min_workers": 1,
            "max_workers": 8,
            "shards": 1,
            **dict(requirements),
        }
    )
    under_way = ranks is not None
    return JobFacts(
        **{
            "job_id": name,
            "requirements": wanted,
            "submitted_at": NOW - age,
            "under_way": under_way,
            "servers": ("ps-0",) if under_way else (),
            "ranks": ranks or {},
            "moved_at": NOW - 100,
            **facts,
        }
    )


def even(*workers, world_size=8):
    size = world_size // len(workers)
    return {name: range(n * size, (n + 1) * size) for n, name in enumerate(workers)}


def run(jobs, there):
    return {decision.job_id: decision for decision in decide(NOW, tuple(jobs), there, HYSTERESIS)}


def test_a_job_starts_on_every_free_worker():
    decision = run([job("a")], cluster(worker("w0"), worker("w1")))["a"]
    assert isinstance(decision, Start)
    assert decision.ranks == {"w0": range(4), "w1": range(4, 8)}
    assert (decision.servers, decision.reason) == (("ps-0",), "WorkersFound")


def test_nothing_to_do_is_no_decision():
    assert run([], cluster(worker("w0"))) == {}
    assert run([job("a", ranks=even("w0", "w1"))], cluster(worker("w0"), worker("w1"))) == {}


@pytest.mark.parametrize(
    ("requirements", "workers", "reason"),
    [
        ({}, [], "NotEnoughWorkers"),
        ({"gpu": True}, [worker("w0")], "NotEnoughWorkers"),
        ({"model_type": "logistic"}, [worker("w0")], "NotEnoughWorkers"),
        ({"min_workers": 2}, [worker("w0")], "NotEnoughWorkers"),
        ({}, [worker("w0", slots=0)], "NotEnoughWorkers"),
        ({}, [worker("w0", models=())], "NotEnoughWorkers"),
        ({}, [worker("w0", open=False)], "NotEnoughWorkers"),
        ({}, [worker("w0", open=False, known=False)], "NotEnoughWorkers"),
        ({"shards": 3}, [worker("w0")], "NotEnoughParameterServers"),
        ({"external": True, "shards": 3}, [], "NotEnoughParameterServers"),
    ],
)
def test_a_job_waits_and_says_for_what(requirements, workers, reason):
    decision = run([job("a", requirements=requirements)], cluster(*workers))["a"]
    assert isinstance(decision, Wait)
    assert decision.reason == reason


@pytest.mark.parametrize(
    ("requirements", "workers", "chosen"),
    [
        ({"gpu": True}, [worker("w0"), worker("w1", gpu=True)], {"w1"}),
        ({"model_type": "cnn"}, [worker("w0", models=["mlp"]), worker("w1")], {"w1"}),
        ({"max_workers": 2}, [worker("w0"), worker("w1"), worker("w2")], {"w0", "w1"}),
        ({"world_size": 2, "max_workers": 2}, [worker("w0"), worker("w1"), worker("w2")], {"w0", "w1"}),
        ({}, [worker("w0"), worker("w1", open=False)], {"w0"}),
        ({"world_size": 2, "min_workers": 3, "max_workers": 2}, [worker(f"w{n}") for n in range(3)], {"w0", "w1"}),
    ],
)
def test_only_capable_workers_are_chosen(requirements, workers, chosen):
    decision = run([job("a", requirements=requirements)], cluster(*workers))["a"]
    assert isinstance(decision, Start)
    assert set(decision.ranks) == chosen


def test_an_external_job_needs_servers_but_no_workers():
    decision = run([job("a", requirements={"external": True, "shards": 2})], cluster())["a"]
    assert isinstance(decision, Start)
    assert (decision.ranks, decision.servers) == ({}, ("ps-0", "ps-1"))


def test_the_least_loaded_servers_are_chosen():
    there = cluster(worker("w0"), servers=3, shares={"ps-0": 2, "ps-1": 1, "ps-2": 1}.items())
    assert run([job("a", requirements={"shards": 2})], there)["a"].servers == ("ps-1", "ps-2")


def test_jobs_that_start_together_spread_over_the_servers():
    there = cluster(worker("w0", slots=2), servers=2)
    decisions = run([job("a", age=2), job("b", age=1)], there)
    assert (decisions["a"].servers, decisions["b"].servers) == (("ps-0",), ("ps-1",))


def test_a_job_keeps_the_servers_it_once_had():
    waiting = job("a", servers=("ps-1",))
    assert run([waiting], cluster(worker("w0"), shares={"ps-1": 9}.items()))["a"].servers == ("ps-1",)
    missing = run([waiting], cluster(worker("w0"), servers=1))["a"]
    assert isinstance(missing, Wait)
    assert "ps-1" in missing.message


def test_priority_goes_before_age():
    jobs = [job("old", age=9), job("high", age=1, requirements={"priority": 5}), job("young", age=0)]
    jobs = [replace(one, requirements=replace(one.requirements, max_workers=1)) for one in jobs]
    decisions = run(jobs, cluster(worker("w0"), worker("w1")))
    assert isinstance(decisions["high"], Start)
    assert isinstance(decisions["old"], Start)
    assert isinstance(decisions["young"], Wait)


def test_a_job_waits_out_its_delay():
    delayed = run([job("a", not_before=NOW + 1)], cluster(worker("w0")))["a"]
    assert (type(delayed), delayed.reason) == (Wait, "RetryDelay")
    assert isinstance(run([job("a", not_before=NOW)], cluster(worker("w0")))["a"], Start)


def test_a_worker_takes_no_more_jobs_than_it_has_slots():
    jobs = [job(name, requirements={"max_workers": 1}) for name in "abc"]
    decisions = run(jobs, cluster(worker("w0", slots=2)))
    assert [type(decisions[name]) for name in "abc"] == [Start, Start, Wait]


def test_idle_workers_flow_to_running_jobs():
    decision = run([job("a", ranks=even("w0"))], cluster(worker("w0"), worker("w1")))["a"]
    assert isinstance(decision, Move)
    assert decision.ranks == {"w0": range(4), "w1": range(4, 8)}
    assert decision.reason == "WorkerJoined"


def test_a_lost_workers_ranks_move_to_the_others():
    decision = run([job("a", ranks=even("w0", "w1"))], cluster(worker("w0")))["a"]
    assert decision.ranks == {"w0": range(8)}
    assert decision.reason == "WorkerLost"


def test_a_job_goes_on_below_its_least_number_of_workers():
    running = job("a", ranks=even("w0", "w1"), requirements={"min_workers": 2})
    assert run([running], cluster(worker("w0")))["a"].ranks == {"w0": range(8)}


def test_a_job_whose_last_worker_is_lost_keeps_its_attempt_without_workers():
    decision = run([job("a", ranks=even("w0"))], cluster())["a"]
    assert (type(decision), decision.ranks, decision.reason) == (Move, {}, "NoWorkers")


def test_a_running_job_without_workers_takes_one_that_another_can_spare():
    jobs = [job("a", ranks=even("w0", "w1"), age=9), job("b", ranks={})]
    decisions = run(jobs, cluster(worker("w0"), worker("w1")))
    assert set(decisions["a"].ranks) | set(decisions["b"].ranks) == {"w0", "w1"}


def test_a_suspect_or_expected_worker_keeps_what_it_has():
    running = job("a", ranks=even("w0", "w1"))
    there = cluster(worker("w0", open=False), worker("w1", models=(), slots=0, open=False, known=False))
    assert run([running], there) == {}


def test_a_leaving_worker_hands_its_ranks_back_at_once_and_gets_none():
    facts = job("a", ranks={"w1": range(4), "w2": range(4, 8)})
    (decision,) = decide(NOW, (facts,), cluster(worker("w1", leaving=True, open=False), worker("w2")), HYSTERESIS)
    assert isinstance(decision, Move)
    assert decision.ranks == {"w2": range(8)}
    assert (decision.reason, decision.message) == ("WorkerLeft", "w1 handed its ranks back")
    (waits,) = decide(NOW, (job("b"),), cluster(worker("w1", leaving=True, open=False)), HYSTERESIS)
    assert isinstance(waits, Wait)


def test_a_worker_that_takes_no_jobs_any_more_gives_its_ranks_back():
    running = job("a", ranks=even("w0", "w1"))
    assert set(run([running], cluster(worker("w0"), worker("w1", slots=0)))["a"].ranks) == {"w0"}


def test_a_waiting_job_takes_a_worker_from_one_that_can_spare_it():
    jobs = [job("a", ranks=even("w0", "w1", world_size=8), age=9), job("b")]
    decisions = run(jobs, cluster(worker("w0"), worker("w1")))
    assert isinstance(decisions["b"], Start)
    assert len(decisions["a"].ranks) == len(decisions["b"].ranks) == 1


def test_a_waiting_job_takes_nothing_that_another_needs():
    jobs = [job("a", ranks=even("w0", "w1"), age=9, requirements={"min_workers": 2}), job("b")]
    decisions = run(jobs, cluster(worker("w0"), worker("w1")))
    assert isinstance(decisions["b"], Wait)
    assert "a" not in decisions


def test_all_or_nothing_is_taken_for_a_waiting_job():
    jobs = [job("a", ranks=even("w0", "w1"), age=9), job("b", requirements={"min_workers": 2})]
    decisions = run(jobs, cluster(worker("w0"), worker("w1")))
    assert isinstance(decisions["b"], Wait)
    assert "a" not in decisions


def test_equal_jobs_share_the_workers_evenly():
    jobs = [job("a", ranks=even("w0", "w1", "w2", "w3"), age=9), job("b")]
    decisions = run(jobs, cluster(*(worker(f"w{n}") for n in range(4))))
    assert len(decisions["a"].ranks) == len(decisions["b"].ranks) == 2


def test_a_higher_priority_gets_all_it_can_use_and_leaves_the_least():
    jobs = [job("a", ranks=even("w0", "w1", "w2", "w3"), age=9), job("b", requirements={"priority": 1})]
    decisions = run(jobs, cluster(*(worker(f"w{n}") for n in range(4))))
    assert (len(decisions["a"].ranks), len(decisions["b"].ranks)) == (1, 3)


def test_nobody_starves_behind_small_jobs():
    big = job("big", age=9, requirements={"min_workers": 2, "priority": 1})
    jobs = [big, job("a", ranks=even("w0"), age=20, requirements={"max_workers": 1}), job("small")]
    decisions = run(jobs, cluster(worker("w0"), worker("w1")))
    assert decisions["big"].reason == "NotEnoughWorkers"
    assert decisions["small"].reason == "BehindOthers"


def test_a_job_that_can_not_run_here_at_all_holds_nobody_up():
    jobs = [job("gpu", age=9, requirements={"gpu": True}), job("b")]
    decisions = run(jobs, cluster(worker("w0")))
    assert isinstance(decisions["gpu"], Wait)
    assert isinstance(decisions["b"], Start)


def test_a_lost_share_ends_the_attempt_and_frees_the_workers():
    jobs = [job("a", ranks=even("w0"), lost_shares=("ps-0",)), job("b", requirements={"shards": 1})]
    decisions = run(jobs, cluster(worker("w0")))
    assert isinstance(decisions["a"], Recover)
    assert (decisions["a"].reason, "ps-0" in decisions["a"].message) == ("ParameterServerLost", True)
    assert isinstance(decisions["b"], Start)


def test_where_trainers_keep_being_killed_the_ranks_go_to_the_others():
    unfit = job("a", ranks=even("w0", "w1"), unfit=frozenset({"w0"}))
    decision = run([unfit], cluster(worker("w0"), worker("w1")))["a"]
    assert (decision.reason, decision.ranks) == ("TrainersKilled", {"w1": range(8)})
    assert "w0" in decision.message


def test_an_unfit_worker_gets_nothing_more_of_the_attempt_while_others_are_free_or_busy():
    unfit = job("a", ranks=even("w1"), unfit=frozenset({"w0"}))
    there = [worker("w0"), worker("w1")]
    assert run([unfit], cluster(*there)) == {}
    assert set(run([unfit], cluster(*there, worker("w2")))["a"].ranks) == {"w1", "w2"}
    busy = replace(unfit, ranks={})
    others = job("b", age=9, ranks=even("w1"))
    assert "a" not in run([busy, others], cluster(worker("w0", slots=0), worker("w1")))
    assert set(run([job("c")], cluster(worker("w0")))["c"].ranks) == {"w0"}, "to another job it is fit"


@pytest.mark.parametrize("state", [{}, {"paused": True}, {"closing": True}])
def test_an_attempt_that_only_unfit_workers_could_go_on_with_ends(state):
    unfit = job("a", ranks=even("w1"), unfit=frozenset({"w0"}), **state)
    decision = run([unfit], cluster(worker("w0"))).get("a")
    if state:
        assert not isinstance(decision, Recover)
    else:
        assert isinstance(decision, Recover)
        assert (decision.reason, "w0" in decision.message) == ("TrainersKilled", True)
    assert isinstance(run([unfit], cluster())["a"] if not state else None, Move | None), "it waits for anybody"


def test_a_closing_job_is_left_alone():
    jobs = [job("a", ranks=even("w0", "w1"), age=9, closing=True), job("b")]
    decisions = run(jobs, cluster(worker("w0"), worker("w1"), worker("w2")))
    assert set(decisions["b"].ranks) == {"w2"}
    assert "a" not in decisions


def test_a_slow_worker_gets_fewer_ranks():
    running = job("a", ranks=even("w0", "w1"), seconds_per_unit={"w0": 0.01, "w1": 0.03})
    decision = run([running], cluster(worker("w0"), worker("w1")))["a"]
    assert decision.reason == "Rebalanced"
    assert (len(decision.ranks["w0"]), len(decision.ranks["w1"])) == (6, 2)


@st.composite
def clusters(draw):
    workers = tuple(
        worker(
            f"w{n}",
            gpu=draw(st.booleans()),
            models=draw(st.sampled_from([("mlp",), ("cnn",), ("mlp", "cnn")])),
            slots=draw(st.integers(0, 3)),
            open=draw(st.booleans()),
        )
        for n in range(draw(st.integers(0, 6)))
    )
    jobs = []
    for n in range(draw(st.integers(0, 6))):
        world_size = draw(st.integers(1, 12))
        least = draw(st.integers(1, 3))
        requirements = {
            "model_type": draw(st.sampled_from(["mlp", "cnn"])),
            "gpu": draw(st.booleans()),
            "world_size": world_size,
            "min_workers": min(least, world_size),
            "max_workers": draw(st.integers(min(least, world_size), world_size)),
            "priority": draw(st.integers(0, 2)),
            "external": draw(st.sampled_from([False, False, False, True])),
            "shards": draw(st.integers(1, 2)),
        }
        ranks = None
        if draw(st.booleans()):
            held = draw(st.lists(st.sampled_from([f"w{k}" for k in range(8)]), unique=True, max_size=world_size))
            cuts = [len(held) and world_size * k // len(held) for k in range(len(held) + 1)]
            ranks = {name: range(cuts[k], cuts[k + 1]) for k, name in enumerate(held)}
            ranks = {} if requirements["external"] else ranks
        unfit = draw(st.frozensets(st.sampled_from([f"w{k}" for k in range(8)]), max_size=2)) if ranks else frozenset()
        jobs.append(job(f"j{n}", age=float(n), requirements=requirements, ranks=ranks, unfit=unfit))
    return jobs, Cluster(workers=workers, servers=cluster(servers=2).servers)


def applied(jobs, decisions):
    """The facts after the decisions have been carried out."""
    by_id = {decision.job_id: decision for decision in decisions}
    after = []
    for one in jobs:
        match by_id.get(one.job_id):
            case Start() as start:
                after.append(replace(one, under_way=True, ranks=start.ranks, servers=start.servers, moved_at=NOW))
            case Move() as move:
                after.append(replace(one, ranks=move.ranks, moved_at=NOW))
            case Recover():
                after.append(replace(one, under_way=False, ranks={}, unfit=frozenset()))
            case _:
                after.append(one)
    return after


@settings(max_examples=200)
@given(clusters())
def test_whatever_the_facts_the_outcome_is_lawful_and_comes_to_rest(case):
    jobs, there = case
    decisions = decide(NOW, tuple(jobs), there, HYSTERESIS)
    assert len({decision.job_id for decision in decisions}) == len(decisions)
    after = applied(jobs, decisions)
    by_worker = {one.worker_id: one for one in there.workers}
    used = dict.fromkeys(by_worker, 0)
    for one in after:
        requirements = one.requirements
        if not one.under_way or not one.ranks:
            continue
        hosted = sorted(rank for ranks in one.ranks.values() for rank in ranks)
        assert hosted == list(range(requirements.world_size))
        assert len(one.ranks) <= requirements.world_size
        for name in one.ranks:
            capabilities = by_worker[name].capabilities
            assert requirements.model_type in capabilities.supported_models
            assert capabilities.has_gpu or not requirements.gpu
            assert name not in one.unfit
            used[name] += 1
    assert all(used[name] <= by_worker[name].capabilities.max_concurrent_jobs for name in used)
    for decision in decisions:
        if isinstance(decision, Start) and decision.ranks:
            wanted = next(one.requirements for one in jobs if one.job_id == decision.job_id)
            assert wanted.min_workers <= len(decision.ranks) <= wanted.max_workers
    for _ in range(5):  # one move can make room for another; that comes to rest
        again = decide(NOW, tuple(after), there, HYSTERESIS)
        after = applied(after, again)
    assert all(isinstance(decision, Wait) for decision in again)
