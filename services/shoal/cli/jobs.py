"""Commands about jobs and members of a cluster that runs already."""

from pathlib import Path
from typing import Annotated

import typer

from shoal.cli import output as out
from shoal.cli.exits import Exit, of_phase
from shoal.cli.options import ContextName, Format, JobId, Master, Output, SpecFile
from shoal.cli.progress import display
from shoal.cli.reaching import reached
from shoal.core.errors import DeadlineExceeded, InvalidInput
from shoal.core.job import Phase
from shoal.sdk import Client, JobView
from shoal.sdk.client import read_spec


def submit(
    root: typer.Context,
    spec: SpecFile,
    idempotency_key: Annotated[str, typer.Option(help="Repeating a submit with the same key gives the same job.")] = "",
    watch_it: Annotated[bool, typer.Option("--watch", "-w", help="Then watch the job until it ends.")] = False,
    master: Master = "",
    context: ContextName = "",
    output: Output = Format.TABLE,
) -> None:
    """Hand in a job. Prints its id."""
    job_spec = read_spec(spec)  # whatever is wrong with it is told before anybody is asked
    with reached(root, master=master, context=context) as client:
        submitted = client.submit(job_spec, idempotency_key=idempotency_key or None)
        if watch_it:
            out.say(f"job {submitted.job_id}")
            _watch(client, submitted.job_id, output)
        elif output is Format.TABLE:
            print(submitted.job_id)
        else:
            out.show({"job_id": submitted.job_id, "created": submitted.created}, output, {})


def get(
    root: typer.Context, job: JobId, master: Master = "", context: ContextName = "", output: Output = Format.TABLE
) -> None:
    """Show one job."""
    with reached(root, master=master, context=context) as client:
        _show_job(client.get(job), output)


