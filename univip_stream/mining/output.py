"""The folder that a job writes: local, or in an object store. One job at a time holds it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from univip_stream import storage
from univip_stream.errors import InputError
from univip_stream.files import locked, remove_leftovers, written_atomically

LOCK = ".mining.lock"
"""Held by the process that writes a local folder; gone when it is done."""


class Output:
    """Files of one folder, by name."""

    def __init__(self, location: str | Path, *, to_write: bool = True):
        self.remote = storage.is_remote(location)
        if to_write and storage.scheme_of(location) in storage.WEB:
            raise InputError(
                f"--out {location}: a web server cannot be written; expected a folder, or one of an object store"
            )
        self.location = str(location).rstrip("/") if self.remote else os.path.abspath(location)

    def path_of(self, name: str) -> str:
        """The location of a file."""
        return storage.join(self.location, name)

    def names(self) -> list[str]:
        """Files in the folder itself, sorted; [] where there is no folder."""
        if self.remote:
            return sorted(path for path, _ in storage.files_below(self.location) if "/" not in path)
        folder = Path(self.location)
        return sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []

    def read(self, name: str) -> bytes | None:
        """A file's bytes; None if there is none."""
        try:
            return storage.read(self.path_of(name))
        except FileNotFoundError:
            return None

    def size(self, name: str) -> int | None:
        """A file's bytes, counted; None if there is none."""
        return storage.size_of(self.path_of(name))

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all."""
        if self.remote:
            storage.write(self.path_of(name), data)
        else:
            with written_atomically(Path(self.path_of(name))) as file:
                file.write(data)

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        if self.remote:
            storage.remove(self.path_of(name))
        else:
            Path(self.path_of(name)).unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """Delete what attempts that died were writing."""
        if not self.remote:  # in an object store nothing appears half written
            remove_leftovers(Path(self.location))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for this process alone, and make it if it is not there.

        In an object store nothing keeps a second job out. It would write the same bytes, or be refused for its parameters.

        Raises:
            InputError: another job holds it, or it cannot be written.

        """
        if self.remote:
            yield
            return
        try:
            os.makedirs(self.location, exist_ok=True)
            lock = locked(Path(self.location, LOCK), of_process=False)
        except BlockingIOError as error:
            raise InputError(
                f"{self.location}: another `univip-stream mine` is writing here; wait for it, or stop it"
            ) from error
        except OSError as error:
            raise InputError(f"{self.location} cannot be written: {error.strerror}; choose another --out") from error
        try:
            yield
        finally:
            self.remove(LOCK)
            os.close(lock)
