"""Planted bugs: each a wrong version of a small part of the real code, as a careless change might leave it.

The simulation must find every one of them. Each makes its changes when it is planted and knows nothing of seeds.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import shoal.consistency.sync
import shoal.core.tree
import shoal.master.jobs
import shoal.master.lifecycle.beginning
import shoal.master.lifecycle.completion
import shoal.master.lifecycle.endings
import shoal.master.lifecycle.following
import shoal.master.lifecycle.live
import shoal.master.lifecycle.transitions
import shoal.master.membership.members
import shoal.master.membership.polls
import shoal.master.servicers.jobs
import shoal.master.store.memory
import shoal.ps.reduction
import shoal.ps.share
import shoal.ps.shares
import shoal.wire.epochs
import shoal.worker.agent
import shoal.worker.trainer.loop
import shoal.worker.trainer.parameters
from shoal.consistency.verdict import TAKE
from shoal.core.errors import NotFound, ShoalError, TrainingFailed, Unavailable
from shoal.core.job import Phase
from shoal.master.membership.members import Finding, MemberState
from shoal.master.store.base import Submission

Changes = list[tuple[Any, str, Any]]

_SHARE = shoal.ps.share.Share
_SHARES = shoal.ps.shares.Shares
_MEMBERS = shoal.master.membership.members.Members
_COMPLETIONS = shoal.master.lifecycle.completion.Completions
_BEGINNINGS = shoal.master.lifecycle.beginning.Beginnings
_LIVE = shoal.master.lifecycle.live.LiveJobs
_MEMORY = shoal.master.store.memory.MemoryJobStore
_DATABASE = shoal.master.store.memory.MemoryDatabase
_AGENT = shoal.worker.agent.Agent
_TRANSITIONS = shoal.master.lifecycle.transitions


@dataclass(frozen=True, kw_only=True, slots=True)
class Bug:
    name: str
    plant: Callable[[], Changes]

    @contextlib.contextmanager
    def planted(self) -> Iterator[None]:
        changes = self.plant()
        before = [(owner, name, vars(owner)[name]) for owner, name, _ in changes]
        for owner, name, wrong in changes:
            setattr(owner, name, wrong)
        try:
            yield
        finally:
            for owner, name, original in before:
                setattr(owner, name, original)


BUGS: list[Bug] = []


def bug(plant: Callable[[], Changes]) -> Callable[[], Changes]:
    BUGS.append(Bug(name=plant.__name__, plant=plant))
    return plant


# The shard's bookkeeping.


@bug
def attempt_check_dropped() -> Changes:
    def check_attempt(self: Any, attempt: int) -> None:
        if self._dropped:
            raise NotFound(self._dropped)
        if self._failure:
            raise TrainingFailed(self._failure)

    return [(_SHARE, "check_attempt", check_attempt)]


@bug
def dead_incarnation_not_cut_off() -> Changes:
    original = _SHARE.fence_off

    def fence_off(self: Any, **named: Any) -> int:
        sessions, self._sessions = self._sessions, set()
        original(self, **named)
        self._sessions = sessions
        return 0

    return [(_SHARE, "check_incarnation", lambda self, incarnation: None), (_SHARE, "fence_off", fence_off)]


@bug
def squares_forgotten_once_the_step_is_applied() -> Changes:
    original = _SHARE._apply

    def apply(self: Any, total: Any) -> None:
        self._squares = None
        original(self, total)

    return [(_SHARE, "_apply", apply)]


@bug
def older_attempt_takes_over() -> Changes:
    original = _SHARE.fence

    def fence(self: Any, attempt: int) -> None:
        if attempt < self.attempt:
            self.attempt = attempt
        original(self, attempt)

    return [(_SHARE, "fence", fence)]


@bug
def new_attempt_does_not_fence() -> Changes:
    return [(_SHARE, "fence", lambda self, attempt: None)]


@bug
def late_push_counted_in_the_next_step() -> Changes:
    original = shoal.consistency.sync.judge_push

    def judge_push(*, step: int, block: Any, version: int, cover: Any) -> Any:
        return original(step=max(step, version), block=block, version=version, cover=cover)

    return [(shoal.consistency.sync, "judge_push", judge_push)]


@bug
def duplicate_push_counted_twice() -> Changes:
    original = shoal.ps.reduction.Reduction.insert

    def judge_push(*, step: int, block: Any, version: int, cover: Any) -> Any:
        judged = shoal_judge(step=step, block=block, version=version, cover=cover)
        return TAKE if step == version and cover.covers(block) else judged

    def insert(self: Any, block: Any, value: Any) -> Any:
        if block in self._sums:
            self._sums[block] = self._add(self._sums[block], value)
            return None
        return None if self.cover.covers(block) else original(self, block, value)

    shoal_judge = shoal.consistency.sync.judge_push
    return [(shoal.consistency.sync, "judge_push", judge_push), (shoal.ps.reduction.Reduction, "insert", insert)]


@bug
def step_applied_before_it_is_complete() -> Changes:
    def insert(self: Any, block: Any, value: Any) -> Any:
        self.cover.insert(block)
        self._sums[block] = value
        return value if len(self._sums) * block.size * 2 >= self.cover.world_size else None

    return [(shoal.ps.reduction.Reduction, "insert", insert)]


@bug
def replaced_blocks_stay_in_the_sum() -> Changes:
    original = shoal.ps.reduction.Reduction.insert

    def insert(self: Any, block: Any, value: Any) -> Any:
        for have in sorted(self.cover.present):
            if block.contains(have) and have in self._sums:
                value = self._add(value, self._sums[have])
        return original(self, block, value)

    return [(shoal.ps.reduction.Reduction, "insert", insert)]


@bug
def epoch_check_dropped_by_servers() -> Changes:
    return [
        (shoal.wire.epochs.MasterEpochs, "check", lambda self, epoch: None),
        (shoal.wire.epochs.MasterEpochs, "admits", lambda self, epoch: True),
    ]


@bug
def one_shard_restored_alone() -> Changes:
    return [(shoal.master.lifecycle.beginning._Making, "is_torn", lambda self, created: False)]


# The store.


@bug
def deposed_master_may_write() -> Changes:
    return [(_DATABASE, "check", lambda self, epoch: None)]


@bug
def lead_taken_without_a_new_epoch() -> Changes:
    async def take(self: Any, seen: Any, *, incarnation: str, host: str, **_: Any) -> int:
        self._leader = replace(self._leader, epoch=max(1, seen.epoch), incarnation=incarnation, host=host)
        return int(self._leader.epoch)

    return [(_DATABASE, "take", take)]


def _apply_without(**forgotten: Any) -> Any:
    original = _MEMORY.apply

    async def apply(self: Any, transition: Any) -> Any:
        return await original(self, replace(transition, **forgotten))

    return apply


@bug
def attempt_fence_dropped_by_the_store() -> Changes:
    return [(_MEMORY, "apply", _apply_without(attempt=None))]


@bug
def phase_fence_dropped_by_the_store() -> Changes:
    return [(_MEMORY, "apply", _apply_without(expected=frozenset(Phase)))]


@bug
def results_overwritten_by_a_second_report() -> Changes:
    return [(_MEMORY, "apply", _apply_without(only_open=False))]


@bug
def idempotency_key_ignored() -> Changes:
    original = _MEMORY.submit

    async def submit(self: Any, job: Any, *, spec_hash: str) -> Any:
        self._by_key.clear()
        return await original(self, job, spec_hash=spec_hash)

    return [(_MEMORY, "submit", submit)]


@bug
def placement_of_another_attempt_stored() -> Changes:
    async def place(self: Any, job_id: str, *, attempt: int, placement: Any, event: Any) -> None:
        self._row(job_id).placement = placement

    return [(_MEMORY, "place", place)]


# The master.


@bug
def acknowledged_before_commit() -> Changes:
    def submit(self: Any, spec_text: str, *, idempotency_key: str) -> Any:
        async def early() -> Submission:
            store, keep = self._store, []

            class Eager:
                async def submit(inner, job: Any, *, spec_hash: str) -> Submission:
                    keep.append(asyncio.ensure_future(store.submit(job, spec_hash=spec_hash)))
                    keep[0].add_done_callback(lambda task: task.cancelled() or task.exception())
                    return Submission(job=job, created=True)

            self._store = Eager()
            try:
                return await original(self, spec_text, idempotency_key=idempotency_key)
            finally:
                self._store = store

        return early()

    original = shoal.master.jobs.Jobs.submit
    return [(shoal.master.jobs.Jobs, "submit", submit)]


@bug
def memory_changed_before_the_store() -> Changes:
    original = _LIVE.apply

    async def apply(self: Any, transition: Any) -> Any:
        job = self._jobs.get(transition.job_id)
        if job is not None:
            attempt = job.attempt + 1 if transition.new_attempt else job.attempt
            self._jobs[job.job_id] = replace(job, phase=transition.to, attempt=attempt)
        return await original(self, transition)

    return [(_LIVE, "apply", apply)]


@bug
def attempt_not_raised() -> Changes:
    original = _TRANSITIONS.begin

    def begin(job: Any, **named: Any) -> Any:
        return replace(original(job, **named), new_attempt=False)

    return [(_TRANSITIONS, "begin", begin)]


@bug
def results_of_a_lost_attempt_kept() -> Changes:
    original = _TRANSITIONS.recover

    def recover(job_id: str, **named: Any) -> Any:
        return replace(original(job_id, **named), clear_results=False)

    return [(_TRANSITIONS, "recover", recover)]


@bug
def completion_of_an_old_attempt_counts() -> Changes:
    original = _COMPLETIONS.complete

    async def complete(self: Any, report: Any) -> Any:
        job = self._live.job(report.job_id)
        return await original(self, replace(report, attempt=job.attempt) if job is not None else report)

    return [(_COMPLETIONS, "complete", _watched(complete))]


def _watched(wrong: Any) -> Any:
    """A wrong `complete` under the oracle's eyes, which see the report as it came."""
    from tests.simulation import oracles

    return oracles.watch_complete(wrong)


