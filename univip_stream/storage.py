"""Files where they lie: local paths, object stores (`s3://`, `gs://`, `hdfs://`, by pyarrow) and `http(s)://` (by fsspec).

A location is a local path or a URL. Where one of these kinds cannot do a thing (a web server lists no folder), the error
says what to name instead. Object stores take their keys and endpoint from the usual environment variables
(`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, ...); nothing of that is ever part of a location.
"""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from univip_stream.errors import InputError

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
OBJECT_STORES = ("s3", "gs", "gcs", "hdfs")
WEB = ("http", "https")
TRIES = 4
"""How often a request is made before its error counts; waits between them double from FIRST_WAIT."""
FIRST_WAIT = 0.25
"""Seconds."""
SILENCE = 60.0
"""Seconds without a byte after which a web server's answer counts as an error."""
_PIECE = 1 << 20
_S3_HINT = " (keys and server come from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL)"
_Result = TypeVar("_Result")


def scheme_of(location: str | Path) -> str | None:
    """`s3`, `https`, ... in lower case; None for a local path.

    Raises:
        InputError: a scheme that is not read.

    """
    found = _SCHEME.match(str(location))
    if not found:
        return None
    scheme = found[1].lower()
    if scheme not in OBJECT_STORES + WEB:
        known = ", ".join(f"{name}://" for name in OBJECT_STORES + WEB)
        raise InputError(f"{location}: {found[1]}:// is not read; expected a local path or one of {known}")
    if scheme != "hdfs" and not str(location)[found.end() :].strip("/"):
        where = "bucket/folder" if scheme in OBJECT_STORES else "host/folder"
        raise InputError(f"{location} names no {where.partition('/')[0]}; expected {scheme}://{where}")
    return scheme


def is_remote(location: str | Path) -> bool:
    """Whether it is a URL."""
    return scheme_of(location) is not None


def absolute(location: str | Path) -> str:
    """The location as another process finds it, wherever that was started."""
    return str(location) if is_remote(location) else os.path.join(os.getcwd(), location)


def join(folder: str | Path, name: str) -> str:
    """The location of a file in a folder; a web address keeps what follows its `?`."""
    if scheme_of(folder) in WEB:
        path, mark, query = str(folder).partition("?")
        return f"{path.rstrip('/')}/{name}{mark}{query}"
    return f"{str(folder).rstrip('/')}/{name}" if is_remote(folder) else os.path.join(folder, name)


def parent(location: str | Path) -> str:
    """The folder a file lies in."""
    if not is_remote(location):
        return str(Path(location).parent)
    path, mark, query = str(location).partition("?") if scheme_of(location) in WEB else (str(location), "", "")
    return path.rstrip("/").rpartition("/")[0] + mark + query


def name_of(location: str | Path) -> str:
    """The last part of it, without a web address's query."""
    text = str(location)
    return (text.partition("?")[0] if scheme_of(text) in WEB else text).rstrip("/").rpartition("/")[2]


def size_of(location: str | Path) -> int | None:
    """Bytes of a file; None if there is none.

    Raises:
        OSError: whether there is one cannot be found out, after retries.

    """
    scheme = scheme_of(location)
    if scheme is None:
        path = Path(location)
        return path.stat().st_size if path.is_file() else None
    if scheme in WEB:
        try:
            size = _tried(location, lambda: _if_there(location, lambda: _web().info(str(location))["size"]))
        except FileNotFoundError:
            return None
        if size is None:
            raise OSError(f"{location}: the server does not say how large it is (no Content-Length)")
        return int(size)
    fs, path_there = _store(location)
    info = _tried(location, lambda: fs.get_file_info(path_there))
    return int(info.size) if info.is_file else None


