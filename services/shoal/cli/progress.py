"""A job's progress on stderr: a live bar on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from shoal.core.job import Phase
from shoal.sdk import JobView

LINE_SECONDS = 5.0


class Display(Protocol):
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
    def update(self, job: JobView) -> None:
        """Shows the job as it is now."""

    def say(self, text: str) -> None:
        """A line above the bar."""


def display() -> Display:
    return _Bar() if sys.stderr.isatty() else _Lines()


class _Bar:
    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.fields[phase]:<10}"),
            BarColumn(),
            TextColumn("step {task.fields[step]}"),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("", total=None, phase="starting", step="-", figures="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, job: JobView) -> None:
        self._progress.update(
            self._task,
            total=job.total_steps,
            completed=job.step,
            phase=job.phase.value.lower(),
            step=f"{job.step}/{job.total_steps or '?'}",
            figures=_figures(job),
        )

    def say(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)


class _Lines:
    def __init__(self) -> None:
        self._phase: Phase | None = None
        self._next_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return

    def update(self, job: JobView) -> None:
        now = time.monotonic()
        if job.phase is self._phase and now < self._next_at:
            return
        self._phase, self._next_at = job.phase, now + LINE_SECONDS
        self.say(f"{job.phase.value.lower()}: step {job.step}/{job.total_steps or '?'}  {_figures(job)}".rstrip())

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _figures(job: JobView) -> str:
    figures = [] if job.loss is None else [f"loss {job.loss:.4f}"]
    if job.samples_per_second:
        figures.append(f"{job.samples_per_second:,.0f} samples/s")
    if job.workers:
        figures.append(f"{len(job.workers)} worker{'s' * (len(job.workers) != 1)}")
    if job.phase is Phase.PENDING and job.message:
        figures.append(job.message)
    return "  ".join(figures)
