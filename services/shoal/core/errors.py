"""Every error Shoal raises on purpose, on one page.

The message is one line for people: what is wrong, where, and what to do. `wire/status.py` maps each class to a
gRPC status and back, so that a client raises the class that the server raised. "Absent" (`NotFound`) and "could
not ask" (`Unavailable`) are different types.
"""


class ShoalError(Exception):
    """Root of the tree. Catch a subclass wherever you can name it."""


class InvalidInput(ShoalError):
    """The caller's input is wrong and stays wrong when repeated. `field` names the place, '' where there is none."""

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class NotFound(ShoalError):
    """A job, worker, layer or file with that name does not exist here."""


class AlreadyExists(ShoalError):
    """The name or the idempotency key is taken by something else."""


class Stale(ShoalError):
    """The caller belongs to an attempt, incarnation or revision that has been fenced off; it must stop."""


class FencedOff(Stale):
    """The caller's incarnation has been counted as dead: nothing of it counts any more, whatever the attempt.

    It drops what it has and begins anew, under another incarnation.
    """


class Refused(ShoalError):
    """A well-formed request that the present state does not allow (a version not due, a job that has ended)."""


class Missed(ShoalError):
    """The moment that the caller asked for is over (a version that has passed); it may ask for a later one."""


class Forbidden(ShoalError):
    """A path outside the configured roots or a scheme that is not allowed."""


class Exhausted(ShoalError):
    """A bound (slots, queue, size) is reached; trying later may work: not before `retry_after_seconds`, if given."""

    def __init__(self, message: str, *, retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Unavailable(ShoalError):
    """The other side could not be asked: not reachable, gone, or shutting down."""


class Deposed(Unavailable):
    """The master that was asked, or that asks, may not go on: another leads, or it cannot be sure that none does.

    It stops. To a client the same as `Unavailable`: ask again, and the one that leads answers.
    """


class DeadlineExceeded(ShoalError):
    """No answer within the time given. Whether the request took effect is unknown."""


class Corrupt(ShoalError):
    """Bytes that do not have the length, checksum or form that they must have."""


class Internal(ShoalError):
    """A fault of Shoal itself, seen from a client."""


class TrainingFailed(ShoalError):
    """The job's own code or data failed: a trainer's exception, a loss that is not finite."""


class NotInstalled(ShoalError):
    """What was asked for needs an optional part of the installation; the message says which and how to get it."""
