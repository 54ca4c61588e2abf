"""Configurations that people write in Python hold what their annotations say, or a UsageError says so before any work."""

import os
import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

from univip_stream.errors import UsageError


def check_types(config: Any) -> None:
    """Compare the fields of a dataclass with their annotations; whole numbers are numbers, and a list serves as a tuple.

    Raises:
        UsageError: a field has another type.

    """
    hints = typing.get_type_hints(type(config))
    for member in fields(config):
        value = getattr(config, member.name)
        if not _fits(hints[member.name], value):
            raise UsageError(
                f"{type(config).__name__}: {member.name} is {value!r}; expected {_in_words(hints[member.name], value)}"
            )


def expect(config: Any, function: str, *kinds: type) -> None:
    """Check that a function of the Python interface was called with a configuration of one of these classes, rightly filled.

    Raises:
        UsageError: it was not.

    """
    if type(config) not in kinds:
        *most, last = (kind.__name__ for kind in kinds)
        names = f"{', '.join(most)} or {last}" if most else last
        raise UsageError(f"{function}: {config!r} is no configuration; expected {names}(...)")
    check_types(config)


def _fits(hint: Any, value: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(choice, value) for choice in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        kinds = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        return len(kinds) == len(value) and all(map(_fits, kinds, value))
    kind = hint if origin is None else origin
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if kind is dict:
        return isinstance(value, Mapping)
    return not isinstance(kind, type) or isinstance(value, kind)


def _in_words(hint: Any, value: Any) -> str:
    if typing.get_origin(hint) is None:
        return str(getattr(hint, "__name__", hint))
    words = str(hint)
    for module in ("pathlib.", "typing.", "collections.abc."):
        words = words.replace(module, "")
    return words + (", such as a tuple of one" if isinstance(value, str | os.PathLike) and "tuple[" in words else "")
