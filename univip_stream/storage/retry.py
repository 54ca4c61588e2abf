"""How often a request is made, and what is said when it fails."""

import time
from collections.abc import Callable
from typing import TypeVar

TRIES = 4
"""How often a request is made before its error counts; waits between them double from FIRST_WAIT."""
FIRST_WAIT = 0.25
"""Seconds."""
_Result = TypeVar("_Result")


class PassingError(Exception):
    """An error that can pass; its cause is what went wrong, said for people."""


def failure(kind: type[OSError], location: object, says: str, *, passing: bool = False) -> OSError:
    """An error of this kind that says where and what; `strerror` is the what alone, as operating systems have it.

    Args:
        kind: FileNotFoundError, PermissionError, ...
        location: where.
        says: what.
        passing: whether the same request may succeed later.

    """
    error = kind(f"{location}: {says}")
    error.strerror = says
    error.__dict__["may_pass"] = passing
    return error


def may_pass(error: BaseException) -> bool:
    """Whether an error that `failure` made may be gone the next time."""
    return bool(error.__dict__.get("may_pass", False))


def tried(request: Callable[[], _Result]) -> _Result:
    """The request's result; made again after a `PassingError`, whose cause is raised at last."""
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
