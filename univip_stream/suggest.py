"""What somebody may have meant by a name that there is not: the same rule for commands, options, settings and recipes."""

import difflib
from collections.abc import Iterable

CUTOFF = 0.6
"""Likeness from which a name is worth naming: difflib's ratio, 1 for equal ones; its own default."""
_LONGEST = 100
"""Letters of a name that are looked at: comparing takes the product of both lengths."""


def nearest(name: str, known: Iterable[str], *, most: int = 1) -> list[str]:
    """The known names that look like `name`, the likest first, each once; [] where none does.

    Case, `_` for `-`, and leading dashes do not count. A name with dots is also found by its last part alone, as `lr` finds
    `optim.lr`.
    """
    plain = {one: _plain(one) for one in known}
    asked = _plain(name[:_LONGEST])
    likeness = {one: _ratio(asked, text) for one, text in plain.items()}
    last = asked.rpartition(".")[2]
    for one, text in plain.items():
        if "." in text and text.rpartition(".")[2] == last:
            likeness[one] = max(likeness[one], 0.99)
    found = sorted((one for one in plain if likeness[one] >= CUTOFF), key=lambda one: -likeness[one])
    return found[:most]


def did_you_mean(name: str, known: Iterable[str], *, most: int = 1) -> str:
    """`; did you mean this or that?`, to follow a sentence without its full stop; empty where nothing looks like it."""
    found = nearest(name, known, most=most)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def _plain(name: str) -> str:
    return name.lstrip("-").replace("_", "-").casefold()


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()
