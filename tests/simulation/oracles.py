"""What must hold in every history. The oracles keep books of their own and believe no program."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

import shoal.master.coordination.coordinator
import shoal.master.lifecycle.completion
import shoal.master.lifecycle.live
import shoal.master.membership.members
import shoal.ps.servicer
import shoal.ps.share
from shoal.core.job import Job, Phase
from shoal.wire.exchange.frames import Kind
from tests.simulation.loop import PROCESS, Process
from tests.simulation.trainers import active_shards, expected_page, pages_of

NO_JOB_LOST = "no acknowledged job is lost"
ONE_JOB_PER_KEY = "one job per idempotency key"
COMPLETED_ONCE = "no job completes twice"
LAWFUL = "phases move along lawful edges, each with its fence"
ONE_LEADER = "nothing of a deposed master is stored"
NOTHING_STALE = "no stale write is accepted"
ONE_ATTEMPT = "one live attempt at a time"
COUNTED_ONCE = "every unit is counted exactly once"
ONE_LINEAGE = "all shards of a job agree on its lineage"
ENDS = "each job ends once the faults have stopped"
SAME_RESULT = "the result is the undisturbed run's"
TIDY = "nothing runs for a job that has ended"
LEAVING = "who leaves gets nothing"
LEASES = "nobody is lost within its lease, unless its connection broke"
WHOLE = "a manifest names a file of each shard that holds a part of the model"
STORED_FIRST = "what is handed out is stored first"

_EDGES = {
    Phase.PENDING: {Phase.STARTING, Phase.CANCELLED, Phase.FAILED},
    Phase.STARTING: {Phase.RUNNING, Phase.RECOVERING, Phase.CANCELLED, Phase.FAILED},
    Phase.RUNNING: {Phase.RUNNING, Phase.RECOVERING, Phase.SUCCEEDED, Phase.CANCELLED, Phase.FAILED},
    Phase.RECOVERING: {Phase.STARTING, Phase.CANCELLED, Phase.FAILED},
}


class Violation(Exception):
    """An oracle's word on what should not have happened."""


