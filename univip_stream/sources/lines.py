"""Lines of a list as other tools write them: which of some known forms a text file's lines have, found by what is there.

A line is a path or URL as it stands, if that is there for any line of the list. Otherwise quotes and blanks around it, a label
behind it (mmpretrain, Caffe, CSV of two columns) and backslashes (Windows) are tried, in this order, and the first form in
which a line's path is there counts for the whole list.
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
"""Path or URL, and label."""
There = Callable[[str], bool | None]
"""Whether there is a file at a path or URL of a list; None where that is not known without asking somebody."""
_TRIED = 1000
"""Lines on which all forms are tried; of a longer list nothing of which is there the rest is looked at as it stands."""
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
"""First words of a table's first line."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """How the lines of a list are written."""

    says: str | None
    """For people; None where a line is a path and nothing else."""
    parse: Callable[[str], Line | None]
    """A line's path and label; None where it has not this form."""


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


_PLAIN = Form(says=None, parse=lambda text: (text, None))
_FORMS = [
    Form(says="paths, with blanks or quotes around them that were taken off", parse=lambda text: (_unquoted(text), None)),
    Form(says="a path and a label a line, with a tab between", parse=_split("\t")),
    Form(says="a path and a label a line, with a comma between", parse=_split(",")),
    Form(says="a path and a label a line, with a semicolon between", parse=_split(";")),
    Form(says="a path and a label a line, with a blank between", parse=_split(" ")),
]
FORMS = [
    _PLAIN,
    *_FORMS,
    *(
        Form(says=f"{form.says or 'paths'}, backslashes for slashes", parse=_with_slashes(form.parse))
        for form in [_PLAIN, *_FORMS]
    ),
]


def form_of(location: str, path: Path, there: There) -> Form | None:
    """The form of a list's lines; None where no line's path is there in any form.

    Args:
        location: of the list, for people.
        path: of a local file with it.
        there: whether a path or URL of the list is; None where that is not known without asking somebody.

    """

    def met(form: Form, text: str) -> bool:
        parsed = form.parse(text)
        if parsed is None or not parsed[0]:
            return False
        found = there(parsed[0])
        return _looks_whole(parsed[0]) if found is None else found

    found: set[int] = set()
    count, asked = 0, False
    for _, text in lines(location, path, None, there):
        count += 1
        asked = asked or there(text) is None
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
    return FORMS[0] if asked else None  # addresses are asked for when they are read


def nothing_there(location: str, path: Path, there: There) -> InputError:
    """What is said of a list of which no line's path is there."""
    texts = [text for _, text in lines(location, path, None, there)]
    return InputError(
        f"{location}: none of its {len(texts)} lines names a file that is there: relative paths start at "
        f"{Path(location).absolute().parent}, and its first line is {texts[0][:80]!r}; expected a list with a path or URL a line, "
        "perhaps with a label behind it"
    )


def lines(location: str, path: Path, ignored: Counter[str] | None, there: There) -> Iterator[tuple[int, str]]:
    """Number and text of every line that says something, without comments.

    A line that begins with # is a comment, unless a file of this name is there, or it looks as if one should be: `#1.jpg`. Then
    it is a path, and a missing one is said when it is read.

    Args:
        location: of the list, for people.
        path: of a local file with it.
        ignored: gets the comments, counted; None where they were counted before.
        there: as `form_of`.

    Raises:
        InputError: no text.

    """
    for number, text in _texts(location, path):
        if number == 1 and re.split(r"[\t,; ]", _unquoted(text))[0].strip("\"' ").lower() in _HEADINGS and not there(text):
            if ignored is not None:
                ignored["headings of lists"] += 1
        elif text.lstrip().startswith("#") and not there(text) and not _named(text.lstrip(), there):
            if ignored is not None:
                ignored["comments in lists"] += 1
        elif text.strip():
            yield number, text


def _named(text: str, there: There) -> bool:
    """Whether a line that begins with # is a path: its ending is an image's, and it is none with a # before it."""
    rest = text[1:]
    ending = os.path.splitext(rest.strip())[1][1:].lower()
    return ending in SUFFIXES and not rest[:1].isspace() and "://" not in rest and not there(rest)


def _texts(location: str, path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        begin = file.read(4096)
        encoding = "utf-16" if begin[:2] in (b"\xff\xfe", b"\xfe\xff") else None  # PowerShell's `dir > list.txt`
        if encoding is None and b"\0" in begin:
            raise InputError(
                f"{location} is no text (it begins with {begin[:12]!r}); expected a list with a path or URL a line"
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
        raise InputError(f"{location} begins as UTF-16 and is none ({error}); expected UTF-8") from error


def _looks_whole(text: str) -> bool:
    """Whether a URL of whose being there nothing is known is all of a line: nothing behind an image's ending."""
    found = re.match(r"\s*[\"']?(\S+?)\.(\w+)[\"']?[\t ,;]+[\"']?[^\s/.]+[\"']?\s*$", text)
    return not (found and found[2].lower() in SUFFIXES) and text == text.strip() and text[:1] not in "\"'"
