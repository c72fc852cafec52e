"""What every store promises, run over each implementation; and what those promise that last."""

import asyncio
import contextlib
import math
from array import array
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
import sqlalchemy.ext.asyncio

from shoal.core.errors import AlreadyExists, Deposed, NotFound, Refused, Stale, Unavailable
from shoal.core.job import Event, Job, Phase, Requirements, Results, ShardAddress, ShardFile
from shoal.master.lifecycle import transitions
from shoal.master.store import rows
from shoal.master.store.base import (
    Database,
    Evaluation,
    JobStore,
    Limits,
    LogLine,
    Manifest,
    Placement,
    Summary,
    Transition,
)
from shoal.master.store.migrate import upgrade
from shoal.master.store.opening import open_database
from shoal.master.store.schema import metadata
from shoal.master.store.sqlite import SHARED, open_sqlite

LIMITS = Limits(log_lines=10, events=12)
KINDS = ["memory", "sqlite", "sqlite of several connections", "postgresql"]
LASTING = ["sqlite", "postgresql"]


def job(job_id: str = "digits-1", *, key: str = "", submitted_at: float = 100.0) -> Job:
    return Job(
        job_id=job_id,
        name="digits",
        spec_json='{"name": "digits"}',
        requirements=Requirements(
            model_type="mlp", gpu=False, world_size=8, min_workers=1, max_workers=8, shards=2, priority=3
        ),
        phase=Phase.PENDING,
        reason="Submitted",
        message="",
        attempt=0,
        submitted_at=submitted_at,
        idempotency_key=key,
    )


RESULTS = Results(
    success=True,
    accuracy=0.97,
    loss=0.1,
    metrics={"seconds": 1.5},
    errors=("a", "b"),
    weights_sha256="ab" * 32,
    steps=10,
    samples=80,
)
FILES = (
    ShardFile(shard_index=0, server_id="ps-0", file_name="0.safetensors", size=10, sha256="00"),
    ShardFile(shard_index=1, server_id="ps-1", file_name="1.safetensors", size=11, sha256="11"),
)
PLACEMENT = Placement(
    ranks={"worker-0": range(5), "worker-1": range(5, 8)},
    shards=(ShardAddress(server_id="ps-0", host="h", port=1, index=0),),
)


async def opened(url: str) -> Database:
    return await open_database(url, limits=LIMITS, connections=4, timeout_seconds=5, lease_seconds=10)


async def led(database: Database, *, by: str = "m1") -> JobStore:
    """The job store in the hands of a master that has just taken the lead."""
    seen = await database.look()
    epoch = await database.take(seen, incarnation=by, host="host", lease_seconds=10, unattended=True)
    return database.jobs(epoch)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
