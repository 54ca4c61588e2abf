"""Object stores, accessed with pyarrow: `s3://`, `gs://`, `hdfs://`.

Keys and endpoint come from the usual environment variables; these are never part of a location. Errors are `OSError`s that
name the location and the reason.
"""

import atexit
import contextlib
import io
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from univip_stream.errors import InputError
from univip_stream.storage.explain import TooLongError, explained_store, no_such_bucket
from univip_stream.storage.limit import Limit
from univip_stream.storage.names import is_odd
from univip_stream.storage.retry import PassingError, failure, may_pass, tried

_PIECE = 8 << 20
_YES = frozenset({"yes", "true", "on", "1"})
_UNSIGNED = {"s3": "AWS_NO_SIGN_REQUEST", "gs": "GS_NO_SIGN_REQUEST", "gcs": "GS_NO_SIGN_REQUEST"}
"""Environment variables, named as in GDAL; their value is YES, or names the buckets that are read without keys."""
_BUNDLE = "AWS_CA_BUNDLE"
"""Environment variable of Amazon's own tools that names a file of certificates to trust; pyarrow itself only knows OpenSSL's."""
_Result = TypeVar("_Result")


def size_of(location: str) -> int | None:
    """Return the size of a file in bytes; None if it does not exist."""
    fs, path_there = _store(location)
    info = _with_retries(location, lambda: fs.get_file_info(path_there))
    if not info.is_file:
        _check_bucket(location)
        return None
    return int(info.size)


def read(location: str, offset: int, size: int | None, most: int | None = None, *, seconds: float | None = None) -> bytes:
    """Read a file, or `size` bytes of it from `offset` on.

    Raises:
        TooLongError: it has more than `most` bytes.
        TimeoutError: it takes longer than `seconds` (None: `limit.PATIENCE`) and the time for its bytes, all tries together.

    """
    fs, path_there = _store(location)
    limit = Limit(location, seconds)

    def ranged() -> bytes:
        with fs.open_input_file(path_there) as file:
            there = file.size()
            if most is not None and there > most:
                raise TooLongError(there)
            wanted = there - offset if size is None else min(size, there - offset)
            limit.allow_for(max(0, wanted))
            return bytes(file.read_at(wanted, offset)) if wanted > 0 else b""

    return _with_retries(location, ranged, limit)


@contextlib.contextmanager
def opened(location: str) -> Iterator[BinaryIO]:
    """Open a file for reading in pieces; it is seekable. Each read has a time limit."""
    fs, path_there = _store(location)
    with _with_retries(location, lambda: fs.open_input_file(path_there)) as file:
        yield cast(BinaryIO, _InTime(location, file))


def copy_out(path: Path, location: str) -> None:
    """Copy a local file to the store, where it appears whole or not at all."""
    fs, path_there = _store(location)
    limit = Limit(location)
    limit.allow_for(path.stat().st_size)

    def copied() -> None:
        with path.open("rb") as source, fs.open_output_stream(path_there) as target:
            while piece := source.read(_PIECE):
                target.write(piece)

    _with_retries(location, copied, limit)


def write(location: str, data: bytes) -> None:
    """Write bytes, whole or not at all."""
    fs, path_there = _store(location)
    limit = Limit(location)
    limit.allow_for(len(data))

    def written() -> None:
        with fs.open_output_stream(path_there) as target:
            target.write(data)

    _with_retries(location, written, limit)


def remove(location: str) -> None:
    """Delete a file if it exists."""
    fs, path_there = _store(location)
    with contextlib.suppress(FileNotFoundError):
        _with_retries(location, lambda: fs.delete_file(path_there))