class Oracle:
    """Hears of everything that is stored, acknowledged, accepted or committed; the first violation counts."""

    def __init__(self) -> None:
        self.world: Any = None
        self.violation: tuple[str, str] | None = None
        self.jobs: dict[str, Job] = {}  # as stored
        self.placed: dict[str, tuple[int, Any]] = {}  # the stored placement and its attempt
        self.epoch = 0
        self.keys: dict[str, str] = {}
        self.ends: Counter[str] = Counter()
        self.lost: dict[str, set[str]] = {}  # by master process: incarnations that it counts as dead
        self.leaving: dict[str, set[str]] = {}  # likewise: incarnations that have said that they leave
        self.fenced: dict[tuple[str, str], set[str]] = {}  # by parameter server's incarnation and job
        self.told: dict[tuple[str, str], int] = {}  # the highest attempt, likewise
        self.epochs: dict[str, int] = {}  # the highest epoch that a parameter server has heard
        self.accepted = 0

    def violated(self, oracle: str, what: str) -> None:
        if self.violation is None:
            self.violation = (oracle, what)
            self.world.note(f"VIOLATED {oracle}: {what}")

    # The store.

    def stored(self, process: Process, epoch: int, name: str, arguments: tuple[Any, ...], result: Any) -> None:
        if name == "take":
            if result <= self.epoch:
                self.violated(ONE_LEADER, f"{process.name} leads in epoch {result}, which was another's")
            self.epoch = result
            self.world.note(f"stored epoch {result}")
            return
        if epoch != self.epoch:
            self.violated(ONE_LEADER, f"{process.name} of epoch {epoch} wrote ({name}) in epoch {self.epoch}")
        if name == "submit":
            self._submitted(arguments[0], result)
        elif name == "apply":
            self._applied(arguments[0], result)
        elif name == "add_manifest":
            self._manifest(arguments[0])
        elif name == "place":
            job_id, options = arguments
            self.placed[job_id] = (options["attempt"], options["placement"])
            job = self.jobs[job_id]
            if options["attempt"] != job.attempt or job.phase.ended:
                self.violated(LAWFUL, f"{job_id}: attempt {options['attempt']} placed in {job.attempt}, {job.phase}")
            self.world.note(f"stored place {job_id} {options['attempt']}")

    def _manifest(self, manifest: Any) -> None:
        expected = active_shards(self.jobs[manifest.job_id].requirements.shards)
        if len(manifest.files) != expected:
            self.violated(
                WHOLE, f"{manifest.job_id}: that of step {manifest.step} has {len(manifest.files)} of {expected} files"
            )

    def _submitted(self, job: Job, result: Any) -> None:
        if result.created:
            self.world.note(f"stored submit {job.job_id}")
            if job.idempotency_key in self.keys:
                self.violated(ONE_JOB_PER_KEY, f"{job.idempotency_key}: {job.job_id} beside another")
            self.keys[job.idempotency_key] = job.job_id
            self.jobs[job.job_id] = job

    def _applied(self, transition: Any, job: Job) -> None:
        before = self.jobs[transition.job_id]
        self.world.note(
            f"stored {job.job_id} {before.phase} -> {transition.to} attempt {job.attempt} {transition.reason}"
        )
        if transition.to not in _EDGES.get(before.phase, set()):
            self.violated(LAWFUL, f"{job.job_id}: {before.phase} -> {transition.to}")
        if transition.attempt is not None and transition.attempt != before.attempt:
            self.violated(LAWFUL, f"{job.job_id}: a change of attempt {transition.attempt} in {before.attempt}")
        if job.attempt != before.attempt + (transition.to is Phase.STARTING):
            self.violated(ONE_ATTEMPT, f"{job.job_id}: attempt {before.attempt} -> {job.attempt} by {transition.to}")
        if before.results is not None and transition.results is not None and transition.to is Phase.RUNNING:
            self.violated(COMPLETED_ONCE, f"{job.job_id}: stored results were overwritten")
        if transition.to.ended:
            self.ends[job.job_id] += 1
            if self.ends[job.job_id] > 1:
                self.violated(COMPLETED_ONCE, f"{job.job_id} ended {self.ends[job.job_id]} times")
        self.jobs[job.job_id] = job
        if transition.to is Phase.SUCCEEDED:
            self._succeeded(job)

    def _succeeded(self, job: Job) -> None:
        if job.results is None or len(job.files) != active_shards(job.requirements.shards):
            self.violated(NO_JOB_LOST, f"{job.job_id} succeeded with {len(job.files)} files")

    # Clients.

    def acknowledged(self, plan: Any, job_id: str) -> None:
        if job_id not in self.jobs:
            self.violated(NO_JOB_LOST, f"{plan.key} was acknowledged as {job_id}, which is not stored")
        elif self.keys.get(plan.key) != job_id:
            self.violated(ONE_JOB_PER_KEY, f"{plan.key} is {job_id} for one answer, {self.keys.get(plan.key)} stored")

    # Parameter servers.

    def asked(self, epoch: int) -> None:
        """A parameter server does what a master of this epoch asks."""
        server = PROCESS.get()
        if epoch and epoch < self.epochs.get(self._own(server), 0):
            self.violated(NOTHING_STALE, f"{server.name} obeys the master of epoch {epoch} after a later one")
        self.epochs[self._own(server)] = max(epoch, self.epochs.get(self._own(server), 0))

    @staticmethod
    def _own(server: Process) -> str:
        return f"{server.name}#{id(server)}"

    def fenced_off(self, share: Any, attempt: int, incarnations: Any) -> None:
        key = (self._own(PROCESS.get()), share.job_id)
        self.fenced.setdefault(key, set()).update(incarnations)

    def attempt_told(self, share: Any, attempt: int) -> None:
        key = (self._own(PROCESS.get()), share.job_id)
        self.told[key] = max(attempt, self.told.get(key, 0))

    def counted(self, share: Any, session: Any, frame: Any) -> None:
        """A push has been taken."""
        self.accepted += 1
        server = PROCESS.get()
        key = (self._own(server), share.job_id)
        if frame.attempt < self.told.get(key, 0):
            self.violated(ONE_ATTEMPT, f"{server.name} takes {share.job_id} {frame.attempt} in {self.told[key]}")
        self.told[key] = max(frame.attempt, self.told.get(key, 0))
        if session.hello.incarnation in self.fenced.get(key, ()):
            self.violated(NOTHING_STALE, f"{server.name} takes a push of {session.hello.incarnation}, which is dead")
        job = self.jobs.get(share.job_id)
        if job is None or frame.attempt > job.attempt:
            self.violated(STORED_FIRST, f"{server.name} takes a push of attempt {frame.attempt}, which is not stored")
        for name, shares in self.world.shares.items():
            other = shares._by_job.get(share.job_id)
            if other is None or other is share or other.attempt != share.attempt or other._layout is None:
                continue
            if abs(other.version - share.version) > 1 and other.length and share.length:
                self.violated(
                    ONE_LINEAGE,
                    f"{share.job_id}: {server.name} takes step {frame.step} at version {share.version},"
                    f" {name} is at {other.version}",
                )

    def committed(self, share: Any) -> None:
        """A shard has made a version."""
        server = PROCESS.get()
        self.world.note(f"commit {server.name} {share.job_id} attempt {share.attempt} version {share.version}")
        want = expected_page(share.version, share.spec.training.world_size)
        for number, page in pages_of(share._weights, share.version).items():
            if not torch.equal(page, want):
                wrong = [index for index in range(len(want)) if page[index] != want[index]]
                self.violated(
                    COUNTED_ONCE,
                    f"{server.name} {share.job_id} version {share.version} page {number}: places {wrong[:8]} hold"
                    f" {[float(page[index]) for index in wrong[:8]]}",
                )

    # The master.

    def died(self, master: Process, incarnation: str) -> None:
        if incarnation:
            self.lost.setdefault(self._own(master), set()).add(incarnation)

    def dead(self) -> set[str]:
        """Incarnations that this master counts as dead by now."""
        return set(self.lost.get(self._own(PROCESS.get()), ()))

    def completed(self, report: Any, dead: set[str], before: Job | None, after: Job | None) -> None:
        """A report has been heard; `dead` then, and `before` and `after` it the job as stored."""
        if before is None or after is None or before == after or before.attempt != after.attempt:
            return
        mine = after.results is not None and before.results is None and after.results == report.results
        failed = not report.results.success and after.phase in (Phase.RECOVERING, Phase.FAILED)
        if not mine and not failed:
            return
        if report.attempt not in (0, before.attempt):
            self.violated(
                NOTHING_STALE, f"{after.job_id}: a report of attempt {report.attempt} counted in {before.attempt}"
            )
        if report.incarnation in dead:
            self.violated(NOTHING_STALE, f"{after.job_id}: a report of {report.incarnation} counted, which is dead")

    def handed_out(self, run: Any) -> None:
        """Grants go out."""
        attempt, placement = self.placed.get(run.job_id, (0, None))
        if placement is None or attempt != run.attempt or dict(placement.ranks) != run.ranks:
            job = self.jobs[run.job_id]
            if job.attempt == run.attempt and not job.phase.ended:  # else another master has gone on
                self.violated(STORED_FIRST, f"{run.job_id}: ranks {run.ranks} are handed out, {placement} is stored")

    def departed(self, member: Any) -> None:
        if member is not None:
            self.leaving.setdefault(self._own(PROCESS.get()), set()).add(member.incarnation)

    def decides(self, members: Any, cluster: Any) -> None:
        """What the scheduler is told of those who have said that they leave."""
        gone = self.leaving.get(self._own(PROCESS.get()), ())
        for worker in cluster.workers:
            if not worker.leaving and members.get(worker.worker_id).incarnation in gone:
                self.violated(LEAVING, f"{worker.worker_id} has said that it leaves, and the scheduler does not know")

    # The end.

    def at_the_end(self, expected: dict[str, str]) -> None:
        for told in self.world.acknowledged:
            phase = told.phases[-1] if told.phases else "never acknowledged"
            if phase not in ("SUCCEEDED", "CANCELLED"):
                self.violated(
                    ENDS if phase != "FAILED" else SAME_RESULT, f"{told.plan.key} is {phase}: {self._story()}"
                )
            elif phase == "CANCELLED" and not told.cancel_sent:
                self.violated(SAME_RESULT, f"{told.plan.key} was cancelled by nobody")
            elif phase == "SUCCEEDED" and told.sha256 != expected[told.plan.key]:
                self.violated(
                    SAME_RESULT, f"{told.plan.key}: weights {told.sha256[:12]}, not {expected[told.plan.key][:12]}"
                )
            for job_id in told.job_ids:
                if job_id not in self.jobs:
                    self.violated(NO_JOB_LOST, f"{told.plan.key} was acknowledged as {job_id}, which is not stored")

    def _story(self) -> str:
        return "; ".join(f"{job.job_id} {job.phase} {job.reason} {job.message}" for job in self.jobs.values())


