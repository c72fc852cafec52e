"""The client of one master."""

import json
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from shoal.core.errors import DeadlineExceeded, Exhausted, InvalidInput, ShoalError, Unavailable
from shoal.core.job import Phase
from shoal.jobspec.reading import parse_spec, validate_spec
from shoal.jobspec.spec import JobSpec
from shoal.process.clock import Clock, SystemClock
from shoal.sdk.extras import needs
from shoal.sdk.retrying import Listener, Patience
from shoal.sdk.views import JobView, LogLine, ParameterServerView, SavedModel, SnapshotView, WorkerView
from shoal.wire.options import open_outside_channel
from shoal.wire.status import raised_from_call, was_cut_off
from shoal.wire.v1 import jobs_pb2, jobs_pb2_grpc

DEFAULT_ADDRESS = "127.0.0.1:7070"
DEFAULT_ADVICE = "start one with 'shoal up', or give its address"
STREAM_SECONDS = 3600.0  # deadline of one stream; a longer watch goes on with the next one

Answer = TypeVar("Answer")
Answer_co = TypeVar("Answer_co", covariant=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Submitted:
    job_id: str
    created: bool  # False: the idempotency key had been used for this spec before


class _Stream(Protocol[Answer_co]):
    """A call that answers with several messages."""

    def __iter__(self) -> Iterator[Answer_co]: ...

    def cancel(self) -> bool: ...


class Client:
    """Synchronous and thread-safe. Connects at the first call.

    Every call has a deadline, `timeout_seconds`. Calls are safe to repeat (submit has its idempotency key), so a
    master that does not answer is asked again for `retry_seconds`, and one that says when to come again then, not
    before; `submit`, `watch`, `wait`, `logs` and `download`
    outlive an absence of `patience_seconds`, as of a port-forward that broke, and go on where they were; `listener`
    hears of it. Errors are those of `shoal.core.errors`: `Unavailable` means that nobody could be asked; its message
    ends with `advice`, which says what to do about it.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout_seconds: float = 10.0,
        retry_seconds: float = 3.0,
        patience_seconds: float = 60.0,
        advice: str = DEFAULT_ADVICE,
        listener: Listener | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._host, self._port = _checked(address)
        self.address = address
        self._timeout_seconds = timeout_seconds
        self._retry_seconds = retry_seconds
        self._patience_seconds = patience_seconds
        self._advice = advice
        self._listener = listener
        self._clock = clock or SystemClock()
        self._closed = threading.Event()
        self._channel = open_outside_channel(self.address)
        self._jobs = jobs_pb2_grpc.JobServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends streams and pauses of other threads, too."""
        self._closed.set()
        self._channel.close()

    def reach(self) -> None:
        """Returns once somebody listens at the address: a master, or a forward to one.

        For those who would rather hear at once that nobody is there than after the patience of the calls that have
        it. Raises Unavailable after `retry_seconds`.
        """
        patience = Patience(self._clock, self._retry_seconds)
        while True:
            try:
                socket.create_connection((self._host, self._port), timeout=self._timeout_seconds).close()
                return
            except OSError as error:
                unreachable = self._unreachable()
                unreachable.__cause__ = error
                self._pause(patience, unreachable)

    def submit(
        self, spec: JobSpec | Mapping[str, Any] | str | Path, *, idempotency_key: str | None = None
    ) -> Submitted:
        """Hands in a job: a spec, a mapping, or the path of a YAML file. Returns once it is stored for good.

        Repeating it with the same `idempotency_key` gives the same job; without one, each submit makes a new job.
        Raises InvalidInput naming the field.
        """
        request = jobs_pb2.SubmitRequest(
            spec_json=_as_json(spec), idempotency_key=idempotency_key or f"sdk-{uuid.uuid4().hex}"
        )
        answer = self._ask(lambda: self._jobs.Submit(request, timeout=self._timeout_seconds), self._patience())
        return Submitted(job_id=answer.job_id, created=answer.created)

    def validate(self, spec: JobSpec | Mapping[str, Any] | str | Path) -> dict[str, Any]:
        """The spec with the cluster's defaults filled in. Raises InvalidInput naming the field."""
        request = jobs_pb2.ValidateRequest(spec_json=_as_json(spec))
        answer = self._ask(lambda: self._jobs.Validate(request, timeout=self._timeout_seconds))
        resolved: dict[str, Any] = json.loads(answer.resolved_spec_json)
        return resolved

    def get(self, job_id: str, *, with_losses: bool = False) -> JobView:
        """Raises NotFound."""
        request = jobs_pb2.GetRequest(job_id=job_id, with_losses=with_losses)
        return JobView.from_proto(self._ask(lambda: self._jobs.Get(request, timeout=self._timeout_seconds)))

    def list(self, *, phases: tuple[Phase, ...] = (), limit: int = 0) -> tuple[JobView, ...]:
        """Newest first. No phases: all; limit 0: all."""
        request = jobs_pb2.ListRequest(phases=[phase.value for phase in phases], limit=limit)
        answer = self._ask(lambda: self._jobs.List(request, timeout=self._timeout_seconds))
        return tuple(map(JobView.from_proto, answer.jobs))

    def watch(self, job_id: str, *, timeout: float | None = None) -> Iterator[JobView]:
        """The job now and at each change, until it has ended. Goes on over a broken connection.

        Raises DeadlineExceeded after `timeout` seconds, NotFound.
        """
        deadline = None if timeout is None else self._clock.monotonic() + timeout
        request = jobs_pb2.WatchRequest(job_id=job_id)
        patience = self._patience()
        while True:
            try:
                for message in self._resumed(
                    lambda seconds: self._jobs.Watch(request, timeout=seconds), patience, deadline=deadline
                ):
                    job = JobView.from_proto(message)
                    yield job
                    if job.ended:
                        return
            except DeadlineExceeded as error:
                raise DeadlineExceeded(f"job {job_id} has not ended after {timeout:g} s") from error
            self._pause(patience, Unavailable(f"the master at {self.address} ended the watch of job {job_id}"))

    def wait(self, job_id: str, *, timeout: float | None = None) -> JobView:
        """The job once it has ended. Raises DeadlineExceeded after `timeout` seconds, NotFound."""
        for job in self.watch(job_id, timeout=timeout):
            last = job
        return last

    def cancel(self, job_id: str) -> Phase:
        """Returns the phase afterwards: a job that had ended stays as it was. Raises NotFound."""
        request = jobs_pb2.CancelRequest(job_id=job_id)
        return Phase(self._ask(lambda: self._jobs.Cancel(request, timeout=self._timeout_seconds)).phase)

    def pause(self, job_id: str) -> Phase:
        """Gives its workers to other jobs; its weights stay. Raises NotFound, or Refused for a job that has ended."""
        request = jobs_pb2.PauseRequest(job_id=job_id)
        return Phase(self._ask(lambda: self._jobs.Pause(request, timeout=self._timeout_seconds)).phase)

    def resume(self, job_id: str, *, from_step: int | None = None) -> Phase:
        """Lets a paused job go on, or one that was cancelled or has failed: from its newest snapshot, or from that of
        a step; 0 begins it again. Returns the phase afterwards. Raises NotFound or Refused.
        """
        request = jobs_pb2.ResumeRequest(job_id=job_id, from_step=from_step)
        return Phase(self._ask(lambda: self._jobs.Resume(request, timeout=self._timeout_seconds)).phase)

    def snapshots(self, job_id: str) -> tuple[SnapshotView, ...]:
        """The states that the job can go on from, newest first. Raises NotFound."""
        request = jobs_pb2.ListSnapshotsRequest(job_id=job_id)
        answer = self._ask(lambda: self._jobs.ListSnapshots(request, timeout=self._timeout_seconds))
        return tuple(map(SnapshotView.from_proto, answer.snapshots))

    def logs(self, job_id: str, *, follow: bool = False, after: int = 0) -> Iterator[LogLine]:
        """The lines kept, behind sequence number `after`; with `follow` also new ones until the job has ended.

        Goes on over a broken connection without losing or repeating a line. Raises NotFound.
        """

        def open_stream(seconds: float) -> _Stream[jobs_pb2.LogsResponse]:
            request = jobs_pb2.LogsRequest(job_id=job_id, follow=follow, after=after)
            return self._jobs.Logs(request, timeout=seconds)

        for message in self._resumed(open_stream, self._patience(), deadline=None):
            after = message.sequence
            yield LogLine.from_proto(message)

    def workers(self) -> tuple[WorkerView, ...]:
        request = jobs_pb2.ListWorkersRequest()
        answer = self._ask(lambda: self._jobs.ListWorkers(request, timeout=self._timeout_seconds))
        return tuple(map(WorkerView.from_proto, answer.workers))

    def parameter_servers(self) -> tuple[ParameterServerView, ...]:
        request = jobs_pb2.ListParameterServersRequest()
        answer = self._ask(lambda: self._jobs.ListParameterServers(request, timeout=self._timeout_seconds))
        return tuple(map(ParameterServerView.from_proto, answer.servers))

    def download(self, job_id: str, folder: str | Path) -> SavedModel:
        """Saves a finished job's model as config.json and model.safetensors. Returns what was saved.

        Goes on over a broken connection at the byte where it was. Every shard's file is checked (size, sha256, no
        element missing), and the whole against the sha256 that the job reported. Raises Refused (not finished),
        NotFound, Corrupt, InvalidInput or Exhausted (the folder cannot be written), NotInstalled.
        """
        with needs("download", "to download a model"):
            from shoal.sdk.download import Assembly

        with Assembly(Path(folder)) as assembly:

            def open_stream(seconds: float) -> _Stream[jobs_pb2.DownloadResponse]:
                position = assembly.position
                request = jobs_pb2.DownloadRequest(job_id=job_id, file_name=position.file_name, offset=position.offset)
                return self._jobs.Download(request, timeout=seconds)

            for message in self._resumed(
                open_stream, self._patience(), deadline=None, advances=lambda message: bool(message.data)
            ):
                assembly.take(message)
            return assembly.save()

    def _patience(self) -> Patience:
        """That of what outlives an absence."""
        return Patience(self._clock, self._patience_seconds, self._listener)

    def _ask(self, call: Callable[[], Answer], patience: Patience | None = None) -> Answer:
        """One call, repeated while the master does not answer."""
        patience = patience or Patience(self._clock, self._retry_seconds)
        patience.asked()
        while True:
            try:
                with self._explained():
                    answer = call()
            except (Unavailable, Exhausted) as error:
                self._pause(patience, error)
            except DeadlineExceeded as error:  # as of a forward that is frozen: it may have taken effect
                late = DeadlineExceeded(f"the master at {self.address} has not answered in {self._timeout_seconds:g} s")
                late.__cause__ = error
                self._pause(patience, late)
            else:
                patience.answered()
                return answer

    def _resumed(
        self,
        open_stream: Callable[[float], _Stream[Answer]],
        patience: Patience,
        *,
        deadline: float | None,
        advances: Callable[[Answer], bool] | None = None,
    ) -> Iterator[Answer]:
        """A stream's messages; it is opened again when it is cut off, until the master ends it.

        `open_stream` gets the stream's deadline in seconds. Only messages that it `advances` by, where that is given,
        show that the other side is there. Raises DeadlineExceeded once `deadline` has passed.
        """
        while True:
            left = STREAM_SECONDS if deadline is None else min(deadline - self._clock.monotonic(), STREAM_SECONDS)
            if left <= 0:
                raise DeadlineExceeded("the time given is over")
            try:
                with self._explained():
                    stream = open_stream(left)
                    try:
                        for message in stream:
                            if advances is None or advances(message):
                                patience.answered()
                            yield message
                        return
                    finally:
                        stream.cancel()
            except DeadlineExceeded as error:  # this stream's own, or the master's
                if advances is not None:
                    self._pause(patience, error)
            except (Unavailable, Exhausted) as error:
                self._pause(patience, error)

    def _pause(self, patience: Patience, error: Unavailable | DeadlineExceeded | Exhausted) -> None:
        """Raises the error once there is no patience left. A bound that gives no time to come again is final."""
        asked = error.retry_after_seconds if isinstance(error, Exhausted) else 0.0
        if isinstance(error, Exhausted) and not asked:
            raise error
        seconds = patience.pause_seconds(str(error), at_least=asked)
        if seconds is None or self._closed.wait(seconds):
            raise error

    def _unreachable(self) -> Unavailable:
        return Unavailable(f"the master at {self.address} cannot be reached; {self._advice}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Around a call: the server's error, or what to do if there is no server."""
        if self._closed.is_set():
            raise Unavailable("this client has been closed")
        try:
            with raised_from_call():
                yield
        except ShoalError as error:
            if was_cut_off(error):
                raise self._unreachable() from error
            raise


def _checked(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise InvalidInput(f"address '{address}': HOST:PORT is expected, such as {DEFAULT_ADDRESS}", field="address")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _as_json(spec: JobSpec | Mapping[str, Any] | str | Path) -> str:
    """Checked here already, so that errors name the file and the line."""
    if isinstance(spec, JobSpec):
        return spec.model_dump_json()
    if isinstance(spec, Mapping):
        return validate_spec(spec).model_dump_json()
    return read_spec(Path(spec)).model_dump_json()


def read_spec(path: Path) -> JobSpec:
    """Reads a job's YAML file. Raises InvalidInput with the file's name and the line or field."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not text"
        raise InvalidInput(f"{path}: {reason}; give the path of a job's YAML file", field="spec") from error
    return parse_spec(text, origin=str(path))
