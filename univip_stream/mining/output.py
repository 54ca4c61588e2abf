"""The folder that a job writes to, local or in an object store. One job at a time holds it."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from univip_stream import storage
from univip_stream.errors import InputError
from univip_stream.files import TEMPORARY, locked, only_holder, remove_leftovers, written_atomically

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

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of each file directly in the folder, by its name; {} if the folder does not exist."""
        if self.remote:
            return {path: size for path, size in storage.files_below(self.location) if "/" not in path}
        if not os.path.isdir(self.location):
            return {}
        with os.scandir(self.location) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}

    def claim(self, name: str, data: bytes) -> None:
        """Write a file unless it exists; of several processes that try at the same time, one writes it.

        Object stores have no such operation: there the last one writes it.
        """
        if self.remote:
            if self.size(name) is None:
                self.write(name, data)
            return
        own = Path(self.path_of(f".{name}.{uuid.uuid4().hex}{TEMPORARY}"))
        try:
            own.write_bytes(data)
            try:
                os.link(own, self.path_of(name))
            except FileExistsError:
                return
            except OSError:  # a disk without links
                if self.size(name) is None:
                    own.replace(self.path_of(name))
        finally:
            own.unlink(missing_ok=True)

    @contextlib.contextmanager
    def held(self, by: str | None = None) -> Iterator[None]:
        """While inside: hold the folder for this process alone. The folder is made if it does not exist.

        In an object store there is no lock. A second job would write the same bytes, or be refused for its parameters.

        Args:
            by: lock file of a part of a job. Other parts may hold the folder at the same time, but not the same part twice,
                and no whole job. None holds it for this process alone.

        Raises:
            InputError: another job holds the folder, or it cannot be written.

        """
        if self.remote:
            yield
            return
        locks: list[int] = []
        try:
            try:
                os.makedirs(self.location, exist_ok=True)
                locks.append(locked(Path(self.location, LOCK), of_process=False, shared=by is not None))
                if by is not None:
                    locks.append(locked(Path(self.location, by), of_process=False))
            except BlockingIOError as error:
                same = " (it mines the same part)" if locks else ""
                raise InputError(
                    f"{self.location}: another `univip-stream mine` is writing here; wait for it, or stop it{same}"
                ) from error
            except OSError as error:
                raise InputError(f"{self.location} cannot be written: {error.strerror}; choose another --out") from error
            try:
                yield
            finally:
                if by is not None:
                    self.remove(by)
                if by is None or only_holder(locks[0]):  # the lock that parts share stays for the others
                    self.remove(LOCK)
        finally:
            for lock in locks:
                os.close(lock)
