"""Convert configurations (trees of dataclasses) to dictionaries, and back from them and `KEY=VALUE` texts, checked by type."""

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from univip_stream.errors import UsageError, as_setting
from univip_stream.suggest import did_you_mean

Config = TypeVar("Config")


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as plain dictionaries and lists, for JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def from_dict(kind: type[Config], values: dict[str, Any], path: str = "") -> Config:
    """Return the configuration that `to_dict` turned into these values.

    Raises:
        UsageError: a setting does not exist (the message suggests the nearest) or has another type.

    """
    kind, values = _class_of(kind, values), dict(values)
    hints = typing.get_type_hints(kind)
    for name in [name for name in values if name not in hints]:
        raise UsageError(_unknown(path + name, [path + hint for hint in hints]))
    return kind(**{name: _converted(hints[name], value, path + name) for name, value in values.items()})


def with_settings(config: Config, settings: Iterable[str]) -> Config:
    """Return the configuration with settings changed by texts like `optim.lr=0.2`, in order.

    Raises:
        UsageError: as in `from_dict`, or a text is not KEY=VALUE.

    """
    # The method comes first: it decides which settings there are.
    for text in sorted(settings, key=lambda text: text.partition("=")[0].strip() != "method.name"):
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text!r}; expected KEY=VALUE, such as optim.lr=0.2; --set help lists all settings")
        config = _replaced(config, key.strip().split("."), value.strip(), key.strip(), config)
    return config


def flat(config: Any) -> dict[str, Any]:
    """Return the value of every setting by its dotted name."""

    return dict(_leaves(to_dict(config), ""))


def flat_dict(values: dict[str, Any]) -> dict[str, Any]:
    """Return the same as `flat` from the result of `to_dict`."""
    return dict(_leaves(values, ""))


def _leaves(values: dict[str, Any], path: str) -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield path + name, value


def _replaced(config: Any, names: list[str], text: str, key: str, whole: Any) -> Any:
    hints = typing.get_type_hints(type(config))
    name = names[0]
    if name not in hints:
        raise UsageError(_unknown(key, list(flat(whole))))
    current = getattr(config, name)
    if len(names) > 1:
        if not dataclasses.is_dataclass(current):
            raise UsageError(_unknown(key, list(flat(whole))))
        return dataclasses.replace(config, **{name: _replaced(current, names[1:], text, key, whole)})
    if dataclasses.is_dataclass(current):
        inner = ", ".join(f"{key}.{inner.name}" for inner in dataclasses.fields(current))
        raise UsageError(f"{key} is a group of settings; expected one of {inner}")
    try:
        value = json.loads(text)
    except ValueError:
        value = {"None": None, "True": True, "False": False}.get(text, text)
    most = _MOST_OF.get(name, _MOST)
    too_large = UsageError(f"{key} is {text[:40]}, more than any machine can use; give a smaller number")
    try:
        changed = _with(config, name, _converted(hints[name], value, key))
    except OverflowError as error:
        raise too_large from error
    # Checked after the settings' own bounds, whose messages say more.
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) > most:
        raise too_large
    return changed


def _class_of(kind: type[Config], values: Mapping[str, Any]) -> type[Config]:
    """Return the class for these values: `kind`, or what its `class_of` chooses."""
    choose: Callable[[Mapping[str, Any]], type[Config]] | None = getattr(kind, "class_of", None)
    return choose(values) if choose is not None else kind


def _with(config: Any, name: str, value: Any) -> Any:
    """Return the configuration with a field changed. If its class changes with the value, common fields are kept."""
    values = {member.name: getattr(config, member.name) for member in dataclasses.fields(config)} | {name: value}
    kind = _class_of(type(config), values)
    return kind(**{member.name: values[member.name] for member in dataclasses.fields(kind) if member.name in values})


_MOST = (1 << 31) - 1
"""Largest value of a setting; a larger one is a typing error, and would overflow where tensors are made."""
_MOST_OF = {name: (1 << 63) - 1 for name in ("seed", "cache_bytes", "decoded_bytes", "max_pixels")} | {"workers": 1024}


def _converted(hint: Any, value: Any, key: str) -> Any:
    """Return `value` as the type `hint`, or raise UsageError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return from_dict(typing.cast(type, hint), value, key + ".")
    if origin in (typing.Union, types.UnionType):
        for choice in arguments:
            try:
                return _converted(choice, value, key)
            except UsageError:
                continue
    elif origin is typing.Literal:
        if value in arguments:
            return value
        expected = " or ".join(map(str, arguments))
        raise UsageError(f"{key} is {as_setting(value)}; expected {expected}")
    elif origin is tuple and isinstance(value, list | tuple):
        kinds = arguments[:1] * len(value) if len(arguments) == 2 and arguments[1] is ... else arguments
        if len(value) == len(kinds):
            return tuple(_converted(kind, item, key) for kind, item in zip(kinds, value, strict=True))
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif hint is type(None) and value is None:
        return None
    elif isinstance(hint, type) and type(value) is hint:
        return value
    name = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise UsageError(f"{key} is {as_setting(value)}; expected {name}")


def _unknown(key: str, known: list[str]) -> str:
    return f"there is no setting {key!r}{did_you_mean(key, known)}"
