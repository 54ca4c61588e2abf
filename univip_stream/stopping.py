"""Stop a job that cannot note a signal and go on to a good place, as training does: by an exception where it is."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stopped(KeyboardInterrupt):
    """SIGTERM or Ctrl-C came.

    A class of its own for the exit status. Python remembers a KeyboardInterrupt that leaves the `exec` of a string, which is how
    named tuples and dataclasses are made while libraries are imported, and `python -m` then ends by SIGINT, whatever status the
    program gave after catching it. Only this very class is remembered (run_eval_code_obj in CPython 3.11 and 3.12).
    """


@contextmanager
def stoppable() -> Iterator[None]:
    """While inside: SIGTERM and Ctrl-C raise Stopped. Without effect in threads, since signals belong to the main one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, _stop)}
    # What ignores Ctrl-C (`nohup`, a job in a shell's background) or answers it in its own way goes on doing so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: Any) -> None:
    raise Stopped
