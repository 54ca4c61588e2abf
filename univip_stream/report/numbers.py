"""Statistics of some shards: distributions over all boxes of the index, and what Algorithm 1 draws from them.

Letters: N samples, M boxes in all.
"""

from dataclasses import dataclass

import numpy as np

from univip_stream.shards import ShardIndex
from univip_stream.stream.order import Order, view_generator
from univip_stream.views import ViewConfig, Views, draw_views

_BINS = 28
"""Maximal number of bars of a distribution."""
WINDOW = 16
"""Number of shards whose samples a run shuffles together, by default."""


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """A histogram: how often each value occurs."""

    name: str
    """Title: what the values are."""
    of: str
    """Things that have the values: boxes or images."""
    unit: str
    """Unit of the values; empty for plain numbers."""
    edges: np.ndarray
    """Bins + 1 values: bin i counts values from edges[i] up to but without edges[i + 1]; the last bin includes its end."""
    counts: np.ndarray
    """Number of values in each bin."""
    median: float
    """Median of the values."""
    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    logarithmic: bool = False
    """Whether the bins are equally wide on a logarithmic scale."""
    whole: bool = False
    """Whether the values are whole numbers, of which a bin holds one or several."""

    @property
    def total(self) -> int:
        """Return the number of values."""
        return int(self.counts.sum())

    def as_json(self) -> dict[str, object]:
        """Return the numbers as a dictionary for JSON."""
        return {
            "of": self.of,
            "unit": self.unit,
            "edges": [round(float(edge), 6) for edge in self.edges],
            "counts": self.counts.tolist(),
            "median": round(self.median, 6),
            "min": round(self.low, 6),
            "max": round(self.high, 6),
        }


def distribution(
    values: np.ndarray, name: str, of: str, unit: str = "", *, logarithmic: bool = False, whole: bool = False
) -> Distribution:
    """Count values in bins that span them; whole numbers get one bin each if there are few."""
    if len(values) == 0:
        edges, counts = np.array([0.0, 1.0]), np.array([0])
        return Distribution(
            name=name, of=of, unit=unit, edges=edges, counts=counts, median=0, low=0, high=0,
            logarithmic=False, whole=whole,
        )  # fmt: skip
    low, high = float(values.min()), float(values.max())
    if whole:
        step = max(1, -(-int(high - low + 1) // _BINS))
        edges = np.arange(low, high + step + 0.5, step)
        counts = np.histogram(values, np.append(edges[:-1], np.inf))[0]
    elif logarithmic:
        edges = np.geomspace(low, max(high, low * 1.01), _BINS + 1)
        edges[0], edges[-1] = low, max(high, edges[-1])
        counts = np.histogram(values, edges)[0]
    else:
        edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
        counts = np.histogram(values, edges)[0]
    return Distribution(
        name=name, of=of, unit=unit, edges=edges, counts=counts, median=float(np.median(values)), low=low, high=high,
        logarithmic=logarithmic, whole=whole,
    )  # fmt: skip


class BoxNumbers:
    """Facts about every box of an index and about its image that need no pixels."""

    def __init__(self, index: ShardIndex):
        self.counts = np.diff(index.box_start)
        """int64 N: number of boxes of each image."""
        self.sample = np.repeat(np.arange(len(index), dtype=np.int32), self.counts)
        """int32 M: the image of each box."""
        w, h = index.boxes[:, 2], index.boxes[:, 3]
        self.side = np.minimum(w, h)
        """int16 M: shortest side, pixels."""
        self.aspect = w.astype(np.float32) / h
        """float32 M: width by height."""
        area = index.width.astype(np.float32) * index.height
        self.share = w.astype(np.float32) * h / area[self.sample]
        """float32 M: area as a share of the image's area."""

    def distributions(self) -> list[Distribution]:
        """Return distributions over all boxes and all images."""
        return [
            distribution(self.counts, "Boxes per image", "images", whole=True),
            distribution(self.side, "Shortest side of a box", "boxes", "px", logarithmic=True),
            distribution(self.aspect, "Width by height of a box", "boxes", logarithmic=True),
            distribution(100 * self.share, "Area of a box", "boxes", "% of the image"),
        ]


class FirstEpoch:
    """Positions of the images in the first epoch of a run with a seed, and what Algorithm 1 draws there.

    A run with the same seed and default views draws exactly these: the draws depend on (seed, position) alone.
    """

    def __init__(self, index: ShardIndex, seed: int, config: ViewConfig):
        self.index, self.seed, self.config = index, seed, config
        order = Order(index.counts, seed, WINDOW).epoch(0)
        self.positions = np.empty(len(order), np.int64)
        """int64 N: position of each sample."""
        self.positions[order] = np.arange(len(order))

    def draw(self, sample: int) -> tuple[Views, np.random.Generator]:
        """Return (the views of a sample, the generator that the augmentations draw from next)."""
        index = self.index
        rng = view_generator(self.seed, int(self.positions[sample]))
        width, height = int(index.width[sample]), int(index.height[sample])
        return draw_views(index.boxes_of(sample), width, height, rng, self.config), rng

    def filled(self, samples: np.ndarray) -> np.ndarray:
        """Return, as int32, how many of the K instances of each of these samples are random boxes; needs no pixels."""
        return np.array([self.draw(int(sample))[0].filled for sample in samples], np.int32)
