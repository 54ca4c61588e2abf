"""Choose the images to show: some at random, and those that stand out."""

from dataclasses import dataclass

import numpy as np

from univip_stream.report.survey import Survey
from univip_stream.shards import ShardSet
from univip_stream.stream.order import MOST_IN_A_ROW

MOST_FAILURES = 500
"""Number of failures listed by name; all are counted."""
MOST_NO_BOXES = 16
MOST_FILLED = 8

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
    index: ShardSet, found: Survey, looked_at: np.ndarray, filled: np.ndarray, K: int, *, samples: int, seed: int
) -> dict[int, list[Mark]]:
    """Return the samples to show with their reasons: unusual ones first, then random ones in the shards' order.

    Args:
        index: index of the shards.
        found: what all its indexes say.
        looked_at: samples for which views were drawn.
        filled: for each of those, how many of its K instances are random boxes.
        K: instances per image.
        samples: how many images to take at random, without replacement.
        seed: seed of that random choice.

    """
    marks: dict[int, list[Mark]] = {}

    def mark(sample: int, kind: str, text: str) -> None:
        marks.setdefault(int(sample), []).append(Mark(kind=kind, text=text))

    for sample in found.empty[:MOST_NO_BOXES]:
        mark(sample, NO_BOXES, "no boxes")
    worst = np.argsort(-filled, kind="stable")[:MOST_FILLED]
    for sample, count in zip(looked_at[worst], filled[worst], strict=True):
        if count and len(index.boxes_of(int(sample))):
            mark(sample, FILLED, f"{count} of {K} instances random")
    for sample, text in found.extremes:
        mark(sample, EXTREME, text)
    for sample in some(len(index), samples, seed):
        mark(sample, RANDOM, "random sample")
    return marks


def some(of: int, count: int, seed: int) -> np.ndarray:
    """Return at most `count` of the numbers below `of` at random, each once, ascending."""
    rng = np.random.default_rng(seed)
    if of <= MOST_IN_A_ROW:
        return np.sort(rng.permutation(of)[:count])
    return np.sort(rng.choice(of, count, replace=False, shuffle=False))  # without an array of all
