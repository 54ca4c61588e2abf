"""Choose the images to show: some at random, and those that stand out."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from univip_stream.report.numbers import BoxNumbers
from univip_stream.shards import ShardIndex

MOST_FAILURES = 500
"""Number of failures listed by name; all are counted."""
MOST_NO_BOXES = 16
MOST_FILLED = 8
_EACH = 3
"""Images shown for each kind of extreme."""

# The kinds of mark that the page can filter by.
NO_BOXES, FILLED, EXTREME, RANDOM = "no-boxes", "filled", "extreme", "random"


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A reason why an image is shown."""

    kind: str
    """One of the kinds above, or `failure` or `damaged`."""
    text: str
    """The reason in words, with its number."""


def choose(
    index: ShardIndex, numbers: BoxNumbers, looked_at: np.ndarray, filled: np.ndarray, K: int, *, samples: int, seed: int
) -> dict[int, list[Mark]]:
    """Return the samples to show with their reasons: unusual ones first, then random ones in the shards' order.

    Args:
        index: index of the shards.
        numbers: facts about its boxes.
        looked_at: samples for which views were drawn.
        filled: for each of those, how many of its K instances are random boxes.
        K: instances per image.
        samples: how many images to take at random, without replacement.
        seed: seed of that random choice.

    """
    marks: dict[int, list[Mark]] = {}

    def mark(sample: int, kind: str, text: str) -> None:
        marks.setdefault(int(sample), []).append(Mark(kind=kind, text=text))

    empty = np.flatnonzero(numbers.counts == 0)
    for sample in empty[:MOST_NO_BOXES]:
        mark(sample, NO_BOXES, "no boxes")
    worst = np.argsort(-filled, kind="stable")[:MOST_FILLED]
    for sample, count in zip(looked_at[worst], filled[worst], strict=True):
        if count and numbers.counts[sample]:
            mark(sample, FILLED, f"{count} of {K} instances random")
    for sample, text in _extremes(index, numbers):
        mark(sample, EXTREME, text)
    rng = np.random.default_rng(seed)
    for sample in np.sort(rng.permutation(len(index))[:samples]):
        mark(sample, RANDOM, "random sample")
    return marks


def _extremes(index: ShardIndex, numbers: BoxNumbers) -> list[tuple[int, str]]:
    """Return (sample, what is extreme about it), the most extreme of each kind first.

    A value that more than _EACH images share is not extreme: sides of 64 pixels, if the filter cut them off there.
    """
    found: list[tuple[int, str]] = []

    def most(values: np.ndarray, owner: np.ndarray | None, text: Callable[[float, int], str]) -> None:
        if len(values) == 0:
            return
        alike = np.flatnonzero(values == values.max())
        if len(alike) > _EACH and len(np.unique(alike if owner is None else owner[alike])) > _EACH:
            return
        # The most extreme boxes may all be of one image: enough are taken to reach other images too.
        count = min(len(values), 64 * _EACH)
        leading = np.argpartition(-values, count - 1)[:count]
        leading = leading[np.lexsort((leading, -values[leading]))]
        seen: dict[int, float] = {}
        for at in leading:
            sample = int(at if owner is None else owner[at])
            if sample not in seen and len(seen) < _EACH:
                seen[sample] = float(values[at])
        found.extend((sample, text(value, sample)) for sample, value in seen.items())

    width, height = index.width.astype(np.float64), index.height.astype(np.float64)
    most(numbers.counts.astype(np.float32), None, lambda v, i: f"most boxes: {v:.0f}")
    most(numbers.aspect, numbers.sample, lambda v, i: f"widest box: {v:.2f} : 1")
    most(-numbers.aspect, numbers.sample, lambda v, i: f"tallest box: 1 : {-1 / v:.2f}")
    most(-numbers.side.astype(np.float32), numbers.sample, lambda v, i: f"smallest box: shortest side {-v:.0f} px")
    most(numbers.share, numbers.sample, lambda v, i: f"largest box: {100 * v:.0f} % of the image")
    most(width * height, None, lambda v, i: f"largest image: {width[i]:.0f} × {height[i]:.0f} px")
    most(-width * height, None, lambda v, i: f"smallest image: {width[i]:.0f} × {height[i]:.0f} px")
    most(width / height, None, lambda v, i: f"widest image: {v:.2f} : 1")
    most(height / width, None, lambda v, i: f"tallest image: 1 : {v:.2f}")
    return found
