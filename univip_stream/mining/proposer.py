"""From `--proposals NAME` to a function image -> boxes."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from univip_stream.errors import UsageError
from univip_stream.proposals import ENGINES, engine_version, propose

Proposer = Callable[[np.ndarray], np.ndarray]

NONE = "none"
"""No proposals: the images alone (Table 8 b, first row)."""
GROUND_TRUTH = "ground-truth"
"""The boxes that people drew (Table 8 b, last row): they come with the image, from the source's annotations."""
IMPORTED = "imported-"
"""Before the name of a format: boxes that others published, which come with the image too."""


def load_proposer(name: str, *, seed: int, options: dict[str, Any]) -> Proposer:
    """The function that a name stands for: an engine, `none`, `ground-truth`, or `module:function` of the user's own.

    Raises:
        UsageError: nothing has that name, or it cannot be imported or called.

    """
    if name in (NONE, GROUND_TRUTH) or name.startswith(IMPORTED):
        return lambda image: np.empty((0, 4), np.int32)
    if taken := {"image", "engine", "seed"} & options.keys():
        raise UsageError(f"--option {min(taken)}=... is no option of {name}; the seed is --seed")
    if name in ENGINES:
        return lambda image: propose(image, name, seed, **options)
    module_name, colon, attribute = name.partition(":")
    if not colon:
        known = ", ".join([*ENGINES, GROUND_TRUTH, NONE])
        raise UsageError(f"unknown --proposals {name!r}; expected one of: {known}, or your own as module:function")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # also whatever the module does when it is imported
        raise UsageError(
            f"--proposals {name}: {type(error).__name__}: {error}; every node must be able to import it"
        ) from error
    if not callable(function):
        raise UsageError(f"--proposals {name} is a {type(function).__name__}; expected a function image -> boxes")
    return lambda image: function(image)


def proposer_version(name: str) -> str:
    """What the boxes depend on beside image, seed and options. A user's own function may name one as `__version__`."""
    if name in (NONE, GROUND_TRUTH) or name.startswith(IMPORTED):
        return "1"
    if name in ENGINES:
        return engine_version(name)
    module = importlib.import_module(name.partition(":")[0])
    return str(getattr(module, "__version__", "unversioned"))
