"""Retries of requests, and the errors when they fail."""

import time
from collections.abc import Callable
from typing import TypeVar

TRIES = 4
"""Number of tries before an error is raised; the waits between them double from FIRST_WAIT."""
FIRST_WAIT = 0.25
"""Seconds of the first wait."""
_Result = TypeVar("_Result")


class PassingError(Exception):
    """A possibly temporary error; its cause is the error to report."""


def failure(kind: type[OSError], location: object, reason: str, *, passing: bool = False) -> OSError:
    """Return an error of this class that names the location and the reason; `strerror` is the reason alone, as usual.

    Args:
        kind: FileNotFoundError, PermissionError, ...
        location: location that was accessed.
        reason: reason.
        passing: whether the same request may succeed later.

    """
    error = kind(f"{location}: {reason}")
    error.strerror = reason
    error.__dict__["may_pass"] = passing
    return error


def may_pass(error: BaseException) -> bool:
    """Whether an error made by `failure` may be temporary."""
    return bool(error.__dict__.get("may_pass", False))


def tried(request: Callable[[], _Result]) -> _Result:
    """Return the request's result; repeat it after a `PassingError`, and raise its cause after the last try."""
    wait = FIRST_WAIT
    for left in reversed(range(TRIES)):
        try:
            return request()
        except PassingError as error:
            if left == 0 and error.__cause__ is not None:
                raise error.__cause__ from error.__cause__.__cause__
        time.sleep(wait)
        wait *= 2
    raise AssertionError("the loop returns or raises")
