"""Write files that are either complete or absent, and lock, clean up and recognise files."""

import contextlib
import errno
import fcntl
import hashlib
import io
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from univip_stream.errors import InputError, causes

TEMPORARY = ".tmp"
"""Suffix of files being written; a leftover one belongs to a process that was killed, and is never read."""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk is full, this user's quota is used up, or a file is larger than allowed (`ulimit -f`)."""


class NoRoomError(InputError, OSError):
    """A file does not fit on its disk; the message names the file, the space needed and the space that is free."""


@contextlib.contextmanager
def no_room_in_words(path: Path, wanted: int | None = None) -> Iterator[None]:
    """While inside: turn an error that means a full disk, also if a library wrapped it, into a NoRoomError about `path`.

    Args:
        path: file that is written.
        wanted: its size in bytes, if that is known.

    """
    try:
        yield
    except InputError:  # readable already, or about something else
        raise
    except Exception as error:
        full = next((cause for cause in causes(error) if isinstance(cause, OSError) and cause.errno in _FULL), None)
        if full is None:
            raise
        takes = "" if wanted is None else f"; it takes about {readable_size(wanted)}"
        free = "; the limit is the file system's, or `ulimit -f`" if full.errno == errno.EFBIG else ""
        with contextlib.suppress(OSError):
            free += f", and the disk of {path.parent} has {readable_size(shutil.disk_usage(path.parent).free)} free"
        raise NoRoomError(
            f"no room to write {path} ({full.strerror}){takes}{free}. Make room, then run the same command again: nothing half "
            "written is left, and what was there before is whole"
        ) from error


class Scratch(io.FileIO):
    """An unnamed file in the temporary folder, which disappears with the process, however that ends.

    It has no buffer, so a full disk is reported by the write itself, and nothing is left to write when it is closed.

    Raises:
        OSError: there is no temporary folder that can be written to.

    """

    def __init__(self) -> None:
        with tempfile.TemporaryFile(buffering=0) as file:
            super().__init__(os.dup(file.fileno()), "r+b")

    def write(self, data: Any) -> int:
        """Write all of the data.

        Raises:
            NoRoomError: the temporary folder is full.

        """
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left:
                left = left[super().write(left) :]
        except OSError as error:
            if error.errno not in _FULL:
                raise
            folder = tempfile.gettempdir()
            raise NoRoomError(
                f"no room for temporary files in {folder} ({os.strerror(error.errno)}); make room there, or set TMPDIR to a folder "
                "on another disk"
            ) from error
        return size


def readable_size(size: int) -> str:
    """Return a size in readable form, such as `26.6 MB`."""
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"


@contextlib.contextmanager
def written_atomically(path: Path, *, wanted: int | None = None) -> Iterator[BinaryIO]:
    """Write a file that appears under `path` only when it is complete and on disk.

    The temporary name is unique to the attempt, so an older attempt that is still alive cannot mix with this one. If the
    body raises, the temporary file is removed and the file under `path` stays.

    Args:
        path: path of the file.
        wanted: its size in bytes, if that is known, for the message if it does not fit.

    Raises:
        NoRoomError: the disk is full.

    """
    with no_room_in_words(path, wanted), _written_atomically(path) as file:
        yield file


@contextlib.contextmanager
def _written_atomically(path: Path) -> Iterator[BinaryIO]:
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}{TEMPORARY}"
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def folder_written_atomically(path: Path) -> Iterator[Path]:
    """Yield a folder to fill, which appears under `path` when it is complete; before, `path` must be absent or an empty folder.

    If the body raises, everything written is removed.

    Raises:
        NoRoomError: the disk is full.

    """
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}{TEMPORARY}"
    temporary.mkdir()
    try:
        with no_room_in_words(path):
            yield temporary
            sync_folder(temporary)
            temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(path.parent)


def locked(path: Path, *, of_process: bool, shared: bool = False) -> int:
    """Create a file if it is missing, lock it, and return its descriptor. The kernel unlocks it however the process ends.

    Args:
        path: path of the file.
        of_process: whether the lock ends with this process even if forked ones live on; it does not exclude its own threads.
        shared: whether others that ask for it shared may have it at the same time.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the file cannot be created or locked.

    """
    take = fcntl.lockf if of_process else fcntl.flock
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            take(descriptor, kind | fcntl.LOCK_NB)
            # The last holder may have removed the file in between: then this is a lock on a deleted file.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def only_holder(lock: int) -> bool:
    """Take a shared lock of `locked` for this process alone, and return whether nobody else has it. It is no longer shared then."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def written_by_one(path: Path) -> Iterator[None]:
    """While inside: exclude other processes that call this from writing `path` and the state beside it.

    Half-written files of a killed process are removed first, because nobody else would find them.

    Raises:
        InputError: another process writes it.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.parent / f".{path.name}.lock"
    try:
        descriptor = locked(lock, of_process=True)
    except BlockingIOError as error:
        raise InputError(f"another process writes {path}; wait for it, or choose another --out") from error
    try:
        remove_leftovers(path.parent, of=path.stem)
        remove_leftovers(path)
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def remove_leftovers(folder: Path, *, of: str | None = None, older: float = 0.0) -> None:
    """Delete files that killed processes were writing. The caller must know that no such process is alive.

    Args:
        folder: folder of the files; it may be missing.
        of: only delete files with this stem, whatever their suffix; None for all.
        older: only delete files that were not written to for this many seconds.

    """
    name = ".+" if of is None else rf"{re.escape(of)}(\..+)?"
    pattern = re.compile(rf"\.{name}\.[0-9a-f]{{32}}{re.escape(TEMPORARY)}")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            if pattern.fullmatch(entry.name) and time.time() - entry.stat(follow_symlinks=False).st_mtime >= older:
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    Path(entry.path).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, if the file system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_bytes(data: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


_SYSTEM_FOLDERS = frozenset(
    {
        *("__MACOSX", "Network Trash Folder", "Temporary Items"),
        *("@eaDir", "@tmp", "#recycle", "#snapshot"),
        *("@Recycle", "@Recently-Snapshot", "@__thumb"),
        *("$RECYCLE.BIN", "System Volume Information"),
        "lost+found",
    }
)
"""Folders made by macOS (in archives and on shares), Synology, QNAP, Windows and ext4."""
_KNOWN_HIDDEN = frozenset([".ipynb_checkpoints", ".thumbnails", ".AppleDouble", ".Trashes", ".git"])


def system_file(path: str) -> str | None:
    """Return the kind of a file left behind by an operating system or program, by its path with forward slashes; None for others.

    Names that begin with a dot are hidden: previews, trash, version control, unfinished copies. `._x.jpg` holds what macOS
    cannot store in `x.jpg` on some disks (AppleDouble): it is not an image, whatever its suffix.
    """
    *folders, name = path.split("/")
    for folder in folders:
        if folder in _SYSTEM_FOLDERS or folder in _KNOWN_HIDDEN:
            return f"in {folder}"
        if folder.startswith(".Trash-"):
            return "in .Trash-*"
        if folder.startswith(".") and folder not in (".", ".."):
            return "in hidden folders"
    if name.startswith("._"):
        return "._* (AppleDouble)"
    return "hidden files" if name.startswith(".") else None
