"""Fetch the shards that come next while the present ones are read."""

import atexit
import contextlib
import os
import threading

from univip_stream.errors import InputError
from univip_stream.shards.cache import Cache, Remote, Stopped


class Ahead:
    """Fetches the files that come next in a thread of its own. One a process: a thread does not outlive a fork.

    Errors here are left to whoever wants the file: reading it fetches it again and says what is wrong.
    """

    def __init__(self, cache: Cache):
        self.cache = cache
        self._wanted: list[Remote] = []
        self._changed = threading.Condition()
        self._stop = False
        self._thread: threading.Thread | None = None
        self.process = os.getpid()
        atexit.register(self.close)  # a thread inside pyarrow while the interpreter ends would abort the process

    def want(self, files: list[Remote]) -> None:
        """These are next, the most urgent first; what was asked for before is forgotten."""
        with self._changed:
            self._wanted = files
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="fetch-ahead", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """End the thread; a fetch on its way is given up."""
        with self._changed:
            self._stop = True
            self._changed.notify()
        if self._thread is not None and self.process == os.getpid():
            self._thread.join()
        atexit.unregister(self.close)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._wanted and not self._stop:
                    self._changed.wait()
                if self._stop:
                    return
                remote = self._wanted.pop(0)
            with contextlib.suppress(InputError, Stopped):
                self.cache.fetch_if_free(remote, lambda: self._stop)
