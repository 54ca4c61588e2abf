"""Suggestions for misspelt names: the same rule for commands, options, settings and recipes."""

import difflib
from collections.abc import Iterable

CUTOFF = 0.6
"""Similarity from which a name is suggested: difflib's ratio, 1 for equal names; its own default."""
_LONGEST = 100
"""Maximal number of characters compared: the time grows with the product of both lengths."""


def nearest(name: str, known: Iterable[str], *, most: int = 1) -> list[str]:
    """Return the known names that are similar to `name`, the most similar first; [] if none is.

    Case, `_` for `-`, and leading dashes are ignored. A name with dots is also found by its last part alone: `lr` finds
    `optim.lr`.
    """
    plain = {one: _plain(one) for one in known}
    asked = _plain(name[:_LONGEST])
    similarity = {one: _ratio(asked, text) for one, text in plain.items()}
    last = asked.rpartition(".")[2]
    for one, text in plain.items():
        if "." in text and text.rpartition(".")[2] == last:
            similarity[one] = max(similarity[one], 0.99)
    found = sorted((one for one in plain if similarity[one] >= CUTOFF), key=lambda one: -similarity[one])
    return found[:most]


def did_you_mean(name: str, known: Iterable[str], *, most: int = 1) -> str:
    """Return `; did you mean this or that?`, to follow a sentence without its full stop; empty if nothing is similar."""
    found = nearest(name, known, most=most)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def _plain(name: str) -> str:
    return name.lstrip("-").replace("_", "-").casefold()


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()
