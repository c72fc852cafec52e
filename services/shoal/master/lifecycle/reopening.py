"""Jobs that had been cancelled or had failed go on, from a snapshot."""

from collections.abc import Sequence

from shoal.core.errors import Refused, Stale
from shoal.core.job import Job
from shoal.jobspec.reading import load_spec
from shoal.master.lifecycle import transitions
from shoal.master.lifecycle.live import LiveJobs
from shoal.master.store.base import JobStore, Manifest
from shoal.process.clock import Clock


class Reopening:
    def __init__(self, *, live: LiveJobs, store: JobStore, clock: Clock) -> None:
        self._live = live
        self._store = store
        self._clock = clock

    async def reopen(self, job: Job, *, from_step: int | None) -> Job:
        """Lets it wait for its next attempt: from its newest snapshot, or that of a step; 0: from the beginning.

        Raises Refused if it has succeeded, or has no such snapshot.
        """
        if job.phase not in transitions.REOPENABLE:
            raise Refused(f"job {job.job_id} is {job.phase}: only a cancelled or failed job can go on")
        load_spec(job.spec_json)  # written by a program that this one understands
        step = _chosen(job, await self._store.manifests(job.job_id), from_step)
        begins = f"from the snapshot at step {step}" if step else "from the beginning"
        transition = transitions.reopen(
            job, from_step=step, at=self._clock.unix(), message=f"resumed on request, {begins}"
        )
        try:
            return await self._live.apply(transition)
        except Stale as error:
            raise Refused(f"job {job.job_id} has changed meanwhile: {error}") from error


def _chosen(job: Job, manifests: Sequence[Manifest], from_step: int | None) -> int:
    whole = [manifest.step for manifest in manifests if not manifest.damaged]
    if from_step == 0:
        return 0
    if from_step is None:
        if not whole:
            raise Refused(f"job {job.job_id} has no snapshot to go on from; --from-step 0 begins it again")
        return whole[0]
    if from_step not in whole:
        have = f"there are {', '.join(map(str, whole))}" if whole else "there is none"
        raise Refused(f"job {job.job_id} has no snapshot at step {from_step}; {have}")
    return from_step
