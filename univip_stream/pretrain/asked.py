"""Being asked to stop: SIGTERM and Ctrl-C are noted and answered between two steps, and while the run waits."""

import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

_Item = TypeVar("_Item")
_AT_ONCE = 0.001
"""Seconds; 0 would be no alarm."""


class Interrupted(Exception):  # noqa: N818 - it is no error
    """The run was asked to stop (SIGTERM, Ctrl-C), saved, and can be continued."""

    exit_status = 75
    """Distinct from done and failed: sysexits' EX_TEMPFAIL, run it again."""


class WaitedEnoughError(BaseException):
    """The run was asked to stop, and what it waits for did not come. A BaseException, which no `except Exception` takes."""


class Asked:
    """Whether the run was asked to stop. A wait that goes on after that is ended, by WaitedEnoughError."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._patience: float | None = None
        self._signals = False

    def is_set(self) -> bool:
        """Return whether it was set."""
        return self._event.is_set()

    @contextmanager
    def waiting(self, patience: float = _AT_ONCE) -> Iterator[None]:
        """Within: when the run was asked to stop, now or before, what is done here may go on for `patience` seconds."""
        if not self._signals:
            yield
            return
        self._patience = patience
        if self.is_set():
            signal.setitimer(signal.ITIMER_REAL, patience)
        try:
            yield
        finally:
            self._patience = None
            signal.setitimer(signal.ITIMER_REAL, 0)

    def patiently(self, items: Generator[_Item, None, None], patience: float) -> Generator[_Item, None, None]:
        """Yield the items, waiting for each as `waiting` does. Closing it closes the iterator that the items come from."""
        try:
            while True:
                with self.waiting(patience):
                    item = next(items)
                yield item
        finally:
            items.close()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within: SIGTERM and the first Ctrl-C set this instead of killing; a second Ctrl-C kills."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals belong to the main thread; under Ray Train the launcher stops us
            return

        def note(number: int, frame: Any) -> None:
            if self.is_set() and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._event.set()
            if self._patience is not None:
                signal.setitimer(signal.ITIMER_REAL, self._patience)

        def enough(number: int, frame: Any) -> None:
            if self._patience is not None:
                raise WaitedEnoughError

        handlers = {signal.SIGTERM: note, signal.SIGINT: note, signal.SIGALRM: enough}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        self._signals = True
        try:
            yield
        finally:
            self._signals = False
            for number, handler in before.items():
                signal.signal(number, handler)
