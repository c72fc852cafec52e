"""What users ask of the master, without gRPC."""

import asyncio
import hashlib
import json
import uuid
from collections.abc import AsyncGenerator, Iterable
from dataclasses import asdict, dataclass, replace

import pydantic

from shoal.core.errors import Exhausted, InvalidInput, Refused, Unavailable
from shoal.core.job import Job, Phase, ShardAddress, ShardFile
from shoal.jobspec.reading import describe, load_spec, parse_spec
from shoal.jobspec.spec import JobSpec
from shoal.master import reasons
from shoal.master.changes import Changes
from shoal.master.clients.shards import ShardClient
from shoal.master.coordination.coordinator import Coordinator
from shoal.master.lifecycle.endings import Cancellation, Endings
from shoal.master.lifecycle.initial import InitialSources
from shoal.master.lifecycle.live import LiveJobs
from shoal.master.lifecycle.reopening import Reopening
from shoal.master.membership.members import Members
from shoal.master.settings import MasterSettings
from shoal.master.store.base import JobStore, LogLine, Manifest, Submission, Summary
from shoal.master.views import JobView
from shoal.metrics.master import MasterMetrics
from shoal.process.clock import Clock
from shoal.process.logs import get_logger

_LOG_PAGE = 500  # lines read from the store at once


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFile:
    """One shard's file in a download; its bytes from `offset` on follow."""

    file: ShardFile
    offset: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelHead:
    """The first part of a download."""

    config_json: str
    weights_sha256: str


