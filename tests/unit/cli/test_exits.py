import inspect

import pytest

from shoal.cli.exits import Exit, of_error, of_phase
from shoal.core import errors
from shoal.core.job import Phase


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidInput("x"), 2),
        (errors.Forbidden("x"), 2),
        (errors.AlreadyExists("x"), 2),
        (errors.TrainingFailed("x"), 100),
        (errors.Refused("x"), 101),
        (errors.NotFound("x"), 102),
        (errors.DeadlineExceeded("x"), 124),
        (errors.Unavailable("x"), 1),
        (errors.Corrupt("x"), 1),
        (errors.Internal("x"), 1),
    ],
)
def test_errors_have_their_codes(error, code):
    assert of_error(error) == code


def test_no_error_looks_like_success():
    for _, cls in inspect.getmembers(errors, inspect.isclass):
        if issubclass(cls, errors.ShoalError):
            assert of_error(cls("x")) is not Exit.OK


def test_phases_have_their_codes():
    assert {phase: of_phase(phase).value for phase in Phase} == {
        Phase.PENDING: 101,
        Phase.STARTING: 101,
        Phase.RUNNING: 101,
        Phase.RECOVERING: 101,
        Phase.SUCCEEDED: 0,
        Phase.FAILED: 100,
        Phase.CANCELLED: 103,
    }
