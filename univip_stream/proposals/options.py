"""Check the options of engines: a wrong one is wrong use, and said before the first image is mined."""

from typing import Any

import numpy as np

from univip_stream.errors import UsageError


def require_whole(name: str, value: Any, least: int, most: int, what: str) -> None:
    """Raise UsageError unless a value is a whole number of the range; `what` says what it counts."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= most:
        raise UsageError(f"{name} is {value!r}; expected {least} to {most} {what}")


def require_switch(name: str, value: Any) -> None:
    """Raise UsageError unless a value is true or false."""
    if not isinstance(value, bool):
        raise UsageError(f"{name} is {value!r}; expected true or false")
