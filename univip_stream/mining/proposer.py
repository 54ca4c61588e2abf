"""Turn `--proposals NAME` into a function image -> boxes."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from univip_stream.errors import UsageError
from univip_stream.proposals import ENGINES, engine_version, propose

Proposer = Callable[[np.ndarray], np.ndarray]

NONE = "none"
"""No proposals, only the images (Table 8 b, first row)."""
GROUND_TRUTH = "ground-truth"
"""Boxes that people drew (Table 8 b, last row); they come with the image, from the annotations of the source."""
IMPORTED = "imported-"
"""Prefix before the name of a format, for boxes that others published; they come with the image too."""


def load_proposer(name: str, *, seed: int, options: dict[str, Any]) -> Proposer:
    """Return the function that a name stands for: an engine, `none`, `ground-truth`, or the user's own `module:function`.

    Args:
        name: value of `--proposals`.
        seed: seed of engines that choose at random.
        options: options of the engine.

    Returns:
        A function from an image (uint8, H x W x 3, RGB) to boxes (int32, N x 4, xywh in pixels, best first).

    Raises:
        UsageError: the name is unknown, or cannot be imported or called.

    """
    if name in (NONE, GROUND_TRUTH) or name.startswith(IMPORTED):
        return lambda image: np.empty((0, 4), np.int32)
    if taken := {"image", "engine", "seed"} & options.keys():
        raise UsageError(f"--option {min(taken)}=... is not an option of {name}; the seed is --seed")
    if name in ENGINES:
        return lambda image: propose(image, name, seed, **options)
    module_name, colon, attribute = name.partition(":")
    if not colon:
        known = ", ".join([*ENGINES, GROUND_TRUTH, NONE])
        raise UsageError(f"unknown --proposals {name!r}; expected one of: {known}, or your own as module:function")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # including whatever the module raises when it is imported
        raise UsageError(
            f"--proposals {name}: {type(error).__name__}: {error}; every node must be able to import it"
        ) from error
    if not callable(function):
        raise UsageError(f"--proposals {name} is a {type(function).__name__}; expected a function image -> boxes")
    return lambda image: function(image)


def proposer_version(name: str) -> str:
    """Return the version of an engine, which changes with its boxes. A user's module may set it as `__version__`."""
    if name in (NONE, GROUND_TRUTH) or name.startswith(IMPORTED):
        return "1"
    if name in ENGINES:
        return engine_version(name)
    module = importlib.import_module(name.partition(":")[0])
    return str(getattr(module, "__version__", "unversioned"))
