"""The indexes that a process has open: those that it reads now, and the next ones, which threads load ahead."""

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

_AT_ONCE = 2
"""Number of indexes that are loaded at the same time; each thread keeps its own memory."""
_FEWEST = 16
"""Number of indexes that are kept if nobody announced which are needed."""
_T = TypeVar("_T")


class Opened(Generic[_T]):
    """Values by number, loaded when they are asked for and dropped when others are needed.

    It may be pickled or forked: threads and loaded values stay in the process that has them.

    Args:
        load: function that returns the value of a number. If it raises, the caller gets the error, and the next caller makes
            it try again.

    """

    def __init__(self, load: Callable[[int], _T]):
        self._load = load
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._found: OrderedDict[int, Future[_T]] = OrderedDict()
        self._wanted: frozenset[int] = frozenset()
        self._pool: ThreadPoolExecutor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_load": self._load}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._load = state["_load"]
        self._begin()

    def __getitem__(self, number: int) -> _T:
        if self._process != os.getpid():  # after a fork, the parent's threads and locks cannot be used
            self._begin()
        with self._lock:
            future = self._found.get(number)
            mine = future is None
            if future is None:
                future = self._found[number] = Future()
                self._drop_unused()
            else:
                self._found.move_to_end(number)
        if mine:
            try:
                future.set_result(self._load(number))
            except BaseException as error:
                with self._lock:
                    self._found.pop(number, None)
                future.set_exception(error)
        return future.result()

    def want(self, present: Iterable[int], coming: Iterable[int]) -> None:
        """Load what is read now and what comes next, in this order, in threads; anything else may be dropped."""
        if self._process != os.getpid():
            self._begin()
        in_order = dict.fromkeys([*present, *coming])
        with self._lock:
            self._wanted = frozenset(in_order)
            self._drop_unused()
            missing = [number for number in in_order if number not in self._found]
        if missing:
            self._pool = self._pool or ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="indexes ahead")
            for number in missing:
                self._pool.submit(self._load_ahead, number)

    def loaded(self) -> Collection[int]:
        """Return the numbers whose values are loaded, or being loaded, in this process."""
        return list(self._found) if self._process == os.getpid() else []

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None and self._process == os.getpid():
            self._pool.shutdown(cancel_futures=True)
        self._pool = None

    def _load_ahead(self, number: int) -> None:
        if number in self._wanted:
            with contextlib.suppress(Exception):  # whoever asks for it gets the error
                self[number]

    def _drop_unused(self) -> None:
        """Drop the least recently used values that are not wanted."""
        for number in list(self._found):
            if len(self._found) <= max(_FEWEST, len(self._wanted)):
                return
            if number not in self._wanted and self._found[number].done():
                del self._found[number]
