"""The numbers of some shards: distributions over all boxes of the index, and what Algorithm 1 draws from them.

Letters: N samples, M boxes in all.
"""

from dataclasses import dataclass

import numpy as np

from univip_stream.shards import ShardIndex
from univip_stream.stream.order import Order, view_generator
from univip_stream.views import ViewConfig, Views, draw_views

_BINS = 28
"""Bars of a distribution, where the values are not few whole numbers."""
WINDOW = 16
"""Shards whose samples a run shuffles together, by default."""


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """How often which value."""

    name: str
    """What is counted, in words."""
    of: str
    """What has the value: boxes, images."""
    unit: str
    """Of the values; empty for plain numbers."""
    edges: np.ndarray
    """Bins + 1: bin i holds the values from edges[i] up to, not with, edges[i + 1]; the last bin holds its end too."""
    counts: np.ndarray
    """Values in each bin."""
    median: float
    """Half of the values are below it."""
    low: float
    """The smallest value."""
    high: float
    """The largest value."""
    logarithmic: bool = False
    """Whether each bin is a factor, not a step."""
    whole: bool = False
    """Whether a bin is one or several whole numbers."""

    @property
    def total(self) -> int:
        """Values in all."""
        return int(self.counts.sum())

    def as_json(self) -> dict[str, object]:
        """For machines."""
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
    """Count values into bins that span them; whole numbers get a bin each while they are few."""
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
    """What is known of every box of an index, and of the images that hold it, without a pixel."""

    def __init__(self, index: ShardIndex):
        self.counts = np.diff(index.box_start)
        """int64 N: boxes of each image."""
        self.sample = np.repeat(np.arange(len(index), dtype=np.int32), self.counts)
        """int32 M: the image of each box."""
        w, h = index.boxes[:, 2], index.boxes[:, 3]
        self.side = np.minimum(w, h)
        """int16 M: shortest side, pixels."""
        self.aspect = w.astype(np.float32) / h
        """float32 M: width by height."""
        area = index.width.astype(np.float32) * index.height
        self.share = w.astype(np.float32) * h / area[self.sample]
        """float32 M: area as a share of the image's."""

    def distributions(self) -> list[Distribution]:
        """Of all boxes and all images."""
        return [
            distribution(self.counts, "Boxes per image", "images", whole=True),
            distribution(self.side, "Shortest side of a box", "boxes", "px", logarithmic=True),
            distribution(self.aspect, "Width by height of a box", "boxes", logarithmic=True),
            distribution(100 * self.share, "Area of a box", "boxes", "% of the image"),
        ]


class FirstEpoch:
    """The places of the images in the first epoch of a run with a seed, and what Algorithm 1 draws there.

    A run with the same seed and default views draws exactly these: chance hangs on (seed, place) alone.
    """

    def __init__(self, index: ShardIndex, seed: int, config: ViewConfig):
        self.index, self.seed, self.config = index, seed, config
        order = Order(index.counts, seed, WINDOW).epoch(0)
        self.places = np.empty(len(order), np.int64)
        """int64 N: the place of each sample."""
        self.places[order] = np.arange(len(order))

    def draw(self, sample: int) -> tuple[Views, np.random.Generator]:
        """(the views, the generator that the augmentations draw from next)."""
        index = self.index
        rng = view_generator(self.seed, int(self.places[sample]))
        width, height = int(index.width[sample]), int(index.height[sample])
        return draw_views(index.boxes_of(sample), width, height, rng, self.config), rng

    def filled(self, samples: np.ndarray) -> np.ndarray:
        """int32: of each of these samples, how many of its K instances are random boxes. No pixels are needed."""
        return np.array([self.draw(int(sample))[0].filled for sample in samples], np.int32)
