"""What every setting means: read from the configuration's own classes, so that no list of settings is written by hand.

The sentence under a field is its meaning, with what follows `Source:` apart. What is allowed is what the checks of the
classes say when they refuse a value.
"""

import ast
import dataclasses
import functools
import inspect
import json
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

from univip_stream.errors import UsageError
from univip_stream.methods import METHODS, MethodConfig
from univip_stream.pretrain.config import HARMLESS, PretrainConfig
from univip_stream.pretrain.recipes import RECIPES
from univip_stream.pretrain.settings import flat, with_settings

HELP = "help"
"""`--set help` is every setting, `--set views.help` those of a group."""
_ABSURD = (-1, 10**30)
"""Numbers that a check which has a lower or an upper bound refuses."""
_TYPES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting, as a person is told of it."""

    key: str
    """Its dotted name."""
    meaning: str
    """What it decides, and its unit."""
    source: str
    """Where the default comes from; empty where it is a choice of this program alone."""
    default: str
    """Its value as --set takes it."""
    recipes: dict[str, str]
    """Its value in every recipe that has another than the default."""
    allowed: str
    """Which values it takes."""
    may_change: bool
    """Whether a run may continue with another value."""
    methods: tuple[str, ...]
    """The methods that have it; none where all do."""

    @property
    def group(self) -> str:
        """Return what stands before the last dot; empty for the loop's own settings."""
        return self.key.rpartition(".")[0]


def settings_of(prefix: str = "") -> list[Setting]:
    """Every setting, or those of a group, or the one of that name.

    Raises:
        UsageError: there is no such group or setting.

    """
    every = _every_setting()
    found = [setting for setting in every if not prefix or setting.key == prefix or setting.group == prefix]
    if not found:
        groups = ", ".join(dict.fromkeys(setting.group for setting in every if setting.group))
        raise UsageError(f"--set {prefix}.{HELP}: there is no group or setting {prefix!r}; the groups are {groups}")
    return found


def group_meanings() -> dict[str, str]:
    """Return what the settings of each group are about, in order; the loop's own come under the empty name."""
    texts = _sentences(PretrainConfig)
    groups = dict.fromkeys(setting.group for setting in _every_setting())
    return {group: texts[group] if group else "The training as a whole." for group in groups}


def as_text(settings: list[Setting], width: int = 100) -> str:
    """Format settings for a terminal: name, default, where recipes differ, and the meaning below."""
    meanings, lines = group_meanings(), []
    group = None
    for setting in settings:
        if setting.group != group:
            group = setting.group
            lines += ["", f"{group or 'Without a group'}: {meanings[group]}"]
        alike: dict[str, list[str]] = {}
        for recipe, value in setting.recipes.items():
            alike.setdefault(value, []).append(recipe)
        others = "".join(f"; {', '.join(named)} {'have' if named[1:] else 'has'} {value}" for value, named in alike.items())
        first = f"  {setting.key}  [default: {setting.default}{others}]"
        lines += textwrap.wrap(first, width + 20, subsequent_indent=" " * 6, break_on_hyphens=False)
        source = f" Source: {setting.source}" if setting.source else ""
        whose = f"Of {', '.join(setting.methods)}. " if setting.methods else ""
        text = f"{whose}{setting.meaning} Allowed: {setting.allowed}.{source}"
        lines += textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines).lstrip("\n")


@functools.cache
def _every_setting() -> tuple[Setting, ...]:
    recipes = {name: make() for name, make in RECIPES.items()}
    found: dict[tuple[str, ...], Setting] = {}
    for name, kind in METHODS.items():
        of_method = [f"method.name={name}"]
        defaults = PretrainConfig(method=kind.Settings(name=name))
        values, others = (
            flat(defaults),
            {recipe: flat(with_settings(config, of_method)) for recipe, config in recipes.items()},
        )
        for key, hint, text in _fields(PretrainConfig, kind.Settings):
            default = values[key] if key != "method.name" else PretrainConfig().method.name
            once = (key, text, _written(default))
            if once in found:
                found[once] = dataclasses.replace(found[once], methods=(*found[once].methods, name))
                continue
            meaning, _, source = text.partition("Source: ")
            differ = {recipe: _written(theirs[key]) for recipe, theirs in others.items() if theirs[key] != values[key]}
            found[once] = Setting(
                key=key,
                meaning=meaning.strip(),
                source=source.strip(),
                default=_written(default),
                recipes={} if key == "recipe" else differ,
                allowed=_allowed(defaults, key, hint),
                may_change=key in HARMLESS,
                methods=(name,),
            )
    every = [
        dataclasses.replace(one, methods=() if len(one.methods) == len(METHODS) else one.methods) for one in found.values()
    ]
    # What only some methods have after what all have, and those without a group last: groups are what one looks for.
    order = list(dict.fromkeys(one.group for one in every))
    every.sort(key=lambda one: (not one.group, order.index(one.group), bool(one.methods)))
    return tuple(every)


def _fields(kind: type, method: type[MethodConfig], path: str = "") -> Iterator[tuple[str, Any, str]]:
    """(dotted name, type, sentence) of every field below a class, with the settings of a method."""
    hints, sentences = typing.get_type_hints(kind), _sentences(kind)
    for field in dataclasses.fields(kind):
        hint = method if hints[field.name] is MethodConfig else hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _fields(hint, method, f"{path}{field.name}.")  # type: ignore[arg-type]
        else:
            yield path + field.name, hint, sentences[field.name]


def _sentences(kind: type) -> dict[str, str]:
    """Read the text under each field of a class; Python itself keeps none of them."""
    found: dict[str, str] = {}
    for base in kind.__bases__:
        found |= _sentences(base) if dataclasses.is_dataclass(base) else {}
    [tree] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return found


def _written(value: Any) -> str:
    """Format a value as --set takes it."""
    value = [round(one, 4) if isinstance(one, float) else one for one in value] if isinstance(value, list) else value
    return value if isinstance(value, str) and value else json.dumps(value)


def _allowed(defaults: PretrainConfig, key: str, hint: Any) -> str:
    """Return which values a setting takes, in the words of the check that refuses the others."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    words = [_words(defaults, key, kind) for kind in kinds]
    return " or ".join(dict.fromkeys(words))


def _words(defaults: PretrainConfig, key: str, kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return " or ".join(map(str, arguments))
    if kind not in (int, float) and origin is not tuple:
        return _TYPES[kind]
    bounds = []
    for number in _ABSURD:
        try:
            with_settings(defaults, [f"{key}={json.dumps([number] * len(arguments) if arguments else number)}"])
        except UsageError as refused:
            if bound := str(refused).partition("expected ")[2]:  # not the words about what no machine can use
                bounds.append(bound)
    form = [f"{len(arguments)} numbers"] if arguments and not bounds else [_TYPES[int]] if kind is int else []
    return ", ".join(dict.fromkeys([*form, *bounds])) or _TYPES[kind]
