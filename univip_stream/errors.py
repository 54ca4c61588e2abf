"""Errors whose messages are written for the person who can fix the problem."""

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from typing import Any


class InputError(ValueError):
    """A user's input cannot be used: the message says what was found, what was expected and what to do.

    The commands print the message without a traceback and exit with `exit_status`.
    """

    exit_status = 1


class UsageError(InputError):
    """The command itself was called wrongly (a contradiction between options, an unknown name)."""

    exit_status = 2


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and what it came from or came up in, one after the other."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def as_setting(value: Any) -> str:
    """Return a value as settings are written, in YAML and for `--set`: null, true, [0.2, 1.0]; text in quotes."""
    return repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)


_CURES = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of that path is a file; expected a folder",
    errno.EISDIR: "expected a file",
    errno.EEXIST: "there is something else already: choose another place",
    errno.ELOOP: "its symbolic links lead in a circle",
    errno.ENAMETOOLONG: "the path is longer than the file system takes",
    errno.EACCES: "this user may not; change its permissions, or choose another place",
    errno.EPERM: "this user may not; change its permissions, or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.ENOSPC: "make room, or choose another place, and run the same command again",
    errno.EDQUOT: "make room, or choose another place, and run the same command again",
    errno.EFBIG: "the file system takes no file so large; choose another place",
    errno.EMFILE: "allow more with `ulimit -n 4096`, or use fewer --workers",
    errno.ENFILE: "the whole machine has no more; end other programs, or use fewer --workers",
    errno.ENOMEM: "fewer --workers or smaller batches need less",
    errno.EIO: "the disk, or the network it is behind, failed; try again, and look at the machine's log",
    errno.ENXIO: "expected a file",
    errno.ESPIPE: "expected a file, which can be read at any place; this is a pipe",
    errno.EINVAL: "expected an ordinary file or folder",
}
"""Advice for the errors of file systems."""


def in_words(error: OSError) -> str:
    """Return an error of the file system or network as a sentence: the path, the reason, what to do.

    Errors of other origin (with a message but no number) keep their message.
    """
    if error.errno == errno.ENOENT and not _here():
        return "the folder that this was called in is gone; `cd` to one that exists"
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return f"{' -> '.join(names)}{': ' if names else ''}{why(error)}"


def why(error: BaseException) -> str:
    """Return the reason of an error alone, to follow `... cannot be read: ` in a sentence that has named the file already."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError):
        if error.errno is None or error.strerror is None:
            return str(error) or type(error).__name__
        if "usable temporary directory" in error.strerror:
            return f"{error.strerror[:1].lower()}{error.strerror[1:]}; make room there, or set TMPDIR to another folder"
        if "AF_UNIX path too long" in str(error):
            return too_long_for_sockets()
        # Arrow appends the system's message to its own, with the number twice.
        reason = os.strerror(error.errno) if "[errno" in error.strerror.lower() else error.strerror
        cure = f"; {_CURES[error.errno]}" if error.errno in _CURES else ""
        return reason[:1].lower() + reason[1:] + cure
    if isinstance(error, json.JSONDecodeError):
        return f"no JSON: {error}"
    if isinstance(error, UnicodeDecodeError):
        return "no UTF-8 text"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, KeyError):
        return f"{error} is missing in it"
    if isinstance(error, TypeError | AttributeError | IndexError):  # Python's own message is about our code
        return "it has another structure"
    return str(error) or type(error).__name__


def too_long_for_sockets() -> str:
    """Return the message for a temporary folder whose name is too long for sockets, which the kernel limits to 107 bytes."""
    return (
        f"the temporary folder's name is too long for sockets ({tempfile.gettempdir()}); set TMPDIR, and for Ray RAY_TMPDIR, to "
        "a shorter one, such as /tmp"
    )


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return a count with its noun, such as `1 shard` or `2 shards`; `many` is the plural if it is irregular."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def _here() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True
