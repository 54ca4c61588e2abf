"""A cache of remote files on the local disk. Files are fetched whole and verified; all processes of a machine share them.

A file is named after its SHA-256, so its name vouches for its contents, wherever they came from: the `000.tar` of one set
cannot be taken for that of another, and a bucket that moved is not fetched again. While a file is being fetched it has
another name; it gets this one when it is complete, verified and on disk. Locks are `flock`s, which the kernel releases when a
process dies.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from univip_stream import storage
from univip_stream.errors import InputError, UsageError, why
from univip_stream.files import TEMPORARY, sync_folder
from univip_stream.storage import retry
from univip_stream.storage.retry import PassingError, tried

DEFAULT_BYTES = 32 << 30
"""Default limit of the cache in bytes. A window of 16 shards of COCO and the next window take 5 GB."""
_PIECE = 8 << 20
"""Bytes per request to an object store."""
_LOCK = ".lock"
_OURS = re.compile(rf"(of-)?[0-9a-f]{{64}}({re.escape(TEMPORARY)})?")
"""Names of the cache's own files; no other file is ever deleted."""
_SHA256 = re.compile("[0-9a-f]{64}")
_T = TypeVar("_T")


class FetchError(InputError):
    """A remote file cannot be fetched. Its samples are not replaced by others, because the next ones would fail too."""


class Stopped(Exception):  # noqa: N818 - it is not an error
    """A fetch was abandoned because its process is about to end."""


@dataclass(frozen=True, kw_only=True)
class Remote:
    """The location of a remote file, and the size and hash that it must have."""

    location: str
    """URL of the file."""
    size: int
    """Size in bytes."""
    sha256: str | None
    """SHA-256 of its bytes, hexadecimal; None if it is not known yet."""