def files_below(location: str) -> Iterator[tuple[str, int]]:
    """Yield (path below the folder, bytes) of every file, sorted by the path's bytes, including odd keys."""
    fs, root = _store(location)
    from pyarrow.fs import FileSelector, FileType

    def below(folder: str) -> Iterator[tuple[str, int]]:
        infos = _with_retries(location, lambda: fs.get_file_info(FileSelector(folder, allow_not_found=True)), endless=True)
        entries = [
            (info.base_name + "/" * (info.type == FileType.Directory), info.path, info.size)
            for info in infos
            if info.path.rstrip("/") != folder
        ]
        # pyarrow shows keys that begin with a slash here as a folder that is this folder itself, and would list it forever.
        entries += [("/", "", 0)] * (len(entries) < len(infos))
        del infos
        # A folder is sorted as its name with a slash, so that the order is that of whole paths.
        for name, path, size in sorted(entries, key=lambda entry: entry[0].encode()):
            if name == "/":
                yield from nameless(folder)
            elif name.endswith("/"):
                yield from below(path)
            else:
                yield path[len(root) :].lstrip("/"), int(size)

    def nameless(folder: str) -> Iterator[tuple[str, int]]:
        infos = _with_retries(
            location, lambda: fs.get_file_info(FileSelector(folder, recursive=True, allow_not_found=True)), endless=True
        )
        found = [(info.path, info.size) for info in infos if info.is_file and info.path.startswith(f"{folder}//")]
        for path, size in sorted(found, key=lambda entry: entry[0].encode()):
            yield path[len(root) + 1 :], int(size)

    empty = True
    for entry in below(root):
        empty = False
        yield entry
    if empty:
        _check_bucket(location)


def names_in(location: str) -> Iterator[str]:
    """Yield the names in a folder itself, in any order; a folder's name ends in a slash."""
    fs, root = _store(location)
    from pyarrow.fs import FileSelector, FileType

    infos = _with_retries(location, lambda: fs.get_file_info(FileSelector(root, allow_not_found=True)), endless=True)
    if not infos:
        _check_bucket(location)
    for info in infos:
        yield info.base_name + "/" * (info.type == FileType.Directory)


def _with_retries(
    location: str, request: Callable[[], _Result], limit: Limit | None = None, *, endless: bool = False
) -> _Result:
    """Return the request's result; repeat it after errors that may be temporary.

    Args:
        location: location that is accessed.
        request: the request.
        limit: the time that all tries may take together; None is the usual one.
        endless: no limit, for lists of names, which come in as many parts as there are names.

    """
    limit = limit or Limit(location)

    def explaining() -> _Result:
        try:
            return request() if endless else limit.carry_out(request)
        except (TooLongError, InputError):
            raise
        except FileNotFoundError as error:
            _check_bucket(location)
            raise failure(FileNotFoundError, location, "no such file") from error
        except Exception as error:  # each client has its own kinds
            found = error if "may_pass" in error.__dict__ else explained_store(location, error)
            if found is error:
                raise
            if may_pass(found):
                raise PassingError from found
            raise found from error

    return tried(explaining)


class _InTime(io.RawIOBase):
    """A file of pyarrow's whose reads have a time limit each."""

    def __init__(self, location: str, file: Any) -> None:
        self._location, self._file = location, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(self._file.tell())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def read(self, size: int | None = -1) -> bytes:
        limit = Limit(self._location)
        there = self._file.size() - self._file.tell()
        wanted = there if size is None or size < 0 else min(size, there)
        limit.allow_for(max(0, wanted))
        return bytes(limit.carry_out(lambda: self._file.read(wanted))) if wanted > 0 else b""

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        piece = self.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


def _check_bucket(location: str) -> None:
    """Raise an error if the bucket does not exist, which otherwise looks like an empty one."""
    scheme, _, rest = location.partition("://")
    if scheme.lower() != "s3":
        return
    fs, _ = _store(location)
    bucket = rest.partition("/")[0]
    with contextlib.suppress(PermissionError):  # a user who may read a bucket's files may not be allowed to query the bucket
        if not _with_retries(location, lambda: _bucket_there(fs, bucket)):
            raise no_such_bucket(location)


_buckets: set[tuple[int, str]] = set()


def _bucket_there(fs: Any, bucket: str) -> bool:
    from pyarrow.fs import FileType

    known = (id(fs), bucket)
    if known not in _buckets and fs.get_file_info(bucket).type != FileType.NotFound:
        _buckets.add(known)
    return known in _buckets


