"""Names of images: paths below their source, and equal names in different Unicode forms.

An accented letter is one character (NFC, as people type it) or two (NFD, as on a Mac's disk).
"""

import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import TypeVar

import numpy as np

_Value = TypeVar("_Value")


class ByName(Mapping[str, _Value]):
    """A mapping that also finds names in another Unicode form; exact matches take precedence.

    If two of its names are equal in another form, only exact matches find them.
    """

    def __init__(self, entries: Mapping[str, _Value]):
        self._entries = entries
        self._others = other_forms(entries)

    def __getitem__(self, name: str) -> _Value:
        return self._entries[self.own_form(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def own_form(self, name: str) -> str:
        """Return the form of `name` that is in this mapping; `name` itself if there is none."""
        if name in self._entries or not self._others:
            return name
        return self._others.get(unicodedata.normalize("NFC", name)) or name


def other_forms(names: Iterable[str]) -> dict[str, str | None]:
    """Return NFC form -> name for each name that is not ASCII; None if two names share the form."""
    forms: dict[str, str | None] = {}
    for name in names:
        if not name.isascii():
            form = unicodedata.normalize("NFC", name)
            forms[form] = None if form in forms else name
    return forms


def spellings(name: str) -> list[str]:
    """Return a name as given, and in both Unicode forms that a disk may use."""
    return list(dict.fromkeys([name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)]))


def path_below(source: str, sources: Sequence[str]) -> str:
    """Return an image's path below its source.

    Args:
        source: name of the image, which begins with its source's name.
        sources: names of all sources.

    """
    fitting = [name for name in sources if source.startswith(f"{name}/")]
    return source[len(max(fitting, key=len)) + 1 :] if fitting else source


def path_of(source: str, sources: Sequence[str]) -> str:
    """Return a unique path of an image: below the source if there is one source, with the source's name if there are several."""
    return path_below(source, sources) if len(sources) == 1 else source


def number_of(name: str) -> int:
    """Return a number of 64 bits that stands for a name: of equal ones the names are compared again."""
    return int.from_bytes(blake2b(name.encode("utf-8", "backslashreplace"), digest_size=8).digest())


def repeated(numbers: "array[int]") -> set[int]:
    """Return the numbers that an array of type `Q` or `q` holds more than once."""
    found = np.frombuffer(numbers, numbers.typecode) if numbers else np.empty(0, np.int64)
    values, counts = np.unique(found, return_counts=True)
    return set(values[counts > 1].tolist())