current: list[Oracle] = []  # the one of the seed that runs now


def watch_complete(complete: Any) -> Any:
    """`Completions.complete`, or a wrong version of it, with its reports as they come."""

    async def watched(self: Any, report: Any) -> Any:
        dead, before = current[0].dead(), current[0].jobs.get(report.job_id)
        answer = await complete(self, report)
        current[0].completed(report, dead, before, current[0].jobs.get(report.job_id))
        current[0].world.note(
            f"report {report.job_id} {report.attempt} of {report.worker_id}: {report.results.success}"
            f" {report.results.errors}, {answer.message}"
        )
        return answer

    return watched


@contextlib.contextmanager
def watching() -> Iterator[list[Oracle]]:
    """The programs tell the oracle in the list what they do. They do it as before."""
    share_class = shoal.ps.share.Share
    receive, apply, fence_off, fence = share_class.receive, share_class._apply, share_class.fence_off, share_class.fence
    asked = shoal.ps.servicer.ShardServicer._asked
    expire = shoal.master.membership.members.Members.expire
    complete = shoal.master.lifecycle.completion.Completions.complete
    hand_out = shoal.master.lifecycle.live.LiveJobs.hand_out
    depart = shoal.master.membership.members.Members._depart
    cluster = shoal.master.coordination.coordinator.Coordinator._cluster

    def watched_receive(self: Any, session: Any, frame: Any) -> None:
        if frame.kind is not Kind.PUSHED:
            receive(self, session, frame)
            return
        version, reduction = self.version, self._reduction
        present = set(reduction.cover.present)
        receive(self, session, frame)
        if self.version != version or self._reduction is not reduction or reduction.cover.present != present:
            current[0].counted(self, session, frame)

    def watched_apply(self: Any, total: Any) -> None:
        apply(self, total)
        current[0].committed(self)

    def watched_fence_off(self: Any, *, attempt: int, incarnations: Any, worker_ids: Any) -> int:
        named = {s.hello.incarnation for s in self._sessions if s.hello.worker_id in worker_ids}
        cut = fence_off(self, attempt=attempt, incarnations=incarnations, worker_ids=worker_ids)
        current[0].fenced_off(self, attempt, {*incarnations, *named} - {""})
        return cut

    def watched_fence(self: Any, attempt: int) -> None:
        fence(self, attempt)
        current[0].attempt_told(self, attempt)

    @contextlib.contextmanager
    def watched_asked(self: Any, request: Any, context: Any, *more: Any, **named: Any) -> Iterator[Any]:
        with asked(self, request, context, *more, **named) as inner:
            current[0].asked(request.master_epoch)
            yield inner

    def watched_expire(self: Any) -> Any:
        expiry = expire(self)
        for member in expiry.lost:
            current[0].died(PROCESS.get(), member.incarnation)
            heard_until = member.heard_at + self._timing.lease_seconds
            if not (member.left or member.doubted) and self._clock.monotonic() < heard_until:
                current[0].violated(LEASES, f"{member.member_id} is lost {heard_until - member.ends_at:.1f} s early")
            current[0].world.note(f"lost {member.member_id} {member.incarnation}")
        return expiry

    def watched_hand_out(self: Any, run: Any) -> None:
        if self.is_current(run):
            current[0].handed_out(run)
        hand_out(self, run)

    def watched_depart(self: Any, *arguments: Any, **named: Any) -> Any:
        member = depart(self, *arguments, **named)
        current[0].departed(member)
        return member

    def watched_cluster(self: Any) -> Any:
        seen = cluster(self)
        current[0].decides(self._members, seen)
        return seen

    changes: list[tuple[Any, str, Any]] = [
        (shoal.master.lifecycle.live.LiveJobs, "hand_out", watched_hand_out),
        (shoal.master.membership.members.Members, "_depart", watched_depart),
        (shoal.master.coordination.coordinator.Coordinator, "_cluster", watched_cluster),
        (share_class, "receive", watched_receive),
        (share_class, "_apply", watched_apply),
        (share_class, "fence_off", watched_fence_off),
        (share_class, "fence", watched_fence),
        (shoal.ps.servicer.ShardServicer, "_asked", watched_asked),
        (shoal.master.membership.members.Members, "expire", watched_expire),
        (shoal.master.lifecycle.completion.Completions, "complete", watch_complete(complete)),
    ]
    originals = [(owner, name, vars(owner)[name]) for owner, name, _ in changes]
    for owner, name, replacement in changes:
        setattr(owner, name, replacement)
    try:
        yield current
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)