def user_folder() -> Path:
    """Return the folder of files that can be made again: `$XDG_CACHE_HOME/univip-stream` or `~/.cache/univip-stream`."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "univip-stream"
    except RuntimeError:  # a user without a home, as containers have
        return Path(tempfile.gettempdir()) / f"univip-stream-{os.getuid()}"


def checked_hash(text: str) -> str:
    """Return a SHA-256 from a manifest after checking it, because it becomes the name of a file here.

    Raises:
        ValueError: the text is not a SHA-256 in hexadecimal.

    """
    if not isinstance(text, str) or not _SHA256.fullmatch(text):
        raise ValueError(f"{text!r} is not a SHA-256")
    return text


class Cache:
    """A folder of fetched files. Any number of processes and threads may use it at the same time.

    Args:
        folder: a folder on a local disk, for the sake of locks and speed; None is `shards` in the user's cache folder.
        limit: the most bytes that the files may take together. Files that no process has open are evicted first, the least
            recently used before others. An open file stays readable when it is evicted; its space is freed when it is closed.

    Raises:
        UsageError: `limit` is below 1.

    """

    def __init__(self, folder: str | Path | None = None, limit: int = DEFAULT_BYTES):
        if limit < 1:
            raise UsageError(f"cache_bytes is {limit}; expected at least the size of one shard")
        self.folder = user_folder() / "shards" if folder is None else Path(folder)
        self.limit = limit

    def open(self, remote: Remote) -> int:
        """Return a descriptor of the verified file, fetched if it is not here. It holds a shared lock until it is closed.

        Raises:
            FetchError: the source cannot be read, or holds other bytes than expected.
            InputError: the cache cannot hold the file.

        """
        if (found := self._open_if_here(remote)) is not None:
            return found
        with self.locked(_name(remote)):
            return self._fetch(remote, None)

    def has(self, remote: Remote) -> bool:
        """Return whether the cache holds a file."""
        return remote.sha256 is not None and (self.folder / remote.sha256).exists()

    def fetch_if_free(self, remote: Remote, stopped: Callable[[], bool]) -> bool:
        """Fetch a file that is not here, unless another process is fetching it; return whether this call did.

        Raises:
            Stopped: `stopped` returned True on the way, or the files of others leave no room at present.
            InputError: as in `open`.

        """
        if self.has(remote):
            with contextlib.suppress(OSError):
                os.utime(self.folder / _name(remote))  # it is needed soon, so it must not be the next to be evicted
            return False
        with self.locked(_name(remote), wait=False) as mine:
            if not mine or self.has(remote):
                return False
            os.close(self._fetch(remote, stopped))
            return True

    def _open_if_here(self, remote: Remote) -> int | None:
        """Return a descriptor of a file that the cache holds, with a shared lock; None if it is not here."""
        if remote.sha256 is None:
            return None
        path = self.folder / remote.sha256
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"{path} of the shard cache cannot be read: {why(error)}") from error
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if os.fstat(descriptor).st_size != remote.size:
            os.close(descriptor)
            self.forget(remote)
            return None
        with contextlib.suppress(OSError):  # a file of another user can be read all the same
            os.utime(descriptor)
        return descriptor

    def forget(self, remote: Remote) -> None:
        """Delete a file that turned out to be damaged here."""
        if remote.sha256 is not None:
            (self.folder / remote.sha256).unlink(missing_ok=True)

    def _fetch(self, remote: Remote, stopped: Callable[[], bool] | None) -> int:
        """While holding the file's lock, open it if another process has fetched it meanwhile, otherwise fetch it."""
        if (found := self._open_if_here(remote)) is not None:
            return found
        temporary = self.folder / f"{_name(remote)}{TEMPORARY}"
        try:
            for last in (False, True):
                self._reserve(temporary, remote, ahead=stopped is not None)
                found_hash = self._copy(remote, temporary, stopped)
                if found_hash == (remote.sha256 or found_hash):
                    break
                if last:
                    raise FetchError(
                        f"{remote.location}: fetched twice, and its bytes are not the {remote.size} bytes it should have (SHA-256 "
                        f"{found_hash[:16]}..., expected {str(remote.sha256)[:16]}...): changed or damaged there, or on the way"
                    )
            descriptor = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            temporary.replace(self.folder / found_hash)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise self._no_room(error, remote) from error
            raise
        sync_folder(self.folder)
        return descriptor

    def _copy(self, remote: Remote, temporary: Path, stopped: Callable[[], bool] | None) -> str:
        """Write the source's bytes into the reserved file and return their SHA-256; retry errors that may pass."""
        try:
            return tried(lambda: _copied(remote, temporary, stopped))
        except _SourceError as error:
            raise FetchError(
                f"{remote.location} cannot be fetched, after {retry.TRIES} tries: {why(error)}; run again when it can be reached, "
                "training continues from its last checkpoint"
            ) from error

    def _reserve(self, temporary: Path, remote: Remote, *, ahead: bool) -> None:
        """Make room for a file, and create it with its full size, so that other processes count it too.

        If the fetches of other processes take the room, wait for them to end: complete files can be evicted.
        """
        if remote.size > self.limit:
            raise InputError(
                f"{remote.location} has {remote.size} bytes, the cache in {self.folder} may have {self.limit} in all "
                "(stream.cache_bytes); make it larger: it needs room for one shard at least, and for two windows of them to be fast"
            )
        while True:
            with self.locked("room"):
                temporary.unlink(missing_ok=True)
                if self._evict(self.limit - remote.size, in_use_too=not ahead):
                    with temporary.open("xb") as file:
                        file.truncate(remote.size)
                    return
            if ahead:
                raise Stopped
            time.sleep(0.05)

    def _evict(self, most: int, *, in_use_too: bool) -> bool:
        """Delete files until they take at most `most` bytes, and return whether that was reached.

        Leftovers of dead processes go first, then files that nobody has open, then the others if `in_use_too`. If that is not
        enough, no complete file is deleted.
        """
        complete, being_fetched = [], 0
        for entry in list(os.scandir(self.folder)):
            with contextlib.suppress(FileNotFoundError):
                if not _OURS.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                    continue  # the folder may hold other files of the user
                stat = entry.stat(follow_symlinks=False)
                if not entry.name.endswith(TEMPORARY):
                    complete.append((stat.st_mtime_ns, entry.path, stat.st_size))
                    continue
                with self.locked(entry.name.removesuffix(TEMPORARY), wait=False) as dead:
                    if dead:
                        os.unlink(entry.path)
                    else:
                        being_fetched += stat.st_size
        total = being_fetched + sum(size for *_, size in complete)
        if total <= most:
            return True
        ordered = sorted((_in_use(path), used, path, size) for used, path, size in complete)
        victims = [file for file in ordered if in_use_too or not file[0]]
        if total - sum(size for *_, size in victims) > most:
            return False
        for _, _, path, size in victims:
            if total > most:
                Path(path).unlink(missing_ok=True)
                total -= size
        return True

    @contextlib.contextmanager
    def locked(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold the lock of a name among all processes and threads; without `wait`, yield whether it was free."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder / f"{name}{_LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise InputError(
                f"the shard cache {self.folder} cannot be written ({why(error)}); name another by stream.cache"
            ) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            try:
                yield True
            finally:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # after closing alone, a process forked meanwhile would still hold it
        finally:
            os.close(descriptor)

    def _no_room(self, error: OSError, remote: Remote) -> InputError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return InputError(
                f"no room in {self.folder} for the {remote.size} bytes of {remote.location} ({error.strerror}); make room, set "
                "stream.cache_bytes lower, or stream.cache to a folder on a larger disk"
            )
        return InputError(f"{remote.location} cannot be kept in {self.folder}: {why(error)}")


class _SourceError(Exception):
    """The source could not be read; the fault is not in writing here."""


def _name(remote: Remote) -> str:
    return remote.sha256 or "of-" + hashlib.sha256(remote.location.encode()).hexdigest()


def _copied(remote: Remote, path: Path, stopped: Callable[[], bool] | None) -> str:
    """Overwrite a file with the source's bytes and return their SHA-256."""
    digest, done = hashlib.sha256(), 0
    with contextlib.ExitStack() as stack:
        source = _read_source(remote.location, lambda: stack.enter_context(storage.opened(remote.location)))
        target = stack.enter_context(path.open("r+b"))
        while piece := _read_source(remote.location, lambda: source.read(_PIECE)):
            if stopped is not None and stopped():
                raise Stopped
            done += len(piece)
            if done > remote.size:
                break  # it is not the promised file, and may never end
            digest.update(piece)
            target.write(piece)
        if done < remote.size:
            raise PassingError from _SourceError(f"it ended after {done} of {remote.size} bytes")
        target.flush()
        os.fsync(target.fileno())
    return digest.hexdigest() if done == remote.size else f"{'0' * 16} (longer than {remote.size} bytes)"


def _read_source(location: str, read: Callable[[], _T]) -> _T:
    try:
        return read()
    except (MemoryError, InputError):
        raise
    except Exception as error:  # each client has its own kinds
        found = storage.explained(location, error)
        reason = str(getattr(found, "strerror", None) or f"{type(found).__name__}: {found}")
        if storage.may_pass(found):
            raise PassingError from _SourceError(reason)
        raise FetchError(f"{location} cannot be fetched: {reason}") from error


def _in_use(path: str) -> bool:
    """Return whether some process has the file open through `Cache.open`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
