"""Distributions, and what Algorithm 1 draws from the boxes of some shards."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from univip_stream.shards import ShardSet
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


def bins(low: float, high: float, *, logarithmic: bool, whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return (edges of the bins between two values, edges to count by: of whole numbers the last bin has no end)."""
    if whole:
        step = max(1, -(-int(high - low + 1) // _BINS))
        edges = np.arange(low, high + step + 0.5, step)
        return edges, np.append(edges[:-1], np.inf)
    if logarithmic:
        edges = np.geomspace(low, max(high, low * 1.01), _BINS + 1)
        edges[0], edges[-1] = low, max(high, edges[-1])
    else:
        edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    return edges, edges


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
    edges, limits = bins(low, high, logarithmic=logarithmic, whole=whole)
    counts = np.histogram(values, limits)[0]
    return Distribution(
        name=name, of=of, unit=unit, edges=edges, counts=counts, median=float(np.median(values)), low=low, high=high,
        logarithmic=logarithmic, whole=whole,
    )  # fmt: skip


class FirstEpoch:
    """Positions of the images in the first epoch of a run with a seed, and what Algorithm 1 draws there.

    A run with the same seed and default views draws exactly these: the draws depend on (seed, position) alone.
    """

    def __init__(self, index: ShardSet, seed: int, config: ViewConfig):
        self.index, self.seed, self.config = index, seed, config
        self._order = Order(index.counts, seed, WINDOW)
        self._positions: dict[int, int] = {}

    def find(self, samples: Iterable[int]) -> None:
        """Find the positions of these samples, which `draw` needs: many at once cost little more than one."""
        wanted = np.array(sorted({int(sample) for sample in samples} - self._positions.keys()), np.int64)
        self._positions.update(zip(wanted.tolist(), self._order.positions(wanted).tolist(), strict=True))

    def draw(self, sample: int) -> tuple[Views, np.random.Generator]:
        """Return (the views of a sample, the generator that the augmentations draw from next). `find` was called for it."""
        index = self.index
        rng = view_generator(self.seed, self._positions[sample])
        width, height = index.size_of(sample)
        return draw_views(index.boxes_of(sample), width, height, rng, self.config), rng

    def filled(self, samples: np.ndarray) -> np.ndarray:
        """Return, as int32, how many of the K instances of each of these samples are random boxes; needs no pixels."""
        self.find(samples.tolist())
        return np.array([self.draw(int(sample))[0].filled for sample in samples], np.int32)