def list_jobs(
    root: typer.Context,
    phase: Annotated[list[str] | None, typer.Option(help="Only jobs in this phase; may be repeated.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="At most so many, newest first; 0: all.")] = 0,
    master: Master = "",
    context: ContextName = "",
    output: Output = Format.TABLE,
) -> None:
    """List jobs, newest first."""
    phases = tuple(map(_phase, phase or ()))
    with reached(root, master=master, context=context) as client:
        jobs = client.list(phases=phases, limit=limit)
    documents = [out.job_row(job) if output is Format.TABLE else out.job_document(job) for job in jobs]
    out.show(documents, output, out.JOB_COLUMNS)


def describe(
    root: typer.Context, job: JobId, master: Master = "", context: ContextName = "", output: Output = Format.TABLE
) -> None:
    """Show one job with its events, evaluations and spec."""
    with reached(root, master=master, context=context) as client:
        out.show_one(out.described_document(client.get(job)), output)


def watch(
    root: typer.Context, job: JobId, master: Master = "", context: ContextName = "", output: Output = Format.TABLE
) -> None:
    """Follow a job until it ends; the exit code tells how."""
    with reached(root, master=master, context=context) as client:
        _watch(client, job, output)


def wait(
    root: typer.Context,
    job: JobId,
    timeout: Annotated[float | None, typer.Option(min=0, help="Seconds; then exit code 124.")] = None,
    master: Master = "",
    context: ContextName = "",
    output: Output = Format.TABLE,
) -> None:
    """Wait until a job has ended; the exit code tells how."""
    with reached(root, master=master, context=context) as client:
        ended = client.wait(job, timeout=timeout)
    _show_job(ended, output)
    _exit_by(ended)


def logs(
    root: typer.Context,
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    master: Master = "",
    context: ContextName = "",
    output: Output = Format.TABLE,
) -> None:
    """Print what a job's trainers have logged. With -o json one object per line."""
    import json
    from dataclasses import asdict

    with reached(root, master=master, context=context) as client:
        for line in client.logs(job, follow=follow):
            match output:
                case Format.TABLE:
                    print(f"{line.worker_id}  {line.text}", flush=True)
                case Format.JSON:
                    print(json.dumps(asdict(line)), flush=True)
                case Format.YAML:
                    out.show([asdict(line)], output, {})


def cancel(
    root: typer.Context, job: JobId, master: Master = "", context: ContextName = "", output: Output = Format.TABLE
) -> None:
    """End a job early. A job that has ended already stays as it is."""
    with reached(root, master=master, context=context) as client:
        phase = client.cancel(job)
    if output is Format.TABLE:
        print(f"{job} {phase.value}")
    else:
        out.show({"job_id": job, "phase": phase.value}, output, {})


def pause(
    root: typer.Context, job: JobId, master: Master = "", context: ContextName = "", output: Output = Format.TABLE
) -> None:
    """Give a job's workers to other jobs until it is resumed. Its weights stay on the parameter servers."""
    with reached(root, master=master, context=context) as client:
        phase = client.pause(job)
    _say_phase(job, f"{phase.value} (paused)", phase, output)


def _say_phase(job: str, words: str, phase: Phase, output: Format) -> None:
    if output is Format.TABLE:
        print(f"{job} {words}")
    else:
        out.show({"job_id": job, "phase": phase.value}, output, {})


def workers(root: typer.Context, master: Master = "", context: ContextName = "", output: Output = Format.TABLE) -> None:
    """List the cluster's workers."""
    with reached(root, master=master, context=context) as client:
        out.show([out.worker_document(worker) for worker in client.workers()], output, out.WORKER_COLUMNS)


def parameter_servers(
    root: typer.Context, master: Master = "", context: ContextName = "", output: Output = Format.TABLE
) -> None:
    """List the cluster's parameter servers."""
    with reached(root, master=master, context=context) as client:
        out.show([out.server_document(server) for server in client.parameter_servers()], output, out.SERVER_COLUMNS)


def download(
    root: typer.Context,
    job: JobId,
    folder: Annotated[Path, typer.Argument(help="Where to save config.json and model.safetensors.")],
    master: Master = "",
    context: ContextName = "",
    output: Output = Format.TABLE,
) -> None:
    """Save a finished job's model."""
    with reached(root, master=master, context=context) as client:
        saved = client.download(job, folder)
    document = {"folder": str(saved.folder), "weights_sha256": saved.weights_sha256, "size": saved.size}
    out.show_one(document, output)


def validate(
    spec: SpecFile,
    output: Output = Format.TABLE,
) -> None:
    """Check a job's spec without a cluster. -o yaml and -o json print it with every field."""
    checked = read_spec(spec)
    if output is Format.TABLE:
        print(f"{spec}: valid")
    else:
        out.show(checked.model_dump(mode="json"), output, {})


def schema() -> None:
    """Print the JSON schema of job specs."""
    from shoal.jobspec.spec import JobSpec

    out.show(JobSpec.model_json_schema(), Format.JSON, {})


def _watch(client: Client, job_id: str, output: Format) -> None:
    last: JobView | None = None
    with display() as shown:
        for last in client.watch(job_id):
            shown.update(last)
    if last is None:
        raise DeadlineExceeded(f"nothing was told of job {job_id}")
    _show_job(last, output)
    _exit_by(last)


def _show_job(job: JobView, output: Format) -> None:
    out.show(out.job_row(job) if output is Format.TABLE else out.job_document(job), output, out.JOB_COLUMNS)


def _exit_by(job: JobView) -> None:
    code = of_phase(job.phase)
    if code is Exit.JOB_FAILED:
        out.say(f"error: job {job.job_id} failed: {failure_of(job)}; see 'shoal logs {job.job_id}'")
    raise typer.Exit(code)


def failure_of(job: JobView) -> str:
    """Why a job failed, as one line."""
    told = [*(job.results.errors if job.results else ()), job.message, job.reason]
    return " ".join(next((text for text in told if text), "no reason given").split())


def _phase(text: str) -> Phase:
    try:
        return Phase(text.upper())
    except ValueError as error:
        raise InvalidInput(f"phase '{text}': one of {', '.join(p.value for p in Phase)} is expected") from error
