"""End requests to object stores that would never end: a client that has no time limit of its own waits in a thread.

pyarrow's clients give up on a store that is silent, but not on one that sends a byte now and then, and nothing stops them from
outside. So who waits leaves after a while, and the request stays behind in its thread. A process with such a request left
ends without it: the client's own end would wait for it, for ever.
"""

import atexit
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from univip_stream.storage.retry import failure

PATIENCE = 120.0
"""Seconds that a request to an object store may take, all tries together, beside those for its bytes."""
SLOWEST = 4096
"""Bytes per second that are waited for: a home connection of 100 Mbit/s that 2,000 reads share gives each 6 kB/s."""
_Result = TypeVar("_Result")

_left_behind: set[threading.Thread] = set()
_waited_for: set["_Call"] = set()
_exit_status: int | None = None


class Limit:
    """The time that a request, with all its tries, may take.

    Args:
        location: location that is accessed, for the error.
        seconds: time limit, beside the time for bytes; None is PATIENCE.

    """

    def __init__(self, location: str, seconds: float | None = None) -> None:
        self._location, self._began = location, time.monotonic()
        self._seconds = PATIENCE if seconds is None else seconds
        self._bytes: int | None = None

    def allow_for(self, size: int) -> None:
        """Add the time that the request may take for so many bytes; they may become known while it runs."""
        self._bytes = size

    def _whole(self) -> float:
        return self._seconds + (self._bytes or 0) / SLOWEST

    def carry_out(self, request: Callable[[], _Result]) -> _Result:
        """Return the request's result.

        Raises:
            TimeoutError: it takes longer.
            OSError: `give_up` was called meanwhile.

        """
        call = _Call(request)
        thread = threading.Thread(target=call.run, daemon=True, name="univip-stream store")
        _waited_for.add(call)
        try:
            thread.start()
            while not call.ended.wait(max(0.0, left := self._began + self._whole() - time.monotonic())):
                if left <= 0:
                    size = "" if self._bytes is None else f" for {self._bytes} bytes"
                    raise failure(TimeoutError, self._location, f"it takes longer than {self._whole():.3g} s{size}")
            if call.given_up:
                raise failure(OSError, self._location, "the request was called off")
        finally:
            _waited_for.discard(call)
            if thread.is_alive() and not call.done:
                _leave(thread)
        if call.error is not None:
            raise call.error
        result: _Result = call.result
        return result


def give_up() -> None:
    """End the waiting for all requests of this process; the calls fail."""
    for call in list(_waited_for):
        call.given_up = not call.done
        call.ended.set()


def ends_with(status: int) -> None:
    """Say which exit status this process will have; without it, one that leaves a request behind ends with 1."""
    global _exit_status
    _exit_status = status


class _Call:
    """A request, and what has become of it."""

    def __init__(self, request: Callable[[], Any]) -> None:
        self.ended = threading.Event()
        self.done = self.given_up = False
        self.result: Any = None
        self.error: BaseException | None = None
        self._request = request

    def run(self) -> None:
        try:
            self.result = self._request()
        except BaseException as error:  # it is raised where it is waited for
            self.error = error
        self.done = True
        self.ended.set()


def _leave(thread: threading.Thread) -> None:
    """Leave a request behind. From here on, this process does not end as pyarrow would have it."""
    _left_behind.add(thread)
    for finalize in _finalizers():
        atexit.unregister(finalize)


def _finalizers() -> list[Callable[[], None]]:
    """Return the functions that wait for the requests of pyarrow's S3 client; which of them it calls depends on its version."""
    from pyarrow import fs

    return [vars(fs)[name] for name in ("ensure_s3_finalized", "finalize_s3") if name in vars(fs)]


@atexit.register  # so early that what other parts of the program do at the end comes before it
def _end() -> None:
    """End the process now if a request is left, with the status that is known."""
    if not _left_behind:
        return
    if any(thread.is_alive() for thread in _left_behind):
        if _exit_status is None:
            print("univip-stream: a request to an object store never ended; the process ends without it", file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none
                stream.flush()
        os._exit(1 if _exit_status is None else _exit_status)
    for finalize in _finalizers()[:1]:
        finalize()


def _forget() -> None:
    _left_behind.clear()
    _waited_for.clear()


os.register_at_fork(after_in_child=_forget)
