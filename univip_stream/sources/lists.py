"""Lists of images: a text file with one path or URL per line, or a table with a column of them."""

import os
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from univip_stream import storage
from univip_stream.errors import InputError, why
from univip_stream.sources.columns import TABLES, Row, table_rows
from univip_stream.sources.lines import FORMS, Exists, Form, form_of, lines, no_file_exists
from univip_stream.sources.listing import SourceImage, text_of
from univip_stream.sources.names import number_of, repeated

TEXTS = (".txt", ".list", ".lst")
"""Suffixes of lists with one path or URL per line."""
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
        table = path.suffix.lower() in TABLES
        form = FORMS[0] if table else form_of(location, path, exists)

        def rows(counted: Counter[str] | None) -> Iterator[Row]:
            return table_rows(location, path) if table else _lines(location, path, form or FORMS[0], counted, exists)

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
