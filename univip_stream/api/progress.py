"""Progress of a long job: one line that is rewritten on a terminal, plain lines elsewhere."""

import shutil
import sys
import time
from types import TracebackType
from typing import Self

import click

_PLAIN_EVERY = 10.0
"""Seconds between two plain lines, where output is not a terminal."""
_MOVING_EVERY = 0.1
_CELLS = 24


class Progress:
    """Counts finished units, and prints their number, the rate and the time left.

    On a terminal: one line that is rewritten, with a bar. Elsewhere: a line every ten seconds, and one at the end.
    Everything goes to standard error, so that results can be piped.
    """

    def __init__(self, what: str, total: int, *, unit: str, done: int = 0, quiet: bool = False):
        self.what, self.total, self.unit, self.quiet = what, total, unit, quiet
        self.before, self.done = done, done
        self.began = time.monotonic()
        self.last_printed = self.began
        self.moving = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self.quiet and self.done > self.before:
            self._say(last=True)

    def add(self, count: int) -> None:
        """Add `count` finished units, and print a line if one is due."""
        self.done += count
        now = time.monotonic()
        if not self.quiet and now - self.last_printed >= (_MOVING_EVERY if self.moving else _PLAIN_EVERY):
            self._say()
            self.last_printed = now

    def _say(self, *, last: bool = False) -> None:
        seconds = time.monotonic() - self.began
        rate = (self.done - self.before) / seconds if seconds else 0.0
        left = "?" if not rate else duration((self.total - self.done) / rate)
        when = f"took {duration(seconds)}" if last else f"{left} left"
        line = f"{self.what} {self.done}/{self.total} {self.unit}, {rate:.1f} {self.unit}/s, {when}"
        if self.moving:
            line = rewritten(self.what, self.done, self.total, line[len(self.what) :])
        click.echo(line, err=True, nl=last or not self.moving)


def rewritten(what: str, done: int, total: int, text: str) -> str:
    """Return a terminal's line that takes the place of the one before: a name, a bar, a text. It is cut to the terminal's width."""
    full = _CELLS * done // max(total, 1)
    line = f"{what} [{'#' * full}{'.' * (_CELLS - full)}]{text}"
    return f"\r\x1b[K{line[: max(1, shutil.get_terminal_size().columns - 1)]}"


def duration(seconds: float) -> str:
    """Return seconds in readable form: 12 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
