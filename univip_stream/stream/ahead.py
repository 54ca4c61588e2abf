"""Fetch the next remote shards while the present ones are read."""

import atexit
import contextlib
import os
import threading

from univip_stream.errors import InputError
from univip_stream.shards.cache import Cache, Remote, Stopped


class Ahead:
    """Fetches the next remote files in a background thread. Each process needs its own: a thread does not survive a fork.

    Errors are ignored here: the reader that needs the file fetches it again, and reports what is wrong.
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
        """Fetch these files next, the most urgent first. They replace the files of earlier calls."""
        with self._changed:
            self._wanted = files
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="fetch-ahead", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """End the thread and abandon a fetch that is under way."""
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