def _store(location: str) -> tuple[Any, str]:
    """Return pyarrow's file system and the path in it."""
    scheme, _, rest = location.partition("://")
    scheme = scheme.lower()
    host, _, path = rest.partition("/")
    if not host and scheme != "hdfs":
        raise InputError(f"{location} names no bucket; expected {scheme}://bucket/folder")
    path = path.rstrip("/")
    if path and is_odd(path):
        raise InputError(
            f"{location}: object stores are read by paths, and a path has no part that is empty, '.' or '..'; expected "
            f"{scheme}://{host}/folder/name (copy keys that are named so to others)"
        )
    # One client per process: a forked process would share its parent's connections, and hang.
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    try:
        address = endpoint if scheme == "s3" else None
        trusted = tuple(os.environ.get(name, "") for name in (_BUNDLE, "SSL_CERT_FILE"))
        with _making:
            fs = _client(scheme, host, os.getpid(), address, _unsigned(scheme, host), trusted)
    except InputError:
        raise
    except (OSError, ValueError, NotImplementedError, AttributeError) as error:
        raise failure(OSError, location, f"no client for it can be made ({error})") from error
    return fs, f"/{path}" if scheme == "hdfs" else f"{host}/{path}".rstrip("/")


def _unsigned(scheme: str, bucket: str) -> bool:
    """Whether a bucket is read without keys."""
    setting = os.environ.get(_UNSIGNED.get(scheme, ""), "")
    return setting.lower() in _YES or bucket in [name.strip() for name in setting.split(",")]


@lru_cache(maxsize=16)
def _authorities(bundle: str, openssl: str) -> str:
    """Return a file with the certificates of AWS_CA_BUNDLE and of SSL_CERT_FILE, which pyarrow no longer reads if it has one."""
    if not os.path.isfile(bundle):
        raise InputError(f"{_BUNDLE} is {bundle!r}; expected a file of certificates (PEM)")
    if not os.path.isfile(openssl) or os.path.samefile(bundle, openssl):
        return bundle
    descriptor, path = tempfile.mkstemp(prefix="univip-stream-", suffix=".pem")
    atexit.register(_remove, path, os.getpid())
    with open(descriptor, "wb") as both:
        both.write(Path(bundle).read_bytes() + b"\n" + Path(openssl).read_bytes())
    return path


def _remove(path: str, process: int) -> None:
    if os.getpid() == process:  # not when a process ends that was forked from this one
        Path(path).unlink(missing_ok=True)


_making = threading.Lock()
"""Held while a client is made: threads that ask for the first one together would each make their own."""


def _forget_makers() -> None:
    """In a forked process: the thread that was making a client is not there."""
    global _making
    _making = threading.Lock()


os.register_at_fork(after_in_child=_forget_makers)


@lru_cache(maxsize=1)
def _drop_clients_at_the_end() -> None:
    """Let go of all clients when the process ends, before pyarrow finalizes S3.

    With one of its file systems still alive that can wait for ever, in pyarrow 24 and later (apache/arrow issue 50188).
    """
    # Registered after pyarrow's own function, which its import has registered, so that it runs before that.
    atexit.register(_client.cache_clear)


@lru_cache(maxsize=16)
def _client(scheme: str, host: str, process: int, endpoint: str | None, unsigned: bool, trusted: tuple[str, ...]) -> Any:
    from pyarrow import fs as arrow_fs

    _drop_clients_at_the_end()
    if scheme == "s3":
        options: dict[str, Any] = {"anonymous": True} if unsigned else {}
        if endpoint:
            kind, _, address = endpoint.partition("://")
            if kind.lower() not in ("http", "https") or not address.strip("/"):
                raise InputError(
                    f"AWS_ENDPOINT_URL is {endpoint!r}; expected a web address such as https://s3.example.org:9000"
                )
            options |= {"endpoint_override": address.rstrip("/"), "scheme": kind.lower()}
        if trusted[0] and options.get("scheme") != "http":
            options["tls_ca_file_path"] = _authorities(*trusted)
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        if region is None:
            # A bucket's region decides where requests go; one that does not say works with the default.
            with contextlib.suppress(OSError):
                region = None if endpoint else arrow_fs.resolve_s3_region(host)
        options["region"] = region or "us-east-1"
        try:
            return arrow_fs.S3FileSystem(**options)
        except TypeError:  # a pyarrow that does not know the option
            options.pop("tls_ca_file_path", None)
            return arrow_fs.S3FileSystem(**options)
    if scheme in ("gs", "gcs"):
        return arrow_fs.GcsFileSystem(anonymous=unsigned)
    return arrow_fs.FileSystem.from_uri(f"hdfs://{host}/")[0]
