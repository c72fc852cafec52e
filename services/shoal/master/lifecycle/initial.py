"""Where the weights lie that a job begins with, if the spec names another job's."""

from collections.abc import Sequence

from shoal.core.errors import InvalidInput, NotFound
from shoal.core.job import Job, Phase, ShardAddress, ShardFile
from shoal.jobspec.reading import load_spec
from shoal.jobspec.spec import JobSpec
from shoal.master.clients.shards import InitialWeights
from shoal.master.membership.members import Members
from shoal.master.store.base import JobStore, Manifest


class InitialSources:
    def __init__(self, *, store: JobStore, members: Members) -> None:
        self._store = store
        self._members = members

    async def resolve(self, spec: JobSpec) -> JobSpec:
        """The spec with the step at which the other job's weights are, so that it always means the same ones.

        Raises InvalidInput if there are none.
        """
        wanted = spec.initial_weights
        if wanted is None:
            return spec
        step, _ = await self._found(wanted.job, wanted.step)
        return spec.model_copy(update={"initial_weights": wanted.model_copy(update={"step": step})})

    async def of(self, job: Job) -> InitialWeights | None:
        """For a stored job. Raises InvalidInput if the files are no longer kept."""
        wanted = load_spec(job.spec_json).initial_weights
        if wanted is None:
            return None
        step, files = await self._found(wanted.job, wanted.step)
        return InitialWeights(job_id=wanted.job, step=step, files=tuple((file, self._place_of(file)) for file in files))

    async def _found(self, job_id: str, step: int | None) -> tuple[int, Sequence[ShardFile]]:
        try:
            job = await self._store.get(job_id)
            manifests = await self._store.manifests(job_id)
        except NotFound as error:
            raise _none(f"job '{job_id}' is not known here") from error
        if not job.phase.ended:
            raise _none(f"job {job_id} is {job.phase}; weights are taken of jobs that have ended")
        return _finished(job, step) if job.phase is Phase.SUCCEEDED else _snapshot(job, manifests, step)

    def _place_of(self, file: ShardFile) -> ShardAddress:
        """Without a host if the server is not there: on a target that servers share, nobody needs it."""
        member = self._members.get(file.server_id)
        known = member is not None and member.known and member.present
        return ShardAddress(
            server_id=file.server_id,
            host=member.host if member and known else "",
            port=member.port if member and known else 0,
            index=file.shard_index,
        )


def _finished(job: Job, step: int | None) -> tuple[int, Sequence[ShardFile]]:
    steps = job.results.steps if job.results is not None else 0
    if step not in (None, steps):
        raise _none(f"job {job.job_id} has only its finished model, of step {steps}: leave initial_weights.step out")
    return steps, job.files


def _snapshot(job: Job, manifests: Sequence[Manifest], step: int | None) -> tuple[int, Sequence[ShardFile]]:
    whole = [manifest for manifest in manifests if not manifest.damaged]
    fitting = [manifest for manifest in whole if step in (None, manifest.step)]
    if not fitting:
        have = ", ".join(str(manifest.step) for manifest in whole)
        at = "" if step is None else f" at step {step}"
        raise _none(f"job {job.job_id} ({job.phase}) has no snapshot{at}" + (f"; it has {have}" if have else ""))
    return fitting[0].step, fitting[0].files


def _none(why: str) -> InvalidInput:
    return InvalidInput(f"initial_weights: {why}", field="initial_weights.job")