@bug
def completion_of_the_dead_counts() -> Changes:
    return [(_COMPLETIONS, "_refusal_of", lambda self, report: None)]


@bug
def lost_incarnation_registers_again() -> Changes:
    original = _MEMBERS.register

    def register(self: Any, application: Any) -> Any:
        for member_id, member in list(self._members.items()):
            if member.incarnation == application.incarnation and not member.present:
                self._members[member_id] = replace(member, state=MemberState.SUSPECT)
        return original(self, application)

    return [(_MEMBERS, "register", register)]


@bug
def reaped_without_a_second_look() -> Changes:
    def found(self: Any, member_id: str, incarnation: str, finding: Finding) -> None:
        member = self.get(member_id)
        if member is not None and member.present and finding is not Finding.ALIVE:
            now = self._clock.monotonic()
            self._members[member_id] = replace(member, finding=Finding.GONE, asked_at=now, ends_at=now)

    return [(_MEMBERS, "found", found)]


@bug
def lease_renewed_by_anybody() -> Changes:
    def recognized(self: Any, member_id: str, incarnation: str) -> Any:
        member = self._members.get(member_id)
        return member if member is not None and member.known else None

    return [(_MEMBERS, "recognized", recognized)]


@bug
def leaving_is_not_sticky() -> Changes:
    original = _MEMBERS.heard

    def heard(self: Any, *arguments: Any, **named: Any) -> Any:
        member = original(self, *arguments, **named)
        if member is not None:
            member = replace(member, state=MemberState.ALIVE, left=False)
            self._members[member.member_id] = member
        return member

    return [(_MEMBERS, "heard", heard)]


