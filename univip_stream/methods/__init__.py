"""Self-supervised methods by name: a new one is a `Method` and a line in `METHODS`."""

import difflib
from collections.abc import Callable

from univip_stream.errors import UsageError
from univip_stream.methods.base import Method as Method
from univip_stream.methods.base import MethodConfig as MethodConfig
from univip_stream.methods.byol import BYOL as BYOL
from univip_stream.methods.univip import UniVIP as UniVIP

METHODS: dict[str, Callable[[MethodConfig, int], Method]] = {
    "univip": UniVIP,
    "byol": lambda config, instances: BYOL(config),
}
"""Name -> class, called with the settings and the number of instances K an image."""


def build_method(config: MethodConfig, *, instances: int) -> Method:
    """Build the method that `config` names, for K = `instances` an image (0: no instances); UsageError if unknown."""
    if config.name not in METHODS:
        near = difflib.get_close_matches(config.name, METHODS, n=1)
        guess = f" Did you mean {near[0]}?" if near else ""
        raise UsageError(f"There is no method {config.name!r}; there are {', '.join(METHODS)}.{guess}")
    return METHODS[config.name](config, instances)
