"""Every way in which a job's phase changes, each with its fence. Pure."""

from array import array

from shoal.core.job import Job, Phase, Results, ShardFile
from shoal.master import reasons
from shoal.master.store.base import LIVE, Summary, Transition

WAITING = frozenset({Phase.PENDING, Phase.RECOVERING})
UNDER_WAY = frozenset({Phase.STARTING, Phase.RUNNING})
REOPENABLE = frozenset({Phase.FAILED, Phase.CANCELLED})


def begin(job: Job, *, servers: tuple[str, ...], at: float, reason: str, message: str) -> Transition:
    return Transition(
        name="begin",
        job_id=job.job_id,
        attempt=job.attempt,
        expected=WAITING,
        to=Phase.STARTING,
        reason=reason,
        message=message,
        at=at,
        new_attempt=True,
        servers=servers,
    )


def first_step(job_id: str, *, attempt: int, at: float, message: str) -> Transition:
    return Transition(
        name="first_step",
        job_id=job_id,
        attempt=attempt,
        expected=frozenset({Phase.STARTING}),
        to=Phase.RUNNING,
        reason=reasons.FIRST_STEP,
        message=message,
        at=at,
        started=True,
    )


def close_training(job_id: str, *, attempt: int, results: Results, at: float, message: str) -> Transition:
    """Stores the results; the first one wins."""
    return Transition(
        name="close_training",
        job_id=job_id,
        attempt=attempt,
        expected=UNDER_WAY,
        to=Phase.RUNNING,
        reason=reasons.TRAINING_DONE,
        message=message,
        at=at,
        only_open=True,
        started=True,
        results=results,
    )


def succeed(
    job_id: str,
    *,
    attempt: int,
    results: Results,
    files: tuple[ShardFile, ...],
    at: float,
    summary: Summary,
    losses: "array[float]",
    message: str,
) -> Transition:
    return Transition(
        name="succeed",
        job_id=job_id,
        attempt=attempt,
        expected=frozenset({Phase.RUNNING}),
        to=Phase.SUCCEEDED,
        reason=reasons.COMPLETED,
        message=message,
        at=at,
        results=results,
        files=files,
        summary=summary,
        losses=losses,
        manifests_kept=0,
    )


def recover(job_id: str, *, attempt: int, at: float, reason: str, message: str, failed: bool = False) -> Transition:
    """Ends an attempt; the next one may begin. Results that were in are void: they come again, with the same bits.

    `failed`: by a fault of the job's own, of which it may have only so many.
    """
    return Transition(
        name="recover",
        job_id=job_id,
        attempt=attempt,
        expected=UNDER_WAY,
        to=Phase.RECOVERING,
        reason=reason,
        message=message,
        at=at,
        clear_results=True,
        failed=failed,
    )


def fail(
    job_id: str,
    *,
    attempt: int,
    results: Results,
    at: float,
    reason: str,
    message: str,
    summary: Summary,
    losses: "array[float]",
) -> Transition:
    return Transition(
        name="fail",
        job_id=job_id,
        attempt=attempt,
        expected=LIVE,
        to=Phase.FAILED,
        reason=reason,
        message=message,
        at=at,
        results=results,
        summary=summary,
        losses=losses,
        failed=True,
        manifests_kept=1,
    )


def pause(job: Job, *, at: float, message: str) -> Transition:
    """The phase stays. Not once the results are in: nothing is left that could wait."""
    return Transition(
        name="pause",
        job_id=job.job_id,
        attempt=job.attempt,
        expected=frozenset({job.phase}),
        to=job.phase,
        reason=reasons.PAUSED,
        message=message,
        at=at,
        only_open=True,
        paused=True,
    )


def resume(job: Job, *, at: float, message: str) -> Transition:
    return Transition(
        name="resume",
        job_id=job.job_id,
        attempt=job.attempt,
        expected=frozenset({job.phase}),
        to=job.phase,
        reason=reasons.RESUMED,
        message=message,
        at=at,
        paused=False,
    )


def cancel(job_id: str, *, at: float, message: str, summary: Summary, losses: "array[float]") -> Transition:
    """A user's wish: whichever the attempt is. Results that no success followed are void."""
    return Transition(
        name="cancel",
        job_id=job_id,
        attempt=None,
        expected=LIVE,
        to=Phase.CANCELLED,
        reason=reasons.CANCELLED,
        message=message,
        at=at,
        clear_results=True,
        summary=summary,
        losses=losses,
        manifests_kept=1,
    )


def reopen(job: Job, *, from_step: int | None, at: float, message: str) -> Transition:
    """A job that was cancelled or has failed waits for its next attempt: from its newest snapshot up to `from_step`."""
    return Transition(
        name="reopen",
        job_id=job.job_id,
        attempt=job.attempt,
        expected=REOPENABLE,
        to=Phase.PENDING,
        reason=reasons.RESUMED,
        message=message,
        at=at,
        clear_results=True,
        paused=False,
        reopen=True,
        manifests_up_to=from_step,
    )
