"""Every way in which a job's phase changes, each with its fence. Pure."""

from array import array

from shoal.core.job import Job, Phase, Results, ShardFile
from shoal.master import reasons
from shoal.master.store.base import LIVE, Summary, Transition

WAITING = frozenset({Phase.PENDING, Phase.RECOVERING})
UNDER_WAY = frozenset({Phase.STARTING, Phase.RUNNING})


def begin(job: Job, *, servers: tuple[str, ...], at: float, reason: str, message: str) -> Transition:
    return Transition(
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
    )


def recover(job_id: str, *, attempt: int, at: float, reason: str, message: str) -> Transition:
    """Ends an attempt; the next one may begin. Results that were in are void: they come again, with the same bits."""
    return Transition(
        job_id=job_id,
        attempt=attempt,
        expected=UNDER_WAY,
        to=Phase.RECOVERING,
        reason=reason,
        message=message,
        at=at,
        clear_results=True,
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
    )


def cancel(job_id: str, *, at: float, message: str, summary: Summary, losses: "array[float]") -> Transition:
    """A user's wish: whichever the attempt is. Results that no success followed are void."""
    return Transition(
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
    )
