"""Files that are either whole or not there."""

import contextlib
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

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
        free = ""
        with contextlib.suppress(OSError):
            free = f", and the disk of {path.parent} has {said_size(shutil.disk_usage(path.parent).free)} free"
        raise NoRoomError(
            f"no room to write {path} ({full.strerror}){takes}{free}. Make room, then run the same command again: nothing half "
            "written is left, and what was there before is whole"
        ) from error


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
    """
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}{TEMPORARY}"
    temporary.mkdir()
    try:
        yield temporary
        sync_folder(temporary)
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(path.parent)


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
