"""Files that are either whole or not there."""

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

from univip_stream.errors import InputError

TEMPORARY = ".tmp"
"""Suffix of files being written; one that is left over belongs to an attempt that died and is never read."""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk is full, this user's share of it is, or a file may not be so large (`ulimit -f`)."""


class NoRoomError(InputError, OSError):
    """A file does not fit on its disk: which, how much was wanted, and how much is free."""


@contextlib.contextmanager
def no_room_in_words(path: Path, wanted: int | None = None) -> Iterator[None]:
    """Within: an error that means a full disk is a NoRoomError about `path`, also where a library laid its own over it.

    Args:
        path: what is written.
        wanted: bytes it takes, if that is known.

    """
    try:
        yield
    except InputError:  # said already, or about something else
        raise
    except Exception as error:
        full = next((cause for cause in _causes(error) if isinstance(cause, OSError) and cause.errno in _FULL), None)
        if full is None:
            raise
        takes = "" if wanted is None else f"; it takes about {said_size(wanted)}"
        free = "; the limit is the file system's, or `ulimit -f`" if full.errno == errno.EFBIG else ""
        with contextlib.suppress(OSError):
            free += f", and the disk of {path.parent} has {said_size(shutil.disk_usage(path.parent).free)} free"
        raise NoRoomError(
            f"no room to write {path} ({full.strerror}){takes}{free}. Make room, then run the same command again: nothing half "
            "written is left, and what was there before is whole"
        ) from error


class Scratch(io.FileIO):
    """A file without a name in the temporary folder: gone with the process, however that ends.

    It has no buffer, so whatever does not fit is told where it is written, and nothing is left to be written when it is let go.

    Raises:
        OSError: there is no temporary folder that can be written to.

    """

    def __init__(self) -> None:
        with tempfile.TemporaryFile(buffering=0) as file:
            super().__init__(os.dup(file.fileno()), "r+b")

    def write(self, data: Any) -> int:
        """Write all of it.

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


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def said_size(size: int) -> str:
    """`26.6 MB`: bytes for a person."""
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"


@contextlib.contextmanager
def written_atomically(path: Path, *, wanted: int | None = None) -> Iterator[BinaryIO]:
    """Write a file that appears under `path` only when it is complete and on disk.

    The temporary name is unique to the attempt, so an older attempt that is still alive cannot mix with this one. When
    the body raises, the temporary file is removed and what stood under `path` stays.

    Args:
        path: of the file.
        wanted: bytes it will take, if that is known, to be told where they do not fit.

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
    """A folder to fill, which appears under `path` when it is complete; `path` is nothing or an empty folder before.

    When the body raises, what was written is removed.

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


def locked(path: Path, *, of_process: bool) -> int:
    """A descriptor of a file that this process has locked, made if it is not there. The kernel unlocks it however this ends.

    Args:
        path: of the file.
        of_process: the lock ends with this process, also where ones that it forked live on; not among its own threads.

    Raises:
        BlockingIOError: another holds it.
        OSError: it cannot be made or locked.

    """
    take = fcntl.lockf if of_process else fcntl.flock
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            take(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it before may have removed it in between: then this is a lock on nothing.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


@contextlib.contextmanager
def written_by_one(path: Path) -> Iterator[None]:
    """Within: no other process that asks the same writes `path`, or what lies beside it to go on from.

    What an attempt that was killed has left half written goes first: nobody else would know of it.

    Raises:
        InputError: another does.

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
    """Delete what attempts that died were writing. Only for whoever knows that no attempt is alive.

    Args:
        folder: that they wrote in; may not be there.
        of: only files called so, whatever their suffix; None for all.
        older: only those that nobody has written to for so many seconds.

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
    """Make renames in a folder survive a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
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
"""What macOS (in archives and on shares), Synology, QNAP, Windows and ext4 leave in folders."""
_KNOWN_HIDDEN = frozenset([".ipynb_checkpoints", ".thumbnails", ".AppleDouble", ".Trashes", ".git"])


def system_file(path: str) -> str | None:
    """What a file is that an operating system or a program left behind, by its path with forward slashes; None of any other.

    Names that begin with a dot are hidden: previews, trash, version control, unfinished copies. `._x.jpg` is what macOS keeps
    beside `x.jpg` where the disk cannot hold it (AppleDouble): no image, whatever its ending.
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
