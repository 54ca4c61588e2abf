"""Names of images: below their source, and such as look alike.

An accented letter is one character (NFC, as people type it) or two (NFD, as a Mac's disk has it).
"""

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

_Value = TypeVar("_Value")


class ByName(Mapping[str, _Value]):
    """A mapping that finds a name in another Unicode form too; the very same characters come first.

    Where two of its names are one in another form, only their own characters find them.
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
        """The name as this mapping has it; as it is where it has none such."""
        if name in self._entries or not self._others:
            return name
        return self._others.get(unicodedata.normalize("NFC", name)) or name


def other_forms(names: Iterable[str]) -> dict[str, str | None]:
    """The NFC form of each name that is not ASCII, and the name; None where two names share the form."""
    forms: dict[str, str | None] = {}
    for name in names:
        if not name.isascii():
            form = unicodedata.normalize("NFC", name)
            forms[form] = None if form in forms else name
    return forms


def spellings(name: str) -> list[str]:
    """A name as it is, and in the forms that a disk may have it."""
    return list(dict.fromkeys([name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)]))


def path_below(source: str, sources: Sequence[str]) -> str:
    """An image's path below the source it comes from.

    Args:
        source: its name, the source's name first.
        sources: the names of all sources.

    """
    fitting = [name for name in sources if source.startswith(f"{name}/")]
    return source[len(max(fitting, key=len)) + 1 :] if fitting else source


def path_of(source: str, sources: Sequence[str]) -> str:
    """The path that tells an image from all others: below the source if there is one, with its name if there are several."""
    return path_below(source, sources) if len(sources) == 1 else source