def read(location: str | Path, offset: int = 0, size: int | None = None) -> bytes:
    """The bytes of a file, or `size` of them from `offset` on; fewer where it ends before.

    Raises:
        FileNotFoundError: there is none.
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
        # A server that does not say it serves ranges sends everything, whatever is asked for.
        if (offset or size is not None) and _serves_ranges(str(location), os.getpid()):
            end = None if size is None else offset + size
            return _tried(location, lambda: _range(str(location), offset, end))
        data = _tried(location, lambda: bytes(_web().cat_file(str(location))))
        return data[offset : None if size is None else offset + size]
    fs, path_there = _store(location)

    def ranged() -> bytes:
        with fs.open_input_file(path_there) as file:
            there = file.size()
            wanted = there - offset if size is None else min(size, there - offset)
            return bytes(file.read_at(wanted, offset)) if wanted > 0 else b""

    return _tried(location, ranged)


@contextlib.contextmanager
def opened(location: str | Path) -> Iterator[BinaryIO]:
    """A file open for reading from its beginning, in pieces; seekable."""
    scheme = scheme_of(location)
    if scheme is None:
        with open(location, "rb") as file:
            yield file
    elif scheme in WEB:
        request = partial(_if_there, location, lambda: _web().open(str(location), block_size=8 * _PIECE))
        with _tried(location, request) as file:
            yield file
    else:
        fs, path_there = _store(location)
        with _tried(location, lambda: fs.open_input_file(path_there)) as file:
            yield cast(BinaryIO, file)


def copy_in(location: str | Path, path: Path) -> int:
    """Write a file's bytes to a local path, and return how many; a failure leaves no whole-looking file.

    The whole copy is made again where the connection breaks: `path` is truncated first.
    """

    def copied() -> int:
        with opened(location) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target, _PIECE)
            return target.tell()

    try:
        return _tried(location, copied) if is_remote(location) else copied()
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def copy_out(path: Path, location: str) -> None:
    """Write a local file to an object store: there it appears whole or not at all."""
    _writable(location)
    fs, path_there = _store(location)

    def copied() -> None:
        with path.open("rb") as source, fs.open_output_stream(path_there) as target:
            while piece := source.read(8 * _PIECE):
                target.write(piece)

    _tried(location, copied)


def write(location: str, data: bytes) -> None:
    """Write bytes to an object store: whole or not at all."""
    _writable(location)
    fs, path_there = _store(location)

    def written() -> None:
        with fs.open_output_stream(path_there) as target:
            target.write(data)

    _tried(location, written)


def remove(location: str) -> None:
    """Delete a file in an object store; one that is not there is none the less gone."""
    _writable(location)
    fs, path_there = _store(location)
    with contextlib.suppress(FileNotFoundError):
        _tried(location, lambda: fs.delete_file(path_there))


def files_below(location: str | Path) -> Iterator[tuple[str, int]]:
    """(path below the folder, bytes) of every file of an object store's folder, folder by folder, sorted by the path's bytes.

    Only one folder's names are in memory at a time.

    Raises:
        InputError: a web address: a web server does not list files.

    """
    _writable(location)
    fs, root = _store(location)
    from pyarrow.fs import FileSelector, FileType

    def below(folder: str) -> Iterator[tuple[str, int]]:
        infos = _tried(location, lambda: fs.get_file_info(FileSelector(folder, allow_not_found=True)))
        entries = [(info.base_name + "/" * (info.type == FileType.Directory), info.path, info.size) for info in infos]
        del infos
        # A folder sorts as its name and a slash: then folder by folder is the order of whole paths.
        for name, path, size in sorted(entries, key=lambda entry: entry[0].encode()):
            if name.endswith("/"):
                yield from below(path)
            else:
                yield path[len(root) :].lstrip("/"), int(size)

    yield from below(root)


def names_in(location: str | Path) -> Iterator[str]:
    """Names in an object store's folder itself, in any order; a folder's name ends in a slash.

    Raises:
        InputError: a web address: a web server does not list files.

    """
    _writable(location)
    fs, root = _store(location)
    from pyarrow.fs import FileSelector, FileType

    for info in _tried(location, lambda: fs.get_file_info(FileSelector(root, allow_not_found=True))):
        yield info.base_name + "/" * (info.type == FileType.Directory)


def _writable(location: str | Path) -> None:
    if scheme_of(location) in WEB:
        raise InputError(
            f"{location}: a web server can be read file by file only; expected a local folder or an object store"
        )
    if not is_remote(location):
        raise ValueError(f"{location} is local")


def _tried(location: str | Path, request: Callable[[], _Result]) -> _Result:
    """The request's result; made again after errors that can pass."""
    wait = FIRST_WAIT
    for left in reversed(range(TRIES)):
        try:
            return request()
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError):
            raise
        except Exception as error:  # each client has its own kinds
            if isinstance(error, TypeError | AttributeError):
                raise
            if left == 0:
                hint = _S3_HINT if scheme_of(location) == "s3" else ""
                raise OSError(f"{location}: {type(error).__name__}: {error}{hint}") from error
            time.sleep(wait)
            wait *= 2
    raise AssertionError("the loop returns or raises")


