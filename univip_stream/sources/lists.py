"""Lists of images: a text file with one path or URL per line, or a Parquet file with a column of them."""

import math
import os
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from univip_stream import storage
from univip_stream.errors import InputError, why
from univip_stream.shards.samples import label_of
from univip_stream.sources.lines import FORMS, Exists, Form, form_of, lines, no_file_exists
from univip_stream.sources.listing import SourceImage, text_of
from univip_stream.sources.names import number_of, repeated

TEXTS = (".txt", ".list", ".lst")
"""Suffixes of lists with one path or URL per line."""
TABLES = (".parquet",)
"""Suffixes of lists in columns."""
_COLUMNS = ("path", "url", "image_path")
Row = tuple[str, str, str | None]
"""(position in the list, path or URL, label)"""
Rows = Callable[[Counter[str] | None], Iterator[Row]]
"""Reads all rows of a list from the beginning; counts what is left out, if it is given a counter."""


def list_images(location: str, name: str, ignored: Counter[str], notes: list[str]) -> Iterator[SourceImage]:
    """Yield the images that a list names, in its order. Relative paths start at the list's folder.

    Single missing images are found only when they are read; a list none of whose images exists is refused.

    Args:
        location: location of the list, local or remote.
        name: name of the source.
        ignored: counts the lines that are comments.
        notes: receives a remark on how the list was read, if its lines are not plain paths.

    Raises:
        InputError: an image occurs twice, the list cannot be read, or none of its images exists; the message names the line.

    """
    with _local(location) as path:
        exists = _existence_check(location)
        table = path.suffix in TABLES
        form = FORMS[0] if table else form_of(location, path, exists)

        def rows(counted: Counter[str] | None) -> Iterator[Row]:
            return _table(location, path) if table else _lines(location, path, form or FORMS[0], counted, exists)

        _refuse_duplicates(location, rows)
        if form is None:
            raise no_file_exists(location, path, exists)
        if table:
            _refuse_absent(location, exists, rows)
        if form.description:
            notes.append(f"{location}: read as {form.description}")
        for _, image in _entries(location, name, rows(ignored)):
            yield image


def _existence_check(location: str) -> Exists:
    """Return a function that tells whether an entry of the list exists, as far as this machine's disks show."""

    def exists(text: str) -> bool | None:
        try:
            if storage.is_remote(text) or (storage.is_remote(location) and not os.path.isabs(text)):
                return None
            return os.path.lexists(_location_of(location, text))
        except InputError:  # a URL of an unknown kind: reported later with its line
            return None
        except ValueError:  # a name with a zero byte
            return False

    return exists


def _refuse_absent(location: str, exists: Exists, rows: Rows) -> None:
    first, count = "", 0
    for _, text, _ in rows(None):
        if exists(text) is not False:
            return
        first, count = first or text, count + 1
    if count:
        raise InputError(
            f"{location}: none of its {count} rows names a file that is there: relative paths start at "
            f"{Path(location).absolute().parent}, and its first is {first[:80]!r}; expected paths or URLs"
        )


def _refuse_duplicates(location: str, rows: Rows) -> None:
    # Eight bytes per image: images with equal hashes are compared again.
    suspects = repeated(array("Q", (number_of(path) for _, _, path in _paths(location, rows(None)))))
    if not suspects:
        return
    seen: dict[str, str] = {}
    for place, text, path in _paths(location, rows(None)):
        if number_of(path) in suspects:
            if path in seen:
                name = text_of(text).lstrip("/")
                raise InputError(
                    f"{location}: {place} names {name!r}, which {seen[path]} names already; expected each image once"
                )
            seen[path] = place


def _paths(location: str, rows: Iterator[Row]) -> Iterator[tuple[str, str, str]]:
    """Yield (position in the list, the text there, a path that is the same for an absolute and a relative path to an image)."""
    for place, text, _ in rows:
        at = _placed(location, place, text)
        yield place, text, at if storage.is_remote(at) else os.path.abspath(at)


def _entries(location: str, name: str, rows: Iterator[Row]) -> Iterator[tuple[str, SourceImage]]:
    """Yield each image with its position in the list."""
    for place, text, label in rows:
        at = _placed(location, place, text)
        yield place, SourceImage(source=f"{name}/{text_of(text).lstrip('/')}", path=at, label=label)


def _placed(location: str, place: str, text: str) -> str:
    """Return the location of an entry, as `_location_of`; an error names its position in the list."""
    try:
        return _location_of(location, text)
    except InputError as error:
        raise InputError(f"{location}: {place}: {error}") from error


def _location_of(location: str, text: str) -> str:
    """Return the location that a path or URL of a list refers to."""
    if storage.is_remote(text):
        return text
    if os.path.isabs(text):
        return os.path.normpath(text)
    if storage.is_remote(location):
        return storage.join(storage.parent(location), text.removeprefix("./"))
    return os.path.normpath(os.path.join(Path(location).parent, text))


def _lines(location: str, path: Path, form: Form, ignored: Counter[str] | None, exists: Exists) -> Iterator[Row]:
    for number, text in lines(location, path, ignored, exists):
        found = form.parse(text)
        yield f"line {number}", *(found if found and found[0] else (text, None))


def _table(location: str, path: Path) -> Iterator[Row]:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            column = next((name for name in _COLUMNS if name in names), None)
            held = [name for name in names if column is None and _holds_images(file.schema_arrow.field(name).type)]
            if held:
                raise InputError(
                    f"{location} holds the images themselves (bytes in the column {held[0]}), as Hugging Face's data sets do; "
                    "expected paths or URLs: write the images to files, or to a tar of WebDataset samples, and name these"
                )
            if column is None:
                raise InputError(
                    f"{location} has the columns {', '.join(names)}; expected one of {', '.join(_COLUMNS)}, and perhaps label"
                )
            number = 0
            for batch in file.iter_batches(8192, columns=[column, *({"label"} & set(names))]):
                # Columns, not a dictionary a row: a list may have millions of rows.
                labels = batch.column("label").to_pylist() if "label" in names else repeat(None)
                for value, label in zip(batch.column(column).to_pylist(), labels, strict=False):
                    number += 1
                    yield f"row {number}", _path(location, number, value), _label(location, number, label)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{location}: not a Parquet file that can be read ({why(error)})") from error


def _path(location: str, number: int, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"{location}: row {number} names {value!r}; expected a path or URL")
    return value


def _label(location: str, number: int, value: Any) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):  # pandas writes either for a missing label
        return None
    if isinstance(value, bool):
        return str(value)
    label = label_of(value)
    if label is None and value != "":
        raise InputError(f"{location}: row {number} has the label {value!r}; expected text or a whole number")
    return label


def _holds_images(kind: pa.DataType) -> bool:
    binary = (pa.types.is_binary, pa.types.is_large_binary)
    fields = [kind.field(at).type for at in range(kind.num_fields)] if pa.types.is_struct(kind) else [kind]
    return any(is_binary(field) for field in fields for is_binary in binary)


@contextmanager
def _local(location: str) -> Iterator[Path]:
    """Yield a local file with the list."""
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
