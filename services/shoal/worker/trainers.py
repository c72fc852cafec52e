"""Trainer processes: started, spoken to, listened to, ended."""

import asyncio
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from shoal.core.errors import Corrupt, Exhausted
from shoal.process.lifetime import DIE_WITH_PARENT
from shoal.process.load import memory_limit_bytes, oom_kills
from shoal.worker.control import (
    DATA_ROOTS_VARIABLE,
    REPORT_FD_VARIABLE,
    Advanced,
    Assignment,
    Beat,
    Failed,
    Fenced,
    Finished,
    Message,
    from_line,
    to_line,
)

LAST_LINES = 20  # of a trainer's output that go into a job's errors
_LINE_BYTES = 1 << 16  # of output
_REPORT_BYTES = 1 << 24  # of one report: the times of all units of a step, 65,536 at most, and more
_KILL_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LogEntry:
    unix_seconds: float
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Crashed:
    """The process ended without saying how the job ended. `returncode` < 0: by that signal."""

    returncode: int
    last_lines: tuple[str, ...]
    hung_seconds: float = 0.0  # without a sign of life, for which its agent killed it
    out_of_memory: bool = False  # the kernel ended it because the container's memory ran out

    @property
    def by_signal(self) -> bool:
        return self.returncode < 0

    def in_one_line(self) -> str:
        if self.out_of_memory:
            limit = memory_limit_bytes()
            whose = f"the container's limit of {limit >> 20} MiB" if limit else "the machine"
            return f"the trainer was killed by the kernel: out of memory ({whose})"
        if self.hung_seconds:
            return f"the trainer made no progress for {self.hung_seconds:.1f} s and was killed"
        if self.by_signal:
            return f"the trainer was killed by {_signal_name(-self.returncode)}"
        return f"the trainer ended with exit code {self.returncode}"

    def describe(self) -> str:
        tail = "\n".join(self.last_lines)
        return self.in_one_line() + (f"; its last lines:\n{tail}" if tail else "")


Ending = Finished | Failed | Fenced | Crashed


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most of the real-time signals have no name
        return f"signal {number}"