def _if_there(location: str | Path, request: Callable[[], _Result]) -> _Result:
    """The request's result. fsspec says that a file is not there whatever went wrong; only a server that says so means it."""
    try:
        return request()
    except FileNotFoundError as error:
        status = getattr(error.__cause__, "status", None)
        if error.__cause__ is None or status in (404, 410):
            raise
        if status in (401, 403):
            raise PermissionError(f"{location}: the server refuses it (HTTP {status})") from error
        raise OSError(f"{location}: {type(error.__cause__).__name__}: {error.__cause__}") from error


def _store(location: str | Path) -> tuple[Any, str]:
    """pyarrow's file system and the path in it."""
    scheme, _, rest = str(location).partition("://")
    scheme = scheme.lower()
    host, _, path = rest.partition("/")
    if not host and scheme != "hdfs":
        raise InputError(f"{location} names no bucket; expected {scheme}://bucket/folder")
    # One client a process: a forked one shares its parent's connections, and hangs.
    fs = _client(scheme, host, os.getpid(), os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))
    return fs, f"/{path}" if scheme == "hdfs" else f"{host}/{path}".rstrip("/")


@lru_cache(maxsize=16)
def _client(scheme: str, host: str, process: int, endpoint: str | None) -> Any:
    from pyarrow import fs as arrow_fs

    if scheme == "s3":
        options: dict[str, Any] = {}
        if endpoint:
            kind, _, address = endpoint.partition("://")
            options = {"endpoint_override": address.rstrip("/"), "scheme": kind}
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        if region is None:
            # A bucket's region decides where requests go; one that does not say works with the default.
            with contextlib.suppress(OSError):
                region = None if endpoint else arrow_fs.resolve_s3_region(host)
        return arrow_fs.S3FileSystem(region=region or "us-east-1", **options)
    if scheme in ("gs", "gcs"):
        return arrow_fs.GcsFileSystem()
    return arrow_fs.FileSystem.from_uri(f"hdfs://{host}/")[0]


def _web() -> Any:
    return _web_client(os.getpid())


def _range(location: str, offset: int, end: int | None) -> bytes:
    try:
        return bytes(_web().cat_file(location, offset, end))
    except Exception as error:
        if getattr(error, "status", None) == 416:  # the file ends before the range begins
            return b""
        raise


@lru_cache(maxsize=4096)
def _serves_ranges(location: str, process: int) -> bool:
    """Whether the server answers a range with 206; the answer's body is not read, which may be the whole file."""
    from fsspec.asyn import sync

    fs = _web()

    async def partial_content() -> bool:
        session = await fs.set_session()
        async with session.get(location, headers={"Range": "bytes=0-0"}) as answer:
            return bool(answer.status == 206)

    return bool(_tried(location, lambda: sync(fs.loop, partial_content)))


@lru_cache(maxsize=2)
def _web_client(process: int) -> Any:
    import aiohttp
    import fsspec

    # By default a whole download may take five minutes, and a server that says nothing is waited for as long.
    patience = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=SILENCE)
    return fsspec.filesystem("http", skip_instance_cache=True, use_listings_cache=False, client_kwargs={"timeout": patience})