class Jobs:
    def __init__(
        self,
        *,
        store: JobStore,
        live: LiveJobs,
        endings: Endings,
        reopening: Reopening,
        initial: InitialSources,
        coordinator: Coordinator,
        members: Members,
        shards: ShardClient,
        changes: Changes,
        metrics: MasterMetrics,
        clock: Clock,
        settings: MasterSettings,
    ) -> None:
        self._store = store
        self._live = live
        self._endings = endings
        self._reopening = reopening
        self._initial = initial
        self._coordinator = coordinator
        self._members = members
        self._shards = shards
        self._changes = changes
        self._metrics = metrics
        self._clock = clock
        self._settings = settings
        self._log = get_logger()

    def resolve(self, spec_text: str) -> JobSpec:
        """The whole spec, with the cluster's defaults. Raises InvalidInput that names the field, or Exhausted."""
        return self._with_defaults(self._parsed(spec_text))

    async def submit(self, spec_text: str, *, idempotency_key: str) -> Submission:
        """Returns once the job is stored durably. Raises InvalidInput, AlreadyExists, Exhausted, Unavailable."""
        given = self._parsed(spec_text)
        spec = await self._initial.resolve(self._with_defaults(given))
        digest = hashlib.sha256(given.model_dump_json().encode()).hexdigest()  # of what the user wrote, not of defaults
        job = Job(
            job_id=f"{spec.name}-{uuid.uuid4().hex[:10]}",
            name=spec.name,
            spec_json=spec.model_dump_json(),
            requirements=spec.requirements,
            phase=Phase.PENDING,
            reason=reasons.SUBMITTED,
            message="",
            attempt=0,
            submitted_at=self._clock.unix(),
            idempotency_key=idempotency_key,
        )
        submission = await self._store.submit(job, spec_hash=digest)
        if submission.created:
            self._metrics.jobs_submitted.inc()
            self._live.take_up(submission.job)
            self._log.info("job_submitted", job_id=job.job_id, model=job.requirements.model_type)
        return submission

    async def get(self, job_id: str, *, with_losses: bool = False) -> JobView:
        """Raises NotFound."""
        job = self._live.job(job_id) or await self._store.get(job_id)
        run = self._live.run(job_id)
        losses = None
        if with_losses:
            losses = run.progress.losses[:] if run else await self._store.losses(job_id)
        if run is None:
            summary = (await self._store.summaries([job_id])).get(job_id, Summary())
            evaluations = await self._store.evaluations(job_id)
        else:
            summary, evaluations = run.progress.summary, run.progress.evaluations
        events = await self._store.events(job_id)
        return replace(self._view(job, summary), evaluations=evaluations, events=events, losses=losses)

    async def list(self, *, phases: Iterable[str], limit: int) -> tuple[JobView, ...]:
        """Newest first, without events and evaluations. Raises InvalidInput for a phase that does not exist."""
        wanted = {_phase(name) for name in phases}
        jobs = await self._store.jobs(phases=wanted, limit=limit)
        summaries = await self._store.summaries([job.job_id for job in jobs])
        views = []
        for job in jobs:
            run = self._live.run(job.job_id)
            summary = run.progress.summary if run else summaries.get(job.job_id, Summary())
            views.append(self._view(job, summary))
        return tuple(views)

    async def watch(self, job_id: str) -> AsyncGenerator[JobView, None]:
        """The job now and after each change, at most so often, until it has ended. Raises NotFound."""
        with self._changes.subscribe(job_id) as changed:
            while True:
                changed.clear()
                view = await self.get(job_id)
                yield view
                if view.job.phase.ended:
                    return
                await asyncio.sleep(self._settings.watch_interval_seconds)
                await changed.wait()

    async def cancel(self, job_id: str) -> Cancellation:
        """Raises NotFound."""
        return await self._endings.cancel(job_id)

    async def pause(self, job_id: str) -> Job:
        """Raises NotFound or Refused."""
        return await self._endings.pause(job_id)

    async def resume(self, job_id: str, *, from_step: int | None = None) -> Job:
        """A paused job, or one that was cancelled or has failed, which goes on from a snapshot.

        Raises NotFound or Refused.
        """
        job = self._live.job(job_id) or await self._store.get(job_id)
        if job.phase.ended:
            return await self._reopening.reopen(job, from_step=from_step)
        if job.phase is Phase.PENDING and job.reason == reasons.RESUMED:
            return job  # asked again: the answer did not come
        if from_step is not None:
            raise Refused(f"job {job_id} is {job.phase}: only an ended one can go back to a step; cancel it first")
        return await self._endings.resume(job_id)

    async def snapshots(self, job_id: str) -> tuple[Manifest, ...]:
        """Newest step first. Raises NotFound."""
        return await self._store.manifests(job_id)

    async def report_logs(self, job_id: str, lines: Iterable[LogLine]) -> None:
        """Raises NotFound."""
        cut = self._settings.log_line_characters
        kept = [LogLine(at=line.at, worker_id=line.worker_id, text=line.text[:cut]) for line in lines]
        if self._live.job(job_id) is None:
            await self._store.get(job_id)
        if kept:
            await self._store.append_logs(job_id, kept[-self._settings.log_lines_kept :])
            self._changes.touch(job_id)

    async def logs(self, job_id: str, *, after: int, follow: bool) -> AsyncGenerator[LogLine, None]:
        """Lines behind `after`; with `follow` until the job has ended and all is sent. Raises NotFound."""
        with self._changes.subscribe(job_id) as changed:
            while True:
                changed.clear()
                job = self._live.job(job_id) or await self._store.get(job_id)
                while page := await self._store.logs(job_id, after=after, limit=_LOG_PAGE):
                    for line in page:
                        yield line
                    after = page[-1].sequence
                if not follow or job.phase.ended:
                    return
                await changed.wait()

    async def download(
        self, job_id: str, *, file_name: str = "", offset: int = 0
    ) -> AsyncGenerator[ModelHead | ModelFile | bytes, None]:
        """The finished model, file after file; with `file_name` from byte `offset` of that file on.

        Raises NotFound, Refused, InvalidInput (no such place), Unavailable, Corrupt.
        """
        job = await self._store.get(job_id)
        if job.phase is not Phase.SUCCEEDED or job.results is None:
            raise Refused(f"job {job_id} is {job.phase}: only the model of a job that has SUCCEEDED can be downloaded")
        left = [
            (file, start, self._place_of(file)) for file, start in _files_left(job, file_name=file_name, offset=offset)
        ]
        yield ModelHead(config_json=_config_json(job), weights_sha256=job.results.weights_sha256)
        for file, start, place in left:
            yield ModelFile(file=file, offset=start)
            async for data in self._shards.read_snapshot(place, job_id=job_id, file=file, offset=start):
                yield data

    def job_ids_of_server(self, server_id: str) -> tuple[str, ...]:
        return tuple(sorted(job.job_id for job in self._live.jobs if server_id in job.servers))

    def _place_of(self, file: ShardFile) -> ShardAddress:
        member = self._members.get(file.server_id)
        if member is None or not member.known or not member.present:
            raise Unavailable(f"parameter server {file.server_id}, which holds {file.file_name}, is not there")
        return ShardAddress(server_id=file.server_id, host=member.host, port=member.port, index=file.shard_index)

    def _parsed(self, spec_text: str) -> JobSpec:
        size, limit = len(spec_text.encode()), self._settings.spec_bytes_limit
        if size > limit:
            raise Exhausted(f"the job spec has {size} bytes; this master takes {limit} (spec_bytes_limit)")
        return parse_spec(spec_text)

    def _with_defaults(self, spec: JobSpec) -> JobSpec:
        try:
            return spec.with_defaults(self._settings.training_config)
        except pydantic.ValidationError as error:
            raise describe(error, origin="job spec with the cluster's defaults") from error

    def _view(self, job: Job, summary: Summary) -> JobView:
        run = self._live.run(job.job_id)
        wait = self._coordinator.wait_of(job.job_id) if not job.phase.ended and run is None else None
        return JobView(
            job=job,
            reason=wait.reason if wait and job.phase is Phase.PENDING else job.reason,
            message=wait.message if wait else job.message,
            summary=summary,
            samples_per_second=run.progress.samples_per_second(now=self._clock.monotonic()) if run else 0.0,
            ranks=run.ranks if run else {},
            seconds_per_unit=self._coordinator.speeds(run) if run else {},
        )


def _phase(name: str) -> Phase:
    try:
        return Phase(name.upper())
    except ValueError as error:
        raise InvalidInput(f"no such phase: '{name}'; known: {', '.join(Phase)}", field="phases") from error


def _files_left(job: Job, *, file_name: str, offset: int) -> list[tuple[ShardFile, int]]:
    """What a download has yet to send: files, and where in them to begin."""
    names = [file.file_name for file in job.files]
    if not file_name:
        return [(file, 0) for file in job.files]
    if file_name not in names:
        raise InvalidInput(f"job {job.job_id} has no file '{file_name}' to go on with", field="file_name")
    first = job.files[names.index(file_name)]
    if offset > first.size:
        raise InvalidInput(f"offset {offset} is behind the end of {file_name}: {first.size} bytes", field="offset")
    return [(first, offset), *((file, 0) for file in job.files[names.index(file_name) + 1 :])]


def _config_json(job: Job) -> str:
    """The model's config.json: Hugging Face's `model_type`, and how it was trained."""
    assert job.results is not None
    spec = load_spec(job.spec_json)
    results = asdict(job.results)
    document = {
        "model_type": spec.model.type,
        "shoal": {
            "job_id": job.job_id,
            "name": job.name,
            "spec": spec.model_dump(mode="json"),
            "results": results,
        },
    }
    return json.dumps(document, indent=2)