class TrainerProcess:
    """One process. It waits, warm, until the first assignment comes."""

    def __init__(self, process: asyncio.subprocess.Process, reports: asyncio.StreamReader) -> None:
        self._process = process
        self._reports = reports
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._stopped = False
        self._silent_seconds = 0.0
        self._hung_seconds = 0.0
        self._oom_kills = oom_kills()
        self.assignment: Assignment | None = None
        self.advanced: Advanced | None = None
        self.entries: deque[LogEntry] = deque(maxlen=10_000)  # not handed to the master yet

    @classmethod
    async def start(cls, *, data_roots: tuple[Path, ...]) -> "TrainerProcess":
        """Raises Exhausted where this machine has no room for one more process, pipe or file."""
        try:
            return await cls._start(data_roots)
        except OSError as error:
            raise Exhausted(f"no trainer can be started on this worker: {error.strerror or error}") from error

    @classmethod
    async def _start(cls, data_roots: tuple[Path, ...]) -> "TrainerProcess":
        read_end, write_end = os.pipe()
        try:
            environment = {
                **os.environ,
                REPORT_FD_VARIABLE: str(write_end),
                DATA_ROOTS_VARIABLE: os.pathsep.join(str(root) for root in data_roots),
                DIE_WITH_PARENT: str(os.getpid()),
                "PYTHONUNBUFFERED": "1",
                "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # torch asks for it before deterministic CUDA kernels
            }
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "shoal.worker.trainer",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=(write_end,),
                env=environment,
                limit=_LINE_BYTES,
            )
        except OSError:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        reports = asyncio.StreamReader(limit=_REPORT_BYTES)
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reports), os.fdopen(read_end, "rb")
        )
        return cls(process, reports)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    def assign(self, assignment: Assignment) -> None:
        """Starts the job, or moves its ranks."""
        self.assignment = assignment
        assert self._process.stdin is not None
        if not self._process.stdin.is_closing():
            self._process.stdin.write(to_line(assignment))

    def beat(self, lease_seconds: float) -> None:
        """Tells it that this agent lives. One that does not read gets no more than fits into the pipe."""
        assert self._process.stdin is not None
        if not self._process.stdin.is_closing() and not self._process.stdin.transport.get_write_buffer_size():
            self._process.stdin.write(to_line(Beat(lease_seconds=lease_seconds)))

    def silent_for(self, seconds: float) -> float:
        """How long it has given no sign of life, of which `seconds` have passed since the last question."""
        self._silent_seconds += seconds
        return self._silent_seconds

    def kill_hung(self, seconds: float) -> None:
        if self.alive:
            self._hung_seconds = seconds
            self._process.kill()

    async def follow(self, on_advance: Callable[[Advanced], None]) -> Ending:
        """Listens until the process has ended; says how."""
        ending: Ending | None = None
        output = asyncio.create_task(self._read_output(), name=f"trainer-output-{self.pid}")
        while line := await self._reports.readline():
            message = self._parse(line)
            self._silent_seconds = 0.0
            if isinstance(message, Advanced):
                self.advanced = message
                on_advance(message)
            elif isinstance(message, Finished | Failed | Fenced):
                ending = message
        await output
        returncode = await self._process.wait()
        if ending is not None:
            return ending
        if self._stopped:
            return Fenced(reason="stopped by the agent")
        before, now = self._oom_kills, oom_kills()
        counted = before is not None and now is not None and now > before
        out_of_memory = returncode == -signal.SIGKILL and counted
        return Crashed(
            returncode=returncode,
            last_lines=tuple(self._lines),
            hung_seconds=self._hung_seconds,
            out_of_memory=out_of_memory and not self._hung_seconds,
        )

    async def stop(self) -> None:
        """Ends the process; it holds nothing that would have to be saved."""
        self._stopped = True
        if self.alive:
            self._process.kill()
        try:
            await asyncio.wait_for(self._process.wait(), _KILL_SECONDS)
        except TimeoutError:
            structlog.get_logger().error("trainer_does_not_die", pid=self.pid)

    def _parse(self, line: bytes) -> Message | None:
        try:
            return from_line(line)
        except Corrupt as error:
            structlog.get_logger().error("trainer_message_corrupt", pid=self.pid, error=str(error))
            return None

    async def _read_output(self) -> None:
        assert self._process.stdout is not None
        while True:
            try:
                line = await self._process.stdout.readline()
            except ValueError:  # longer than the limit: the rest of it follows as further lines
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self._lines.append(text)
            self.entries.append(LogEntry(unix_seconds=time.time(), text=text))


class WarmTrainers:
    """Keeps some processes ready, so that a job's first step does not wait for torch to load."""

    def __init__(self, *, count: int, data_roots: tuple[Path, ...]) -> None:
        self._count = count
        self._data_roots = data_roots
        self._ready: deque[TrainerProcess] = deque()
        self._closed = False
        self._changing = asyncio.Lock()
        self._refills: set[asyncio.Task[None]] = set()

    async def refill(self) -> bool:
        """False: the machine has no room for all of them now."""
        try:
            await self._keep(self._count)
        except Exhausted as error:
            structlog.get_logger().warning("no_warm_trainer", error=str(error))
            return False
        return True

    async def _keep(self, count: int) -> None:
        """In a task of its own: a process that is being started is not lost when the caller is cancelled."""
        refill = asyncio.create_task(self._start_up_to(count), name="warm-trainers")
        self._refills.add(refill)
        refill.add_done_callback(self._refills.discard)
        await asyncio.shield(refill)

    async def _start_up_to(self, count: int) -> None:
        async with self._changing:
            self._ready = deque(trainer for trainer in self._ready if trainer.alive)
            while len(self._ready) < count and not self._closed:
                trainer = await TrainerProcess.start(data_roots=self._data_roots)
                self._ready.append(trainer)

    async def take(self) -> TrainerProcess:
        """Raises Exhausted where none is ready and none can be started."""
        while not self._closed:
            while self._ready:
                trainer = self._ready.popleft()
                if trainer.alive:
                    return trainer
            await self._keep(max(1, self._count))
        return await TrainerProcess.start(data_roots=self._data_roots)

    async def close(self) -> None:
        self._closed = True
        async with self._changing:
            for trainer in self._ready:
                await trainer.stop()
                await trainer.follow(lambda _: None)
            self._ready.clear()
