"""Locations as text: their kinds, and how to split and join them."""

import os
import re
from pathlib import Path

from univip_stream.errors import InputError

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
OBJECT_STORES = ("s3", "gs", "gcs", "hdfs")
WEB = ("http", "https")
_KNOWN = frozenset(OBJECT_STORES + WEB)


def scheme_of(location: str | Path) -> str | None:
    """Return the scheme in lower case, such as `s3` or `https`; None for a local path.

    Raises:
        InputError: the scheme is not supported, or the bucket or host is missing.

    """
    text = str(location)
    found = _SCHEME.match(text)
    if not found:
        return None
    scheme = found[1].lower()
    if scheme not in _KNOWN:
        known = ", ".join(f"{name}://" for name in OBJECT_STORES + WEB)
        raise InputError(f"{location}: {found[1]}:// is not read; expected a local path or one of {known}")
    if scheme != "hdfs" and not text[found.end() :].strip("/"):
        where = "bucket/folder" if scheme in OBJECT_STORES else "host/folder"
        raise InputError(f"{location} names no {where.partition('/')[0]}; expected {scheme}://{where}")
    return scheme


def is_remote(location: str | Path) -> bool:
    """Whether a location is a URL."""
    return scheme_of(location) is not None


def absolute(location: str | Path) -> str:
    """Return the location in a form that is valid in any process, whatever its working folder."""
    return str(location) if is_remote(location) else os.path.join(os.getcwd(), location)


def join(folder: str | Path, name: str) -> str:
    """Return the location of a file in a folder; a web address keeps its query, the part from `?` on."""
    if scheme_of(folder) in WEB:
        path, mark, query = str(folder).partition("?")
        return f"{path.rstrip('/')}/{name}{mark}{query}"
    return f"{str(folder).rstrip('/')}/{name}" if is_remote(folder) else os.path.join(folder, name)


def parent(location: str | Path) -> str:
    """Return the folder of a file."""
    if not is_remote(location):
        return str(Path(location).parent)
    path, mark, query = str(location).partition("?") if scheme_of(location) in WEB else (str(location), "", "")
    return path.rstrip("/").rpartition("/")[0] + mark + query


def name_of(location: str | Path) -> str:
    """Return the last part of a location, without a web address's query."""
    text = str(location)
    return (text.partition("?")[0] if scheme_of(text) in WEB else text).rstrip("/").rpartition("/")[2]


def is_odd(path: str) -> bool:
    """Whether a path below a folder has a part that is empty, `.` or `..`.

    Keys of object stores can be any text; those that cannot be written as a path (`a//b.jpg`) are listed, but cannot be read.
    """
    return not {"", ".", ".."}.isdisjoint(path.split("/"))