async def database(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    with contextlib.ExitStack() as stack:
        if kind == "memory":
            database = await opened("memory://")
        elif kind == "sqlite":
            database = await opened(f"sqlite:///{tmp_path / 'jobs.db'}")
        elif kind == "postgresql":
            database = await opened(stack.enter_context(request.getfixturevalue("postgres").database()))
        else:
            database = await open_sqlite(f"sqlite:///{tmp_path / 'jobs.db'}", limits=LIMITS, layout=SHARED)
        yield database
        await database.close()


@pytest.fixture
async def store(database: Database) -> JobStore:
    return await led(database)


async def begun(store: JobStore, job_id: str = "digits-1") -> Job:
    submission = await store.submit(job(job_id), spec_hash="h")
    return await store.apply(begin_of(submission.job))


def begin_of(job: Job) -> Transition:
    return transitions.begin(job, servers=("ps-0", "ps-1"), at=101.0, reason="WorkersFound", message="2 workers")


async def succeeded(store: JobStore, job_id: str, *, submitted_at: float) -> Job:
    submission = await store.submit(job(job_id, submitted_at=submitted_at), spec_hash="h")
    await store.apply(begin_of(submission.job))
    await store.apply(transitions.close_training(job_id, attempt=1, results=RESULTS, at=110.0, message=""))
    return await store.apply(
        transitions.succeed(
            job_id,
            attempt=1,
            results=RESULTS,
            files=FILES,
            at=120.0,
            summary=Summary(step=10, total_steps=10, samples=80, loss=0.25),
            losses=array("d", [1.0, 0.5]),
            message="done",
        )
    )


async def test_a_submitted_job_is_found_as_it_was(store):
    await store.submit(job(key="k"), spec_hash="h")
    assert await store.get("digits-1") == job(key="k")
    assert [event.reason for event in await store.events("digits-1")] == ["Submitted"]


async def test_an_unknown_job_is_not_found_by_any_method(store):
    with pytest.raises(NotFound):
        await store.get("x")
    with pytest.raises(NotFound):
        await store.apply(begin_of(job("x")))
    with pytest.raises(NotFound):
        await store.place("x", attempt=0, placement=PLACEMENT, event=None)
    with pytest.raises(NotFound):
        await store.events("x")
    with pytest.raises(NotFound):
        await store.save_evaluations("x", attempt=0, evaluations=())
    with pytest.raises(NotFound):
        await store.evaluations("x")
    with pytest.raises(NotFound):
        await store.append_logs("x", [LogLine(at=1, worker_id="w", text="t")])
    with pytest.raises(NotFound):
        await store.logs("x", after=0, limit=10)
    with pytest.raises(NotFound):
        await store.losses("x")
    assert await store.summaries(["x"]) == {}


async def test_the_same_key_and_spec_find_the_first_job(store):
    first = await store.submit(job("digits-1", key="k"), spec_hash="h")
    second = await store.submit(job("digits-2", key="k"), spec_hash="h")
    assert (first.created, second.created) == (True, False)
    assert second.job.job_id == "digits-1"
    assert len(await store.jobs()) == 1


async def test_the_same_key_finds_the_job_as_it_is_now(store):
    submission = await store.submit(job(key="k"), spec_hash="h")
    await store.apply(begin_of(submission.job))
    assert (await store.submit(job("digits-2", key="k"), spec_hash="h")).job.phase is Phase.STARTING


async def test_the_same_key_with_another_spec_is_refused(store):
    await store.submit(job("digits-1", key="k"), spec_hash="h")
    with pytest.raises(AlreadyExists, match="'k'.*digits-1"):
        await store.submit(job("digits-2", key="k"), spec_hash="other")


async def test_without_a_key_equal_specs_are_different_jobs(store):
    await store.submit(job("digits-1"), spec_hash="h")
    assert (await store.submit(job("digits-2"), spec_hash="h")).created


async def test_of_many_concurrent_submits_with_one_key_one_creates(store):
    submissions = await asyncio.gather(*(store.submit(job(f"digits-{n}", key="k"), spec_hash="h") for n in range(8)))
    assert sum(submission.created for submission in submissions) == 1
    assert len({submission.job.job_id for submission in submissions}) == 1


async def test_begin_raises_the_attempt_and_keeps_the_servers(store):
    started = await begun(store)
    assert (started.phase, started.attempt, started.servers) == (Phase.STARTING, 1, ("ps-0", "ps-1"))
    assert await store.get("digits-1") == started


async def test_of_many_concurrent_begins_one_wins(store):
    submission = await store.submit(job(), spec_hash="h")
    outcomes = await asyncio.gather(*(store.apply(begin_of(submission.job)) for _ in range(8)), return_exceptions=True)
    assert sum(isinstance(outcome, Stale) for outcome in outcomes) == 7
    assert (await store.get("digits-1")).attempt == 1


async def test_a_change_of_an_old_attempt_is_stale_and_changes_nothing(store):
    await begun(store)
    await store.apply(transitions.recover("digits-1", attempt=1, at=102.0, reason="TrainerFailed", message=""))
    second = await store.apply(begin_of(await store.get("digits-1")))
    events = await store.events("digits-1")
    assert second.attempt == 2
    with pytest.raises(Stale, match="attempt 1 is not the current one, 2"):
        await store.apply(transitions.first_step("digits-1", attempt=1, at=103.0, message=""))
    assert await store.get("digits-1") == second
    assert await store.events("digits-1") == events


async def test_a_change_from_the_wrong_phase_is_stale(store):
    await store.submit(job(), spec_hash="h")
    with pytest.raises(Stale, match="PENDING"):
        await store.apply(transitions.first_step("digits-1", attempt=0, at=103.0, message=""))


async def test_the_first_step_of_the_first_attempt_is_when_the_job_started(store):
    await begun(store)
    first = await store.apply(transitions.first_step("digits-1", attempt=1, at=105.0, message=""))
    assert (first.phase, first.started_at) == (Phase.RUNNING, 105.0)
    await store.apply(transitions.recover("digits-1", attempt=1, at=106.0, reason="TrainerFailed", message=""))
    await store.apply(begin_of(await store.get("digits-1")))
    second = await store.apply(transitions.first_step("digits-1", attempt=2, at=107.0, message=""))
    assert second.started_at == 105.0


async def test_of_many_concurrent_completions_one_closes_the_training(store):
    await begun(store)
    outcomes = await asyncio.gather(
        *(
            store.apply(
                transitions.close_training(
                    "digits-1", attempt=1, results=replace(RESULTS, steps=n + 1), at=110.0, message=""
                )
            )
            for n in range(8)
        ),
        return_exceptions=True,
    )
    winners = [outcome for outcome in outcomes if isinstance(outcome, Job)]
    assert len(winners) == 1
    assert (await store.get("digits-1")).results == winners[0].results


async def test_recovery_voids_results_that_no_success_followed(store):
    await begun(store)
    await store.apply(transitions.close_training("digits-1", attempt=1, results=RESULTS, at=110.0, message=""))
    recovering = await store.apply(
        transitions.recover("digits-1", attempt=1, at=111.0, reason="ParameterServerLost", message="")
    )
    assert recovering.results is None


async def test_success_stores_results_files_curve_and_time_at_once(store):
    done = await succeeded(store, "digits-1", submitted_at=100.0)
    assert await store.get("digits-1") == done
    assert (done.phase, done.results, done.files, done.finished_at) == (Phase.SUCCEEDED, RESULTS, FILES, 120.0)
    assert await store.losses("digits-1") == array("d", [1.0, 0.5])
    assert (await store.summaries(["digits-1"]))["digits-1"].loss == 0.25


@pytest.mark.parametrize("ended", ["succeed", "fail", "cancel"])
async def test_nothing_changes_a_job_that_has_ended(store, ended):
    await begun(store)
    facts = {"at": 120.0, "message": "", "summary": Summary(), "losses": array("d")}
    if ended == "succeed":
        await store.apply(transitions.close_training("digits-1", attempt=1, results=RESULTS, at=110.0, message=""))
        last = transitions.succeed("digits-1", attempt=1, results=RESULTS, files=FILES, **facts)
    elif ended == "fail":
        last = transitions.fail("digits-1", attempt=1, results=RESULTS, reason="TrainerFailed", **facts)
    else:
        last = transitions.cancel("digits-1", **facts)
    done = await store.apply(last)
    for change in (
        transitions.cancel("digits-1", **facts),
        transitions.recover("digits-1", attempt=1, at=130.0, reason="x", message=""),
        transitions.close_training("digits-1", attempt=1, results=RESULTS, at=130.0, message=""),
        begin_of(done),
        last,
    ):
        with pytest.raises(Stale):
            await store.apply(change)
    with pytest.raises(Stale):
        await store.place("digits-1", attempt=1, placement=PLACEMENT, event=None)
    assert await store.get("digits-1") == done


async def test_a_pending_job_can_be_cancelled(store):
    await store.submit(job(), spec_hash="h")
    cancelled = await store.apply(
        transitions.cancel("digits-1", at=120.0, message="", summary=Summary(), losses=array("d"))
    )
    assert (cancelled.phase, cancelled.finished_at) == (Phase.CANCELLED, 120.0)


async def test_jobs_are_listed_newest_first_by_phase_and_limit(store):
    for number in range(4):
        await store.submit(job(f"digits-{number}", submitted_at=100.0 + number), spec_hash="h")
    await store.apply(begin_of(await store.get("digits-2")))
    assert [found.job_id for found in await store.jobs()] == ["digits-3", "digits-2", "digits-1", "digits-0"]
    assert [found.job_id for found in await store.jobs(limit=2)] == ["digits-3", "digits-2"]
    assert [found.job_id for found in await store.jobs(phases={Phase.STARTING})] == ["digits-2"]
    pending = await store.jobs(phases=[Phase.PENDING], limit=1)
    assert [found.job_id for found in pending] == ["digits-3"]


async def test_the_placement_belongs_to_one_attempt(store):
    await begun(store)
    assert await store.placements() == {}
    event = Event(at=102.0, phase=Phase.STARTING, reason="WorkerJoined", message="worker-1 joined")
    await store.place("digits-1", attempt=1, placement=PLACEMENT, event=event)
    assert await store.placements() == {"digits-1": PLACEMENT}
    assert (await store.events("digits-1"))[-1] == event
    with pytest.raises(Stale):
        await store.place("digits-1", attempt=2, placement=PLACEMENT, event=None)
    await store.apply(transitions.recover("digits-1", attempt=1, at=103.0, reason="x", message=""))
    await store.apply(begin_of(await store.get("digits-1")))
    assert await store.placements() == {}


async def test_an_event_beside_the_phases_is_kept_in_its_place(store):
    await begun(store)
    oom = Event(at=102.0, phase=Phase.STARTING, reason="PodOOMKilled", message="w-0 ran out of memory")
    await store.add_event("digits-1", oom)
    assert (await store.events("digits-1"))[-1] == oom
    assert (await store.get("digits-1")).reason == "WorkersFound"
    with pytest.raises(NotFound):
        await store.add_event("x", oom)


async def test_only_the_newest_events_are_kept(store):
    await begun(store)
    for number in range(20):
        event = Event(at=float(number), phase=Phase.STARTING, reason="WorkerJoined", message=str(number))
        await store.place("digits-1", attempt=1, placement=PLACEMENT, event=event)
    assert [event.message for event in await store.events("digits-1")] == [str(n) for n in range(8, 20)]


async def test_evaluations_are_exactly_the_last_saved(store):
    await begun(store)
    first, second, other = (
        Evaluation(version=5, accuracy=0.5, loss=1.0),
        Evaluation(version=10, accuracy=0.6, loss=0.9),
        Evaluation(version=5, accuracy=0.4, loss=1.1),
    )
    for wanted in ((first,), (first, second), (other, second), (other,), ()):
        await store.save_evaluations("digits-1", attempt=1, evaluations=wanted)
        assert await store.evaluations("digits-1") == wanted
    with pytest.raises(Stale):
        await store.save_evaluations("digits-1", attempt=2, evaluations=(first,))


async def test_log_lines_are_numbered_and_only_the_newest_kept(store):
    await store.submit(job(), spec_hash="h")
    await store.append_logs("digits-1", [LogLine(at=1.0, worker_id="w", text=f"line {n}") for n in range(1, 8)])
    await store.append_logs("digits-1", [])
    await store.append_logs("digits-1", [LogLine(at=2.0, worker_id="w", text=f"line {n}") for n in range(8, 16)])
    lines = await store.logs("digits-1", after=0, limit=100)
    assert [line.sequence for line in lines] == list(range(6, 16))
    assert all(line.text == f"line {line.sequence}" for line in lines)
    assert [line.sequence for line in await store.logs("digits-1", after=8, limit=3)] == [9, 10, 11]
    assert await store.logs("digits-1", after=15, limit=3) == ()


async def test_pruning_keeps_live_jobs_and_the_newest_ended_ones(store):
    for number in range(4):
        await succeeded(store, f"digits-{number}", submitted_at=100.0 + number)
    await store.submit(job("live", submitted_at=1.0, key="k"), spec_hash="h")
    assert {found.job_id for found in await store.prune(ended_kept=2)} == {"digits-0", "digits-1"}
    assert [found.job_id for found in await store.jobs()] == ["digits-3", "digits-2", "live"]
    with pytest.raises(NotFound):
        await store.losses("digits-0")
    assert await store.prune(ended_kept=2) == ()


def manifest(job_id: str = "digits-1", *, step: int, attempt: int = 1) -> Manifest:
    return Manifest(job_id=job_id, attempt=attempt, step=step, files=FILES, at=100.0 + step)


async def steps_of(store: JobStore, job_id: str = "digits-1") -> list[tuple[int, int, str]]:
    return [(entry.step, entry.attempt, entry.damaged) for entry in await store.manifests(job_id)]


def damage_of(step: int) -> Event:
    message = f"file of step {step}"
    return Event(at=104.0, phase=Phase.STARTING, reason="SnapshotDamaged", message=message, attempt=1)


async def next_attempt(store: JobStore, found: Job) -> Job:
    """The attempt ends by a lost machine, and the next one begins."""
    lost = transitions.recover(found.job_id, attempt=found.attempt, at=105.0, reason="ParameterServerLost", message="")
    return await store.apply(begin_of(await store.apply(lost)))


async def test_manifests_are_kept_newest_first_and_only_so_many(store):
    await begun(store)
    assert await store.manifests("digits-1") == ()
    for step in (10, 20, 30):
        await store.add_manifest(manifest(step=step), kept=2)
    assert await store.manifests("digits-1") == (manifest(step=30), manifest(step=20))
    await store.add_manifest(replace(manifest(step=30), at=999.0), kept=2)  # again: the same one
    assert [entry.at for entry in await store.manifests("digits-1")] == [999.0, 120.0]
    with pytest.raises(NotFound):
        await store.manifests("nobody")
    with pytest.raises(NotFound):
        await store.add_manifest(manifest("nobody", step=1), kept=2)


async def test_a_manifest_of_another_attempt_or_of_an_ended_job_is_stale(store):
    found = await begun(store)
    with pytest.raises(Stale):
        await store.add_manifest(manifest(step=10, attempt=2), kept=2)
    await store.add_manifest(manifest(step=10), kept=2)
    await next_attempt(store, found)
    with pytest.raises(Stale):
        await store.add_manifest(manifest(step=20, attempt=1), kept=2)
    await store.add_manifest(manifest(step=20, attempt=2), kept=2)
    await store.apply(transitions.cancel("digits-1", at=106.0, message="", summary=Summary(), losses=array("d")))
    with pytest.raises(Stale):
        await store.add_manifest(manifest(step=30, attempt=2), kept=2)
    assert await steps_of(store) == [(20, 2, "")], "a cancelled job keeps its newest"


async def test_a_damaged_manifest_stays_until_the_next_whole_one_and_does_not_count(store):
    found = await begun(store)
    for step in (10, 20, 30):
        await store.add_manifest(manifest(step=step), kept=3)
    await store.condemn_manifest(manifest(step=30), attempt=1, event=damage_of(30))
    assert await steps_of(store) == [(30, 1, "file of step 30"), (20, 1, ""), (10, 1, "")]
    assert (await store.events("digits-1"))[-1] == damage_of(30)
    with pytest.raises(Stale):
        await store.condemn_manifest(manifest(step=20), attempt=2, event=damage_of(20))
    await next_attempt(store, found)
    await store.add_manifest(manifest(step=30, attempt=2), kept=2)
    assert await steps_of(store) == [(30, 2, ""), (20, 1, "")]


async def test_success_forgets_manifests_and_failure_keeps_the_newest_whole_one(store):
    await begun(store)
    for step in (10, 20):
        await store.add_manifest(manifest(step=step), kept=2)
    await store.condemn_manifest(manifest(step=20), attempt=1, event=damage_of(20))
    failed = transitions.fail(
        "digits-1",
        attempt=1,
        results=replace(RESULTS, success=False),
        at=107.0,
        reason="TrainerFailed",
        message="",
        summary=Summary(),
        losses=array("d"),
    )
    assert (await store.apply(failed)).failures == 1
    assert await steps_of(store) == [(10, 1, "")]
    await begun(store, "other")
    await store.add_manifest(manifest("other", step=10), kept=2)
    await store.apply(transitions.close_training("other", attempt=1, results=RESULTS, at=110.0, message=""))
    succeed = transitions.succeed(
        "other", attempt=1, results=RESULTS, files=FILES, at=1.0, summary=Summary(), losses=array("d"), message=""
    )
    await store.apply(succeed)
    assert await store.manifests("other") == ()


async def test_only_a_jobs_own_failures_are_counted(store):
    found = await begun(store)
    found = await next_attempt(store, found)
    assert (found.attempt, found.failures) == (2, 0)
    own = transitions.recover("digits-1", attempt=2, at=105.0, reason="TrainerFailed", message="", failed=True)
    assert (await store.apply(own)).failures == 1
    assert (await store.get("digits-1")).failures == 1


async def test_a_cancelled_job_goes_on_from_an_earlier_manifest_as_if_it_had_not_ended(store):
    found = await begun(store)
    await store.add_manifest(manifest(step=10), kept=3)
    await store.add_manifest(manifest(step=20), kept=3)
    own = transitions.recover("digits-1", attempt=1, at=105.0, reason="TrainerFailed", message="", failed=True)
    found = await store.apply(own)
    cancel = transitions.cancel("digits-1", at=106.0, message="", summary=Summary(), losses=array("d"))
    found = await store.apply(replace(cancel, manifests_kept=None))
    assert (found.finished_at, found.failures) == (106.0, 1)
    reopen = transitions.reopen(found, from_step=15, at=107.0, message="resumed")
    with pytest.raises(Stale):
        await store.apply(replace(reopen, attempt=7))
    found = await store.apply(reopen)
    assert (found.phase, found.attempt, found.finished_at, found.failures) == (Phase.PENDING, 1, None, 0)
    assert (found.results, found.servers, found.paused) == (None, ("ps-0", "ps-1"), False)
    assert await steps_of(store) == [(10, 1, "")]
    with pytest.raises(Stale):
        await store.apply(reopen)
    assert (await store.apply(begin_of(found))).attempt == 2


async def test_manifests_of_jobs_that_ended_long_ago_are_forgotten(store):
    for job_id in ("live", "old", "new"):
        await begun(store, job_id)
        await store.add_manifest(manifest(job_id, step=10), kept=2)
    for job_id, at in (("old", 200.0), ("new", 300.0)):
        await store.apply(transitions.cancel(job_id, at=at, message="", summary=Summary(), losses=array("d")))
    assert [found.job_id for found in await store.forget_manifests(ended_before=250.0)] == ["old"]
    assert await store.forget_manifests(ended_before=250.0) == ()
    assert [len(await store.manifests(job_id)) for job_id in ("live", "old", "new")] == [1, 0, 1]


async def test_text_with_nul_and_a_loss_that_is_no_number_are_kept(store):
    """PostgreSQL has no NUL in texts, and SQLite makes NULL of NaN: neither may cost a job its log."""
    await begun(store)
    await store.append_logs("digits-1", [LogLine(at=1.0, worker_id="w", text="a\0b\N{FISH}")])
    assert (await store.logs("digits-1", after=0, limit=9))[0].text in ("a\0b\N{FISH}", "a\N{SYMBOL FOR NULL}b\N{FISH}")
    wanted = (
        Evaluation(version=5, accuracy=0.5, loss=math.nan),
        Evaluation(version=6, accuracy=0.5, loss=math.inf),
    )
    await store.save_evaluations("digits-1", attempt=1, evaluations=wanted)
    first, second = await store.evaluations("digits-1")
    assert math.isnan(first.loss)
    assert second.loss == math.inf


async def test_concurrent_writes_to_one_job_are_numbered_without_gap(store):
    await begun(store)
    await asyncio.gather(
        *(store.append_logs("digits-1", [LogLine(at=1.0, worker_id="w", text=str(n))]) for n in range(8)),
        *(
            store.add_event("digits-1", Event(at=float(n), phase=Phase.STARTING, reason="x", message=""))
            for n in range(8)
        ),
    )
    assert [line.sequence for line in await store.logs("digits-1", after=0, limit=99)] == list(range(1, 9))
    assert len(await store.events("digits-1")) == 10


# Which master may write.


async def test_each_master_that_takes_the_lead_begins_a_new_epoch(database):
    assert (await database.look()).incarnation == ""
    before = (await database.look()).epoch
    await led(database, by="m1")
    await led(database, by="m2")
    leader = await database.look()
    assert (leader.epoch, leader.incarnation, leader.host) == (before + 2, "m2", "host")


async def test_of_two_masters_that_see_the_same_one_takes_the_lead(database):
    seen = await database.look()
    outcomes = await asyncio.gather(
        *(database.take(seen, incarnation=f"m{n}", host="h", lease_seconds=10) for n in range(4)),
        return_exceptions=True,
    )
    assert sum(outcome == seen.epoch + 1 for outcome in outcomes) == 1
    assert sum(isinstance(outcome, Stale) for outcome in outcomes) == 3


async def test_no_write_of_an_earlier_epoch_changes_anything(database):
    old = await led(database, by="m1")
    await begun(old, "running")
    await succeeded(old, "ended", submitted_at=90.0)
    new = await led(database, by="m2")
    running = await new.get("running")
    events = await new.events("running")
    event = Event(at=102.0, phase=Phase.STARTING, reason="x", message="")
    for write in (
        lambda: old.submit(job("new"), spec_hash="h"),
        lambda: old.apply(transitions.first_step("running", attempt=1, at=103.0, message="")),
        lambda: old.place("running", attempt=1, placement=PLACEMENT, event=event),
        lambda: old.add_event("running", event),
        lambda: old.save_evaluations("running", attempt=1, evaluations=[Evaluation(version=1, accuracy=0.5, loss=1.0)]),
        lambda: old.append_logs("running", [LogLine(at=1.0, worker_id="w", text="t")]),
        lambda: old.add_manifest(manifest("running", step=1), kept=2),
        lambda: old.condemn_manifest(manifest("running", step=1), attempt=1, event=event),
        lambda: old.forget_manifests(ended_before=1e9),
        lambda: old.prune(ended_kept=0),
    ):
        with pytest.raises(Deposed, match=r"epoch \d+ and may not write any more: master m2 on host leads, in epoch"):
            await write()
    assert await new.get("running") == running
    assert await new.events("running") == events
    assert await new.evaluations("running") == ()
    assert await new.logs("running", after=0, limit=9) == ()
    assert await new.manifests("running") == ()
    assert await new.placements() == {}
    assert [found.job_id for found in await new.jobs()] == ["running", "ended"]


async def test_only_the_leader_renews_and_resigns(database):
    await led(database, by="m1")
    first = (await database.look()).epoch
    await database.renew(first, lease_seconds=10)
    await led(database, by="m2")
    with pytest.raises(Deposed):
        await database.renew(first, lease_seconds=10)
    await database.resign(first)
    assert (await database.look()).incarnation == "m2"
    await database.resign(first + 1)
    assert (await database.look()).incarnation == ""


# What only a store that lasts can show.


@pytest.fixture(params=LASTING)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of a new database."""
    if request.param == "postgresql":
        with request.getfixturevalue("postgres").database() as url:
            yield url
    else:
        yield f"sqlite:///{tmp_path / 'folder' / 'jobs.db'}"


@pytest.fixture(params=LASTING)
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of a database without tables."""
    if request.param == "postgresql":
        with request.getfixturevalue("postgres").database(empty=True) as url:
            yield url
    else:
        yield f"sqlite:///{tmp_path / 'jobs.db'}"


@contextlib.asynccontextmanager
async def reopened(url: str) -> AsyncIterator[JobStore]:
    database = await opened(url)
    try:
        yield await led(database)
    finally:
        await database.close()


@contextlib.asynccontextmanager
async def raw(url: str) -> AsyncIterator[sa.ext.asyncio.AsyncConnection]:
    """A connection, with its transaction, behind the store's back."""
    driver = url.replace("sqlite://", "sqlite+aiosqlite://").replace("postgresql://", "postgresql+asyncpg://")
    engine = sa.ext.asyncio.create_async_engine(driver)
    try:
        async with engine.begin() as connection:
            yield connection
    finally:
        await engine.dispose()


async def test_a_reopened_store_has_everything(url):
    async with reopened(url) as store:
        done = await succeeded(store, "done", submitted_at=100.0)
        running = await begun(store, "running")
        await store.place("running", attempt=1, placement=PLACEMENT, event=None)
        await store.append_logs("running", [LogLine(at=1.0, worker_id="w", text="hello")])
        await store.submit(job("keyed", key="k"), spec_hash="h")
        events = await store.events("done")
    async with reopened(url) as store:
        assert await store.get("done") == done
        assert await store.get("running") == running
        assert await store.placements() == {"running": PLACEMENT}
        assert await store.events("done") == events
        assert await store.losses("done") == array("d", [1.0, 0.5])
        assert [line.text for line in await store.logs("running", after=0, limit=9)] == ["hello"]
        assert not (await store.submit(job("again", key="k"), spec_hash="h")).created
        with pytest.raises(AlreadyExists):
            await store.submit(job("again", key="k"), spec_hash="other")


async def test_the_epoch_rises_with_each_start(url):
    epochs = []
    for _ in range(3):
        async with contextlib.AsyncExitStack() as stack:
            database = await opened(url)
            stack.push_async_callback(database.close)
            await led(database)
            epochs.append((await database.look()).epoch)
    assert epochs == [1, 2, 3]


async def test_a_cancelled_caller_does_not_tear_a_write(url):
    async with reopened(url) as store:
        writes = [asyncio.ensure_future(store.submit(job(f"j-{n}"), spec_hash="h")) for n in range(5)]
        await asyncio.sleep(0)
        for write in writes:
            write.cancel()
        await asyncio.gather(*writes, return_exceptions=True)
    async with reopened(url) as store:
        for found in await store.jobs():
            assert len(await store.events(found.job_id)) == 1


async def test_a_store_that_is_broken_is_unavailable_and_not_an_answer(url):
    async with reopened(url):
        pass
    async with raw(url) as connection:  # the nearest to a broken disk that a test can have
        await connection.execute(sa.text("DROP TABLE events"))
    async with reopened(url) as store:
        with pytest.raises(Unavailable, match="events") as caught:
            await store.submit(job("digits-2"), spec_hash="h")
        assert "\n" not in str(caught.value)
        assert await store.jobs() == ()


# The schema.


async def test_a_newer_schema_is_refused_in_one_line(url):
    async with reopened(url):
        pass
    async with raw(url) as connection:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(Refused, match="schema 9999 is newer") as caught:
        await opened(url)
    assert "\n" not in str(caught.value)


async def test_migrations_lead_to_the_schema_of_the_code(empty):
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    async with reopened(empty):
        pass
    async with raw(empty) as connection:
        assert not await connection.run_sync(
            lambda inner: compare_metadata(MigrationContext.configure(inner), metadata)
        )


async def test_an_older_database_keeps_its_jobs_through_every_migration(empty):
    """Written with the statements of the revision that had no more than these columns."""
    old = job("old", key="k")
    async with raw(empty) as connection:
        await connection.run_sync(lambda inner: upgrade(inner, name="old", revision="0001"))
        row = rows.job_to_row(replace(old, phase=Phase.STARTING, attempt=2), spec_hash="h")
        del row["paused"], row["failures"]  # of later revisions
        assert set(row) <= {
            "job_id", "name", "spec_json", "spec_hash", "requirements", "phase", "reason", "message", "attempt",
            "submitted_at", "started_at", "finished_at", "idempotency_key", "servers", "placement", "results",
            "files", "summary",
        }  # fmt: skip
        columns = ", ".join(row)
        await connection.execute(
            sa.text(f"INSERT INTO jobs ({columns}) VALUES ({', '.join(f':{column}' for column in row)})"), row
        )
        await connection.execute(
            sa.text("INSERT INTO events VALUES ('old', 1, 100.0, 'PENDING', 'Submitted', 'long ago')")
        )
        await connection.execute(sa.text("INSERT INTO logs VALUES ('old', 1, 100.0, 'w', 'hello')"))
        await connection.execute(sa.text("INSERT INTO evaluations VALUES ('old', 0, 5, 0.5, 1.25)"))
        await connection.execute(
            sa.text("INSERT INTO curves VALUES ('old', :losses)"), {"losses": array("d", [0.5]).tobytes()}
        )
    async with reopened(empty) as store:
        assert await store.get("old") == replace(old, phase=Phase.STARTING, attempt=2)
        assert [event.message for event in await store.events("old")] == ["long ago"]
        assert [line.text for line in await store.logs("old", after=0, limit=9)] == ["hello"]
        assert await store.evaluations("old") == (Evaluation(version=5, accuracy=0.5, loss=1.25),)
        assert await store.losses("old") == array("d", [0.5])
        assert not (await store.submit(job("again", key="k"), spec_hash="h")).created
