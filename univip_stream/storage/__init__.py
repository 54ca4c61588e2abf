"""Access to files by location: local paths, object stores (`s3://`, `gs://`, `hdfs://`) and `http(s)://`.

A location is a local path or a URL. If a kind of location does not support an operation (a web server lists no folder), the
error says what to use instead. Object stores take their keys and endpoint from the usual environment variables
(`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, ...); these are never part of a location.
"""

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from univip_stream.errors import InputError
from univip_stream.storage import limit, objects, polite, retry
from univip_stream.storage.explain import OptedOutError, TooLongError, explained_store
from univip_stream.storage.names import OBJECT_STORES, WEB, absolute, is_odd, is_remote, join, name_of, parent, scheme_of
from univip_stream.storage.polite import WebOptions
from univip_stream.storage.retry import PassingError, may_pass

if TYPE_CHECKING:
    from univip_stream.storage.web import Client

__all__ = [
    "OBJECT_STORES", "WEB", "OptedOutError", "TooLongError", "WebOptions", "absolute", "copy_in", "copy_out", "explained",
    "files_below", "give_up", "image", "is_odd", "is_remote", "join", "may_pass", "member", "name_of", "names_in", "opened",
    "parent", "read", "remove", "scheme_of", "size_of", "use_web", "write",
]  # fmt: skip

_PIECE = 1 << 20


def size_of(location: str | Path) -> int | None:
    """Return the size of a file in bytes; None if it does not exist.

    Raises:
        OSError: it cannot be determined, after retries.

    """
    scheme = scheme_of(location)
    if scheme is None:
        path = Path(location)
        return path.stat().st_size if path.is_file() else None
    if scheme in WEB:
        try:
            return _web().size(str(location))
        except FileNotFoundError:
            return None
    return objects.size_of(str(location))


def read(location: str | Path, offset: int = 0, size: int | None = None) -> bytes:
    """Read a file, or `size` bytes of it from `offset` on; fewer if it ends before.

    Raises:
        FileNotFoundError: it does not exist.
        OSError: it cannot be read, after retries.

    """
    if size == 0:
        return b""
    scheme = scheme_of(location)
    if scheme is None:
        with open(location, "rb") as file:
            file.seek(offset)
            return file.read(-1 if size is None else size)
    if scheme in WEB:
        return _web().read(str(location), offset, size)
    return objects.read(str(location), offset, size)


def image(location: str, most: int) -> bytes:
    """Read a whole remote image, within the time limit of `use_web`; from the web in one request, unless its server opts out.

    From an object store, the limit is beside a second for every 4 KiB: any number of reads there share one connection.

    Args:
        location: URL of the image.
        most: maximal size in bytes.

    Raises:
        TooLongError: it is larger.
        OptedOutError: its server asks that it is not used, and the options of `use_web` do not ignore that.
        OSError: it cannot be read, after retries.

    """
    if scheme_of(location) in WEB:
        return _web().image(location, most)
    return objects.read(location, 0, None, most, seconds=polite.options().seconds)


def member(location: str | Path, offset: int, size: int) -> bytes:
    """Read an image that is a range of a larger file, such as a tar; fewer bytes if that ends before.

    Remote as `image`: within the time limit, and of a web server not more at a time than one is asked for.

    Raises:
        OSError: it cannot be read, after retries.

    """
    if size and scheme_of(location) in WEB:
        return _web().read(str(location), offset, size, seconds=polite.options().seconds)
    if size and is_remote(location):
        return objects.read(str(location), offset, size, seconds=polite.options().seconds)
    return read(location, offset, size)


def use_web(options: WebOptions) -> None:
    """Set the options of all requests to web servers, in this process and those forked from it."""
    polite.use(options)


def give_up() -> None:
    """Cancel all requests to servers that this process waits for, which then fail; for ending early."""
    limit.give_up()
    if "univip_stream.storage.web" in sys.modules:  # otherwise there are no requests
        from univip_stream.storage import web

        web.give_up()


@contextlib.contextmanager
def opened(location: str | Path) -> Iterator[BinaryIO]:
    """Open a file for reading in pieces; it is seekable."""
    scheme = scheme_of(location)
    if scheme is None:
        with open(location, "rb") as file:
            yield file
    elif scheme in WEB:
        from univip_stream.storage.webfile import WebFile

        with io.BufferedReader(WebFile(_web(), str(location)), _PIECE) as file:
            yield cast(BinaryIO, file)
    else:
        with objects.opened(str(location)) as file:
            yield file


def copy_in(location: str | Path, path: Path) -> int:
    """Copy a file to a local path, and return its size in bytes; a failure leaves no file behind.

    If the connection breaks, the copy starts again from the beginning: `path` is truncated first.

    Raises:
        FileNotFoundError: it does not exist.
        OSError: it cannot be read, after retries, or cannot be written here; the message says which.

    """

    def copied() -> int:
        with opened(location) as source, path.open("wb", buffering=0) as target:
            while piece := _read_piece(location, source):
                try:
                    while piece:
                        piece = piece[target.write(piece) :]
                except OSError as error:
                    raise _write_error(location, path, error) from error
            return target.tell()

    try:
        return retry.tried(copied) if is_remote(location) else copied()
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def copy_out(path: Path, location: str) -> None:
    """Copy a local file to an object store, where it appears whole or not at all."""
    objects.copy_out(path, _writable(location))


def write(location: str, data: bytes) -> None:
    """Write bytes to an object store, whole or not at all."""
    objects.write(_writable(location), data)


def remove(location: str) -> None:
    """Delete a file in an object store; nothing happens if it does not exist."""
    objects.remove(_writable(location))


def files_below(location: str | Path) -> Iterator[tuple[str, int]]:
    """Yield (path below the folder, bytes) of every file of an object store's folder, sorted by the path's bytes.

    Only one folder's names are in memory at a time. Keys that cannot be written as a path (`is_odd`) are included, but cannot
    be read.

    Raises:
        InputError: the location is on a web server, which does not list files.
        OSError: the folder cannot be listed, or there is no such bucket.

    """
    yield from objects.files_below(_writable(location))


def names_in(location: str | Path) -> Iterator[str]:
    """Yield the names in an object store's folder itself, in any order; a folder's name ends in a slash.

    Raises:
        InputError: the location is on a web server, which does not list files.
        OSError: the folder cannot be listed, or there is no such bucket.

    """
    yield from objects.names_in(_writable(location))


def explained(location: str | Path, error: Exception) -> Exception:
    """Return a readable form of an error from an `opened` remote file; `may_pass` tells whether a second try can help."""
    if "may_pass" in error.__dict__ or not is_remote(location):
        return error
    return error if scheme_of(location) in WEB else explained_store(str(location), error)


def _read_piece(location: str | Path, source: BinaryIO) -> bytes:
    try:
        return source.read(_PIECE)
    except Exception as error:  # each client has its own kinds
        found = explained(location, error)
        if may_pass(found):
            raise PassingError from found
        raise found from error


def _write_error(location: str | Path, path: Path, error: OSError) -> OSError:
    return OSError(
        f"the copy of {location} cannot be written to {path.parent} ({error.strerror or error}); make room there, or name "
        "another folder for temporary files by TMPDIR"
    )


def _writable(location: str | Path) -> str:
    if scheme_of(location) in WEB:
        raise InputError(
            f"{location}: a web server can be read file by file only; expected a local folder or an object store"
        )
    if not is_remote(location):
        raise ValueError(f"{location} is local")
    return str(location)


def _web() -> "Client":
    # Imported only when needed: an HTTP client takes as long to import as the rest of a command.
    from univip_stream.storage.web import client

    return client()
