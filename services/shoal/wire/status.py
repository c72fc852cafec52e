"""One table between Shoal's errors and gRPC status codes, read both ways.

The class travels by name in the trailing metadata `shoal-error` (and `shoal-field`; `retry-after-ms` of a bound that
is reached), so a client raises exactly the class that the server raised; a peer that sends only a status gets the
table's class for it.
"""

import math
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NoReturn

import grpc

from shoal.core import errors

_ERROR_KEY = "shoal-error"
_FIELD_KEY = "shoal-field"
_RETRY_KEY = "retry-after-ms"

# The first row of a status is the class for a peer that names none.
TABLE: tuple[tuple[type[errors.ShoalError], grpc.StatusCode], ...] = (
    (errors.InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.NotFound, grpc.StatusCode.NOT_FOUND),
    (errors.AlreadyExists, grpc.StatusCode.ALREADY_EXISTS),
    (errors.Stale, grpc.StatusCode.ABORTED),
    (errors.FencedOff, grpc.StatusCode.ABORTED),
    (errors.Refused, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.TrainingFailed, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.Missed, grpc.StatusCode.OUT_OF_RANGE),
    (errors.Forbidden, grpc.StatusCode.PERMISSION_DENIED),
    (errors.Exhausted, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.Unavailable, grpc.StatusCode.UNAVAILABLE),
    (errors.Deposed, grpc.StatusCode.UNAVAILABLE),
    (errors.DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.Corrupt, grpc.StatusCode.DATA_LOSS),
    (errors.NotInstalled, grpc.StatusCode.UNIMPLEMENTED),
    (errors.Internal, grpc.StatusCode.INTERNAL),
)
_BY_NAME = {cls.__name__: cls for cls, _ in TABLE}
_BY_STATUS: dict[grpc.StatusCode, type[errors.ShoalError]] = {}
for _cls, _status in TABLE:
    _BY_STATUS.setdefault(_status, _cls)
_BY_STATUS[grpc.StatusCode.CANCELLED] = errors.Unavailable  # by the other side: a server that ends cancels its calls


def status_of(error: errors.ShoalError) -> grpc.StatusCode:
    for cls, status in TABLE:
        if isinstance(error, cls):
            return status
    return grpc.StatusCode.INTERNAL


def metadata_of(error: errors.ShoalError) -> tuple[tuple[str, str], ...]:
    entries = [(_ERROR_KEY, type(error).__name__)]
    if isinstance(error, errors.InvalidInput) and error.field:
        entries.append((_FIELD_KEY, error.field.encode("ascii", "replace").decode()))
    if isinstance(error, errors.Exhausted) and error.retry_after_seconds:
        entries.append((_RETRY_KEY, str(math.ceil(1000 * error.retry_after_seconds))))
    return tuple(entries)


def error_of(call: grpc.RpcError) -> errors.ShoalError:
    """The error that a failed call stands for; the call is let go of.

    A stream raises itself, so its traceback leads back to it. In that circle it would stay until Python searches for
    such, at the latest when the process ends: then gRPC takes a lock that a thread which is gone by then may hold, and
    the process would not end.
    """
    call.__traceback__ = None
    status: grpc.StatusCode = call.code()
    details: str = call.details() or status.name
    trailing = _trailing(call)
    cls = _BY_NAME.get(str(trailing.get(_ERROR_KEY, "")), _BY_STATUS.get(status, errors.Internal))
    if cls is errors.InvalidInput:
        return errors.InvalidInput(details, field=str(trailing.get(_FIELD_KEY, "")))
    if cls is errors.Exhausted:
        return errors.Exhausted(details, retry_after_seconds=_seconds_of(trailing.get(_RETRY_KEY, "")))
    return cls(details)


def _seconds_of(milliseconds: str) -> float:
    return int(milliseconds) / 1000 if milliseconds.isdecimal() else 0.0


def _trailing(call: grpc.RpcError) -> dict[str, str]:
    entries: Iterable[Any] = call.trailing_metadata() or ()  # pairs, of one type here and another in grpc.aio
    return {str(key): str(value) for key, value in entries}


def was_cut_off(error: errors.ShoalError) -> bool:
    """Did the call not get to the other side, or end with the connection? It may have taken effect or not."""
    call = error.__cause__
    if not isinstance(call, grpc.RpcError):
        return False
    return _ERROR_KEY not in _trailing(call) and call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@contextmanager
def raised_from_call() -> Iterator[None]:
    """Around a client's call: turns grpc.RpcError into the error that the server raised."""
    try:
        yield
    except grpc.RpcError as error:
        raise error_of(error) from error


def abort_with(context: grpc.ServicerContext, error: errors.ShoalError) -> NoReturn:
    """Ends a synchronous server's call with the error's status."""
    context.set_trailing_metadata(metadata_of(error))
    context.abort(status_of(error), str(error))
    raise AssertionError("abort raises")


@contextmanager
def answered(context: grpc.ServicerContext) -> Iterator[None]:
    """Around a synchronous servicer's body: a ShoalError becomes a status."""
    try:
        yield
    except errors.ShoalError as error:
        abort_with(context, error)


@asynccontextmanager
async def answered_async(context: "grpc.aio.ServicerContext[Any, Any]") -> AsyncIterator[None]:
    """Around an asyncio servicer's body: a ShoalError becomes a status."""
    try:
        yield
    except errors.ShoalError as error:
        context.set_trailing_metadata(metadata_of(error))
        await context.abort(status_of(error), str(error))
