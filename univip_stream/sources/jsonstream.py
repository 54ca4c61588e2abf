"""Read JSON of any length with one value in memory at a time: proposal files can have gigabytes."""

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from univip_stream.errors import InputError

_PIECE = 1 << 20
_MAX_VALUE = 1 << 28
"""Maximal number of characters of one value."""
_SPACE = " \t\r\n"


class JsonStream:
    """A JSON file that is read from beginning to end.

    `members` yields the keys of an object and stops before each value; read that with `value`, `elements` or `skip`.
    """

    def __init__(self, file: BinaryIO, name: str):
        self.name = name
        self._file = file
        self._head = file.read(4)
        # RFC 8259 demands UTF-8; Windows tools add a byte-order mark or write UTF-16, and `json.loads` reads all of them.
        self._decode = codecs.getincrementaldecoder(json.detect_encoding(self._head))().decode
        self._parse = json.JSONDecoder().raw_decode
        self._text, self._at, self._ended = "", 0, False

    def members(self) -> Iterator[str]:
        """Yield the keys of an object."""
        self._take("{")
        if self._next() == "}":
            self._take("}")
            return
        while True:
            key = self.value()
            if not isinstance(key, str):
                raise self._error(f"found the key {key!r}")
            self._take(":")
            yield key
            if self._take(",}") == "}":
                return

    def elements(self) -> Iterator[Any]:
        """Yield the elements of an array."""
        self._take("[")
        if self._next() == "]":
            self._take("]")
            return
        while True:
            yield self.value()
            if self._take(",]") == "]":
                return

    def value(self) -> Any:
        """Read the next value as a whole."""
        self._next()
        while True:
            try:
                value, end = self._parse(self._text, self._at)
                if end < len(self._text) or self._ended:  # a number at the end of the piece may continue
                    self._at = end
                    return value
            except (ValueError, RecursionError) as error:
                if self._ended or len(self._text) - self._at > _MAX_VALUE:
                    raise self._error(str(error)) from error
            self._read_more()

    def skip(self) -> None:
        """Skip the next value."""
        if self._next() == "[":
            for _ in self.elements():
                pass
        else:
            self.value()

    def at_array(self) -> bool:
        """Whether the next value is an array."""
        return self._next() == "["

    def finish(self) -> None:
        """Check that nothing follows.

        Raises:
            InputError: something does.

        """
        if found := self._next():
            raise self._error(f"found {found!r} after the end")

    def _next(self) -> str:
        """Return the next character that is not white space, without consuming it; empty at the end of the file."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at]
                self._at += 1
            if self._ended:
                return ""
            self._read_more()

    def _take(self, expected: str) -> str:
        found = self._next()
        if not found or found not in expected:
            raise self._error(f"found {found or 'its end'!r}, expected {' or '.join(expected)}")
        self._at += 1
        return found

    def _read_more(self) -> None:
        left = self._text[self._at :]
        # A long value is parsed again with every piece, so pieces grow with it.
        data = self._head + self._file.read(max(_PIECE, len(left)))
        self._head = b""
        self._ended = not data
        try:
            self._text, self._at = left + self._decode(data, final=self._ended), 0
        except UnicodeDecodeError as error:
            raise self._error(str(error)) from error

    def _error(self, what: str) -> InputError:
        return InputError(f"{self.name} is not usable JSON: {what}")
