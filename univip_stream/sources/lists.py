"""A list of images: a text file with a path or URL a line, or a Parquet file with a column of them."""

import os
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from univip_stream import storage
from univip_stream.errors import InputError, why
from univip_stream.sources.listing import SourceImage, text_of

TEXTS = (".txt", ".list", ".lst")
"""Suffixes of lists with a path or URL a line."""
TABLES = (".parquet",)
"""Suffixes of lists in columns."""
_COLUMNS = ("path", "url", "image_path")


def list_images(location: str, name: str) -> Iterator[SourceImage]:
    """The images a list names, in its order. Relative paths start at the list's folder.

    Whether they are there is found out when they are read.

    Args:
        location: of the list, local or remote.
        name: what the source is called.

    Raises:
        InputError: the same image twice, or a list that cannot be read; the message names the line.

    """
    with _local(location) as path:
        _refuse_doubles(location, path)
        for _, image in _entries(location, path, name):
            yield image


def _refuse_doubles(location: str, path: Path) -> None:
    # Eight bytes an image: two that agree in them are looked at again.
    hashes = array("Q", (_hash(image.path) for _, image in _entries(location, path, "")))
    values, counts = np.unique(np.frombuffer(hashes, np.uint64) if hashes else np.empty(0, np.uint64), return_counts=True)
    suspects = set(values[counts > 1].tolist())
    if not suspects:
        return
    seen: dict[str, str] = {}
    for place, image in _entries(location, path, ""):
        if _hash(image.path) in suspects:
            if image.path in seen:
                raise InputError(
                    f"{location}: {place} names {image.source[1:]!r}, which {seen[image.path]} names already; "
                    "expected each image once"
                )
            seen[image.path] = place


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(os.fsencode(text), digest_size=8).digest())


def _entries(location: str, path: Path, name: str) -> Iterator[tuple[str, SourceImage]]:
    """Where in the list it stands, and the image."""
    folder = storage.parent(location) if storage.is_remote(location) else str(Path(location).parent)
    for place, text, label in _table(location, path) if path.suffix in TABLES else _lines(path):
        try:
            remote = storage.is_remote(text)
        except InputError as error:
            raise InputError(f"{location}: {place}: {error}") from error
        at = text if remote else os.path.normpath(text) if os.path.isabs(text) else _below(folder, text)
        yield place, SourceImage(source=f"{name}/{text_of(text).lstrip('/')}", path=at, label=label)


def _below(folder: str, text: str) -> str:
    if storage.is_remote(folder):
        return storage.join(folder, text.removeprefix("./"))
    return os.path.normpath(os.path.join(folder, text))


def _lines(path: Path) -> Iterator[tuple[str, str, None]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = os.fsdecode((line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).rstrip(b"\r\n"))
            if text.strip() and not text.lstrip().startswith("#"):
                yield f"line {number}", text, None


def _table(location: str, path: Path) -> Iterator[tuple[str, str, str | None]]:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            column = next((name for name in _COLUMNS if name in names), None)
            if column is None:
                raise InputError(
                    f"{location} has the columns {', '.join(names)}; expected one of {', '.join(_COLUMNS)}, and perhaps label"
                )
            number = 0
            for batch in file.iter_batches(8192, columns=[column, *({"label"} & set(names))]):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", _path(location, number, row[column]), _label(row.get("label"))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{location}: not a Parquet file that can be read ({why(error)})") from error


def _path(location: str, number: int, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"{location}: row {number} names {value!r}; expected a path or URL")
    return value


def _label(value: Any) -> str | None:
    return None if value is None else str(value)


@contextmanager
def _local(location: str) -> Iterator[Path]:
    """A local file with the list."""
    if not storage.is_remote(location):
        yield Path(location)
        return
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, f"list{os.path.splitext(storage.name_of(location))[1].lower()}")
        try:
            storage.copy_in(location, path)
        except OSError as error:
            raise InputError(f"{location}: {why(error)}") from error
        yield path
