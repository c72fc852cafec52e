"""`shoal run`: a cluster of this machine's processes for one job, from start to saved model."""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from shoal.cli import output as out
from shoal.cli.exits import Exit, of_phase
from shoal.cli.jobs import failure_of
from shoal.cli.options import DataRoots, Format, Output, SpecFile, Transport, worker_options
from shoal.cli.progress import Display, display
from shoal.cli.stopping import Stopped, shielded
from shoal.core.errors import InvalidInput, ShoalError
from shoal.core.job import Phase
from shoal.jobspec.reading import validate_spec
from shoal.jobspec.spec import JobSpec
from shoal.local import Cluster, FaultPlan, FaultReport
from shoal.local.faults import GRAMMAR, FaultRun
from shoal.sdk import Client, JobView, SavedModel
from shoal.sdk.client import read_spec


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one run came to."""

    job: JobView
    reports: tuple[FaultReport, ...]
    saved: SavedModel | None
    workers: int
    first_step_seconds: float | None  # from the command's start to the first committed step

    def document(self) -> dict[str, Any]:
        job, results = self.job, self.job.results
        seconds = job.finished_at - job.submitted_at if job.finished_at is not None else None
        training = job.training_seconds
        return {
            "job_id": job.job_id,
            "name": job.name,
            "phase": job.phase.value,
            "reason": job.reason,
            "accuracy": results.accuracy if results else None,
            "loss": results.loss if results else job.loss,
            "steps": results.steps if results else job.step,
            "samples": results.samples if results else job.samples,
            "seconds": None if seconds is None else round(seconds, 3),
            "training_seconds": None if training is None else round(training, 3),
            "samples_per_second": round(job.samples / training, 1) if training else round(job.samples_per_second, 1),
            "first_step_seconds": None if self.first_step_seconds is None else round(self.first_step_seconds, 3),
            "weights_sha256": results.weights_sha256 if results else "",
            "workers": self.workers,
            "shards": job.shards,
            "attempt": job.attempt,
            "faults": [
                {
                    "fault": str(report.fault),
                    "happened": report.happened,
                    "at_step": report.happened_at_step,
                    "why": report.why,
                }
                for report in self.reports
            ],
            "model_dir": str(self.saved.folder) if self.saved else None,
            "errors": list(results.errors) if results else [],
        }


def run(
    spec: SpecFile,
    workers: Annotated[int, typer.Option(min=1, help="Number of worker processes.")] = 2,
    shards: Annotated[
        int | None, typer.Option(min=1, help="Number of parameter servers. Default: the spec's.", show_default=False)
    ] = None,
    transport: Annotated[
        Transport | None,
        typer.Option(
            help="grpc: no shared memory between trainers and shards. Default: the spec's.", show_default=False
        ),
    ] = None,
    fault: Annotated[
        list[str] | None, typer.Option(help=f"What to do to the cluster on the way: {GRAMMAR}. May be repeated.")
    ] = None,
    data_roots: DataRoots = None,
    model_dir: Annotated[
        Path | None, typer.Option("--out", help="Folder of the saved model. Default: runs/JOB.", show_default=False)
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds for the whole run; then exit code 124.", show_default=False)
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Train a job on this machine: start the processes, train, save the model, stop the processes."""
    began = psutil.Process().create_time()
    job_spec = read_spec(spec)
    shards = shards or job_spec.resources.shards
    plan = FaultPlan.parse(fault or ())
    plan.check(workers=workers, shards=shards)
    if model_dir is not None and model_dir.exists() and not model_dir.is_dir():
        raise InvalidInput(f"--out {model_dir}: is a file; give a folder", field="out")
    job_spec = placed(job_spec, workers=workers, shards=shards, transport=transport and transport.value)
    cluster = Cluster(workers=workers, shards=shards, worker_options=worker_options(data_roots))
    outcome = _in_cluster(cluster, job_spec, plan, model_dir=model_dir, began=began, timeout=timeout)
    _report(outcome, output, cluster)


def placed(spec: JobSpec, *, workers: int, shards: int, transport: str | None) -> JobSpec:
    """The same mathematics with the resources of this run: it starts once every worker is there."""
    document = spec.model_dump(mode="json")
    document["resources"].update(shards=shards, min_workers=min(workers, spec.training.world_size), max_workers=None)
    if transport is not None:
        document["resources"]["transport"] = transport
    return validate_spec(document)


def _in_cluster(
    cluster: Cluster, spec: JobSpec, plan: FaultPlan, *, model_dir: Path | None, began: float, timeout: float | None
) -> Outcome:
    deadline = None if timeout is None else began + timeout
    job_id = ""
    try:
        with display() as shown:
            cluster.start()
            with cluster.client() as client:
                job_id = client.submit(spec).job_id
                shown.say(f"job {job_id}: {len(cluster.workers)} workers, {len(cluster.shards)} shards")
                job, reports = _follow(client, job_id, FaultRun(plan, cluster), shown, deadline)
                saved = client.download(job_id, model_dir or Path("runs") / job_id) if job.succeeded else None
                if not job.succeeded:
                    cluster.keep_folder()
    except Stopped as stopped:
        with shielded():
            if job_id:
                with contextlib.suppress(ShoalError), cluster.client() as client:
                    client.cancel(job_id)
            cluster.stop()
        ending = f"job {job_id} was cancelled and every process stopped" if job_id else "every process stopped"
        out.say(f"{stopped}: {ending}")
        raise typer.Exit(stopped.code) from stopped
    finally:
        with shielded():
            cluster.stop()
    first_step = None if job.started_at is None else job.started_at - began
    return Outcome(
        job=job, reports=reports, saved=saved, workers=cluster.workers_started, first_step_seconds=first_step
    )


def _follow(
    client: Client, job_id: str, faults: FaultRun, shown: Display, deadline: float | None
) -> tuple[JobView, tuple[FaultReport, ...]]:
    job = client.get(job_id)
    for job in client.watch(job_id, timeout=None if deadline is None else max(deadline - time.time(), 0)):
        shown.update(job)
        for report in faults.observe(step=job.step, ended=job.ended):
            shown.say(f"fault: {report.fault}: " + (f"done at step {job.step}" if report.happened else report.why))
    return job, faults.reports()


def _report(outcome: Outcome, output: Format, cluster: Cluster) -> None:
    document = outcome.document()
    if output is Format.TABLE:
        _print_summary(document)
    else:
        out.show(document, output, {})
    job = outcome.job
    if job.phase is Phase.FAILED:
        out.say(f"error: job {job.job_id} failed: {failure_of(job)}; logs are in {cluster.folder}")
    missed = [report for report in outcome.reports if not report.happened]
    for report in missed:
        out.say(f"error: fault '{report.fault}' did not happen: {report.why}")
    code = of_phase(job.phase)
    raise typer.Exit(code or (Exit.FAILED if missed else Exit.OK))


def _print_summary(document: dict[str, Any]) -> None:
    def line(name: str, value: object) -> None:
        print(f"{name:<10} {value}")

    line("job", f"{document['job_id']} {document['phase']}")
    if document["phase"] != Phase.SUCCEEDED:
        return
    line("accuracy", f"{document['accuracy']:.4f} (held out)")
    line("loss", f"{document['loss']:.4f}")
    line(
        "steps", f"{document['steps']} in {document['seconds']:.1f} s, {document['samples_per_second']:,.0f} samples/s"
    )
    line("weights", f"sha256 {document['weights_sha256']}")
    line("model", document["model_dir"])
    for fault in document["faults"]:
        line("fault", f"{fault['fault']}: " + (f"done at step {fault['at_step']}" if fault["happened"] else "not done"))
