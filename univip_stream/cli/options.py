"""Checks for the options of every command: numbers that can be used, paths that can be opened."""

import math
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from univip_stream.errors import InputError, UsageError, in_words

MAX_WHOLE = (1 << 31) - 1
"""Limit of integer options that name none: a larger number is a typing error, and overflows where arrays are indexed."""
_MAX_REAL = 1e9
"""Limit of real options that name none; networks compute in 32 bits, which end at 3e38."""
_LIMITS = {"workers": 1024, "ranks": 1 << 16, "batch_size": 1 << 20}
"""Limits of options where each unit costs a process or memory."""


class _RangeMessages:
    """Messages for a refused number: what was found, what was expected."""

    kind: str

    def refuse(self, found: object, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        raise click.BadParameter(f"{str(found)[:40]!r}; expected {self.kind}{self._limits()}.", ctx, param)

    def _limits(self) -> str:
        low, high = getattr(self, "min", None), getattr(self, "max", None)
        lower = f"{'above' if getattr(self, 'min_open', False) else 'from'} {low}" if low is not None else ""
        if high is None or high >= _MAX_REAL:
            upper = "up" if lower.startswith("from") else ""
        else:
            upper = f"{'and below' if getattr(self, 'max_open', False) else 'to'} {high}"
        limits = f"{lower} {upper}".strip()
        return f" {limits}" if limits else ""


class Whole(_RangeMessages, click.IntRange):
    """A whole number in a range; help texts leave out MAX_WHOLE."""

    kind = "a whole number"

    def _describe_range(self) -> str:
        return f"x>={self.min}" if self.max is not None and self.max >= MAX_WHOLE else super()._describe_range()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(value)
        except (ValueError, OverflowError):  # text, or more digits than Python reads
            self.refuse(value, param, ctx)
        if (self.min is not None and number < self.min) or (self.max is not None and number > self.max):
            if self.max is not None and self.max >= MAX_WHOLE and number > self.max:
                raise click.BadParameter(f"{str(number)[:40]} is more than any machine can use.", ctx, param)
            self.refuse(value, param, ctx)
        return number


class Real(_RangeMessages, click.FloatRange):
    """A finite number in a range."""

    kind = "a number"

    def _describe_range(self) -> str:
        if self.max is None or self.max < _MAX_REAL:
            return super()._describe_range()
        return "" if self.min is None else f"x{'>' if self.min_open else '>='}{self.min}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            self.refuse(value, param, ctx)
        if not math.isfinite(number):  # NaN compares as neither too low nor too high, so click would accept it
            self.refuse(value, param, ctx)
        if self.max is not None and self.max >= _MAX_REAL and number > self.max:
            raise click.BadParameter(
                f"{str(value)[:40]} is more than can be used; expected at most {_MAX_REAL:g}.", ctx, param
            )
        try:
            return super().convert(number, param, ctx)
        except click.BadParameter:
            return float(self.refuse(value, param, ctx))


def with_checked_options(command: click.Command) -> click.Command:
    """Make all options of a command refuse values that no command can use, and return the command.

    These are NaN, infinity and numbers too large; and pipes, sockets and devices in place of a path: reading a pipe blocks
    until somebody writes to it, and writing a file atomically would replace a device.
    """
    for option in command.params:
        option.type = _checked_type(option.type, option.name or "")
        if option.type is click.STRING and option.callback is None:
            option.callback = _require_ordinary
    return command


def _checked_type(kind: "click.ParamType[Any]", name: str) -> "click.ParamType[Any]":
    if isinstance(kind, _RangeMessages):
        return kind
    if isinstance(kind, click.IntRange):
        return Whole(kind.min, _LIMITS.get(name, MAX_WHOLE) if kind.max is None else kind.max, kind.min_open, kind.max_open)
    if isinstance(kind, click.FloatRange):
        return Real(kind.min, _MAX_REAL if kind.max is None else kind.max, kind.min_open, kind.max_open)
    if kind is click.INT:
        return Whole(None, MAX_WHOLE)
    if isinstance(kind, click.Path) and not isinstance(kind, LocalPath):
        return LocalPath(kind)
    return Real(None, _MAX_REAL) if kind is click.FLOAT else kind


class LocalPath(click.Path):
    """A file or folder of this machine: not a URL, and nothing that blocks when it is opened."""

    def __init__(self, of: click.Path, *, may_be_folder: bool = False) -> None:
        super().__init__(file_okay=of.file_okay, dir_okay=of.dir_okay, path_type=of.type)
        self.may_be_folder = may_be_folder

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = os.fspath(value)
        if param is not None and ctx is not None:
            _require_ordinary(ctx, param, text)
            if param.name in _OUTPUT_PARAMETERS and self.file_okay:
                _require_writable(ctx, param, Path(os.fsdecode(text)), may_be_folder=self.may_be_folder)
        if scheme := re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", os.fsdecode(text)):
            raise click.BadParameter(f"{text!r}: expected a path of this machine; {scheme[0]} is not for this.", ctx, param)
        return super().convert(value, param, ctx)


_OUTPUT_PARAMETERS = ("out", "html")
"""Parameters that name a file written at the end; whether it can be written is checked before the work."""


def _require_writable(ctx: click.Context, param: click.Parameter, path: Path, *, may_be_folder: bool) -> None:
    try:
        if path.is_dir() and not may_be_folder:
            raise UsageError(f"{param.opts[0]} {path} is a folder; expected a file")
        folder = next(folder for folder in (path.parent, *path.parent.parents) if folder.exists())
    except OSError as error:
        raise InputError(f"{param.opts[0]}: {in_words(error)}") from error
    if not folder.is_dir():
        raise InputError(f"{param.opts[0]} {path}: {folder} is a file; expected a folder to write to")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{param.opts[0]} {path}: this user may not write in {folder}; choose another place")


_SPECIAL_FILES = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def _require_ordinary(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    for one in [value] if isinstance(value, str | os.PathLike) else value if isinstance(value, Iterable) else []:
        path = os.fspath(one)
        if not path.strip():
            raise click.BadParameter(f"{path!r} is empty; is a variable of the shell not set?", ctx, param)
        for text in (path, path.partition("=")[2]):  # `--set views.pairs=PATH`
            if kind := _special_file(text):
                raise click.BadParameter(f"{text} is {kind}; expected an ordinary file or folder.", ctx, param)
    return value


def _special_file(text: str) -> str | None:
    try:
        return _SPECIAL_FILES.get(stat.S_IFMT(os.stat(text).st_mode)) if text else None
    except (OSError, ValueError):  # nothing is there, or it is not a file name
        return None
