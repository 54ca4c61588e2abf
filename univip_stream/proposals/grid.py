"""Boxes of a regular grid, coarse to fine: what proposals are worth that do not look at the image."""

import numpy as np

from univip_stream.proposals.options import require_whole

_STEP = 0.5
"""Stride over side: neighbours of one size overlap by half."""
_ASPECTS = (1.0, 0.5, 2.0)
"""Width over height, relative to the image's."""


def grid(image: np.ndarray, *, seed: int = 0, levels: int = 4) -> np.ndarray:
    """Propose boxes whose sides are 1, 1/2, 1/4, ... of the image's, and half as wide or as high, at half-overlapping places.

    Args:
        image: uint8, height x width x 3; only its size matters.
        seed: not used: nothing here is random.
        levels: number of sizes; each has about four times as many boxes as the one before.

    Returns:
        int32, N x 4: x, y, w, h, larger first, each level from the top left.

    Raises:
        UsageError: `levels` is no such number.

    """
    require_whole("levels", levels, 1, 8, "sizes")
    height, width = image.shape[:2]
    found: dict[tuple[int, ...], None] = {}
    for level in range(levels):
        for aspect in _ASPECTS:
            w = max(1, round(width * 0.5**level * min(1.0, aspect)))
            h = max(1, round(height * 0.5**level * min(1.0, 1 / aspect)))
            for y in _places(height, h):
                for x in _places(width, w):
                    found[x, y, w, h] = None
    return np.array(list(found), np.int32).reshape(-1, 4)


def _places(length: int, side: int) -> list[int]:
    """Return where boxes of a side begin, evenly from one border to the other."""
    count = 1 + int(np.ceil((length - side) / max(1.0, side * _STEP)))
    return [int(place) for place in np.linspace(0, length - side, count)]


def version() -> str:
    """Return a version that changes when the same size can get other boxes."""
    return "1"