@bug
def handed_out_before_it_is_stored() -> Changes:
    async def place(self: Any, job_id: str, *, attempt: int, placement: Any, event: Any) -> None:
        task = asyncio.ensure_future(original(self, job_id, attempt=attempt, placement=placement, event=event))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    from shoal.master.store.timed import TimedJobStore

    original = TimedJobStore.place
    return [(TimedJobStore, "place", place)]


@bug
def losses_not_seen() -> Changes:
    return [(_LIVE, "lost_shares", lambda self, run: ())]


@bug
def restarted_master_forgets_what_had_begun() -> Changes:
    original = _BEGINNINGS._adopt

    def adopt(self: Any, job: Any, placement: Any) -> None:
        if placement is not None:
            original(self, job, placement)
        else:
            self._live.new_run(job)

    return [(_BEGINNINGS, "_adopt", adopt)]


@bug
def succeeds_without_its_files() -> Changes:
    original = _COMPLETIONS._succeed

    async def succeed(self: Any, run: Any, files: Any) -> None:
        await original(self, run, files[1:])

    return [(_COMPLETIONS, "_succeed", succeed)]


@bug
def first_of_two_servers_speaks_for_both() -> Changes:
    async def each(shards: Any, call: Any) -> list[Any]:
        outcomes = await asyncio.gather(*(call(shard) for shard in shards), return_exceptions=True)
        answers = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        if not answers:
            raise Unavailable("none answers")
        return [answer if not isinstance(answer, BaseException) else answers[0] for answer in outcomes]

    return [(shoal.master.lifecycle.beginning, "each", each), (shoal.master.lifecycle.completion, "each", each)]


@bug
def failure_of_the_store_breaks_the_coordinator() -> Changes:
    from shoal.master.coordination.coordinator import Coordinator

    original = Coordinator._apply

    async def apply(self: Any, decision: Any) -> None:
        try:
            await original(self, decision)
        except ShoalError as error:
            raise RuntimeError(str(error)) from error

    return [(Coordinator, "_apply", apply)]


# Workers and trainers.


@bug
def end_reported_once_only() -> Changes:
    return [(_AGENT, "_is_last_word", lambda self, grant: False)]


@bug
def fenced_worker_keeps_its_incarnation() -> Changes:
    async def begin_anew(self: Any, dead: str, reason: str) -> None:
        self.registered.clear()

    return [(_AGENT, "_begin_anew", begin_anew)]


@bug
def trainer_takes_the_newest_shard_for_all() -> Changes:
    def latest(self: Any) -> Any:
        return max(self._shards, key=lambda shard: shard.version)

    return [(shoal.worker.trainer.parameters.Parameters, "_latest", property(latest))]


@bug
def helpers_do_nothing_and_neither_do_owners() -> Changes:
    from shoal.worker.trainer.loop import TrainingLoop

    original = TrainingLoop._due

    def due(self: Any, task: Any, ranks: Any) -> Any:
        blocks = list(original(self, task, ranks))
        return iter(blocks[:-1] if len(blocks) > 1 else blocks if task.version % 3 else [])

    return [(TrainingLoop, "_due", due)]
