"""Recognise the form of a list's lines, as other tools write them, by checking which files exist.

A line is taken as a plain path or URL if that exists for any line of the list. Otherwise quotes and blanks around it, a label
behind it (mmpretrain, Caffe, CSV of two columns) and backslashes (Windows) are tried, in this order, and the first form in
which a line's path exists is used for the whole list.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from univip_stream.errors import InputError
from univip_stream.images import SUFFIXES

Line = tuple[str, str | None]
"""(path or URL, label)"""
Exists = Callable[[str], bool | None]
"""Tells whether a path or URL of a list exists; None if that is not known without a request."""
_TRIED = 1000
"""Number of lines on which all forms are tried; later lines of a longer list are only checked as plain paths."""
_HEADINGS = frozenset(
    {
        "path",
        "file",
        "filename",
        "file_name",
        "filepath",
        "file_path",
        "image",
        "image_path",
        "img",
        "img_path",
        "name",
        "url",
    }
)
"""First words by which the heading of a table is recognised."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """A way to write the lines of a list."""

    description: str | None
    """Description; None if a line is a path and nothing else."""
    parse: Callable[[str], Line | None]
    """Returns a line's path and label; None if it does not have this form."""


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _split(separator: str) -> Callable[[str], Line | None]:
    def parse(text: str) -> Line | None:
        path, found, label = text.strip().rpartition(separator)
        return (_unquoted(path), _unquoted(label) or None) if found and path.strip() else None

    return parse


def _with_slashes(parse: Callable[[str], Line | None]) -> Callable[[str], Line | None]:
    def parsed(text: str) -> Line | None:
        found = parse(text)
        return (found[0].replace("\\", "/"), found[1]) if found and "\\" in found[0] else None

    return parsed


_PLAIN = Form(description=None, parse=lambda text: (text, None))
_FORMS = [
    Form(
        description="paths, with blanks or quotes around them that were taken off", parse=lambda text: (_unquoted(text), None)
    ),
    Form(description="a path and a label a line, with a tab between", parse=_split("\t")),
    Form(description="a path and a label a line, with a comma between", parse=_split(",")),
    Form(description="a path and a label a line, with a semicolon between", parse=_split(";")),
    Form(description="a path and a label a line, with a blank between", parse=_split(" ")),
]
FORMS = [
    _PLAIN,
    *_FORMS,
    *(
        Form(description=f"{form.description or 'paths'}, backslashes for slashes", parse=_with_slashes(form.parse))
        for form in [_PLAIN, *_FORMS]
    ),
]


def form_of(location: str, path: Path, exists: Exists) -> Form | None:
    """Return the form of a list's lines; None if no line's path exists in any form.

    Args:
        location: location of the list, for messages.
        path: local file with the list.
        exists: tells whether a path or URL of the list exists; None if that is not known without a request.

    """

    def met(form: Form, text: str) -> bool:
        parsed = form.parse(text)
        if parsed is None or not parsed[0]:
            return False
        found = exists(parsed[0])
        return _is_url_only(parsed[0]) if found is None else found

    found: set[int] = set()
    count, asked = 0, False
    for _, text in lines(location, path, None, exists):
        count += 1
        asked = asked or exists(text) is None
        forms = FORMS if count <= _TRIED else FORMS[:1]
        at = next((at for at, form in enumerate(forms) if met(form, text)), None)
        if at == 0 or (found and count > _TRIED):
            break
        if at is not None:
            found.add(at)
    else:
        at = None
    if at == 0 or not count:
        return FORMS[0]
    if found:
        return FORMS[min(found)]
    return FORMS[0] if asked else None  # URLs are requested only when they are read


def no_file_exists(location: str, path: Path, exists: Exists) -> InputError:
    """Return the error for a list none of whose paths exists."""
    texts = [text for _, text in lines(location, path, None, exists)]
    return InputError(
        f"{location}: none of its {len(texts)} lines names a file that is there: relative paths start at "
        f"{Path(location).absolute().parent}, and its first line is {texts[0][:80]!r}; expected a list with a path or URL a line, "
        "perhaps with a label behind it"
    )


def lines(location: str, path: Path, ignored: Counter[str] | None, exists: Exists) -> Iterator[tuple[int, str]]:
    """Yield number and text of every line that is neither empty nor a comment.

    A line that begins with # is a comment, unless a file of this name exists or it looks like an image's name: `#1.jpg`. Then
    it is a path, and reading it fails if it is missing.

    Args:
        location: location of the list, for messages.
        path: local file with the list.
        ignored: counts the comments; None if they were counted before.
        exists: as in `form_of`.

    Raises:
        InputError: the file is not text.

    """
    for number, text in _texts(location, path):
        if number == 1 and re.split(r"[\t,; ]", _unquoted(text))[0].strip("\"' ").lower() in _HEADINGS and not exists(text):
            if ignored is not None:
                ignored["headings of lists"] += 1
        elif text.lstrip().startswith("#") and not exists(text) and not _is_path(text.lstrip(), exists):
            if ignored is not None:
                ignored["comments in lists"] += 1
        elif text.strip():
            yield number, text


def _is_path(text: str, exists: Exists) -> bool:
    """Whether a line that begins with # is a path: it has an image's suffix, and is not a path behind a #."""
    rest = text[1:]
    ending = os.path.splitext(rest.strip())[1][1:].lower()
    return ending in SUFFIXES and not rest[:1].isspace() and "://" not in rest and not exists(rest)


def _texts(location: str, path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        begin = file.read(4096)
        encoding = "utf-16" if begin[:2] in (b"\xff\xfe", b"\xfe\xff") else None  # PowerShell's `dir > list.txt`
        if encoding is None and b"\0" in begin:
            raise InputError(
                f"{location} is not text (it begins with {begin[:12]!r}); expected a list with a path or URL a line"
            )
    if encoding is None:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield number, os.fsdecode((line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).rstrip(b"\r\n"))
        return
    try:
        with path.open(encoding=encoding, newline="\n") as words:
            for number, text in enumerate(words, 1):
                yield number, text.rstrip("\r\n")
    except UnicodeError as error:
        raise InputError(f"{location} begins as UTF-16 but is not ({error}); expected UTF-8") from error


def _is_url_only(text: str) -> bool:
    """Whether a line seems to be a URL and nothing else: nothing follows an image's suffix, and there are no quotes."""
    found = re.match(r"\s*[\"']?(\S+?)\.(\w+)[\"']?[\t ,;]+[\"']?[^\s/.]+[\"']?\s*$", text)
    return not (found and found[2].lower() in SUFFIXES) and text == text.strip() and text[:1] not in "\"'"
