"""The folder that a job writes to, local or in an object store. One job at a time holds it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from univip_stream import storage
from univip_stream.errors import InputError
from univip_stream.files import locked, remove_leftovers, written_atomically

LOCK = ".mining.lock"
"""Lock file of the process that writes a local folder; it is removed when the process is done."""


class Output:
    """The files of one folder, by name.

    Args:
        location: the folder: a path or the URL of an object store.
        to_write: whether it will be written to.

    Raises:
        InputError: it is a web address, and is to be written to.

    """

    def __init__(self, location: str | Path, *, to_write: bool = True):
        self.remote = storage.is_remote(location)
        if to_write and storage.scheme_of(location) in storage.WEB:
            raise InputError(
                f"--out {location}: a web server cannot be written; expected a folder, or one of an object store"
            )
        self.location = str(location).rstrip("/") if self.remote else os.path.abspath(location)

    def path_of(self, name: str) -> str:
        """Return the location of a file."""
        return storage.join(self.location, name)

    def names(self) -> list[str]:
        """Return the names of the files directly in the folder, sorted; [] if the folder does not exist."""
        if self.remote:
            return sorted(path for path, _ in storage.files_below(self.location) if "/" not in path)
        folder = Path(self.location)
        return sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a file; None if it does not exist."""
        try:
            return storage.read(self.path_of(name))
        except FileNotFoundError:
            return None

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes; None if it does not exist."""
        return storage.size_of(self.path_of(name))

    def write(self, name: str, data: bytes) -> None:
        """Write a file as a whole, or not at all."""
        if self.remote:
            storage.write(self.path_of(name), data)
        else:
            with written_atomically(Path(self.path_of(name))) as file:
                file.write(data)

    def remove(self, name: str) -> None:
        """Delete a file if it exists."""
        if self.remote:
            storage.remove(self.path_of(name))
        else:
            Path(self.path_of(name)).unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """Delete the half-written files of processes that died."""
        if not self.remote:  # in an object store no file appears half written
            remove_leftovers(Path(self.location))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """While inside: hold the folder for this process alone. The folder is made if it does not exist.

        In an object store there is no lock. A second job would write the same bytes, or be refused for its parameters.

        Raises:
            InputError: another job holds the folder, or it cannot be written.

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
