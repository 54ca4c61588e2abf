"""Statistics over all boxes of some shards, from their indexes: exact, and with a few shards in memory at a time.

The indexes are read twice: the first time for the ends of each distribution and for what stands out, the second time to
count the values in bins between these ends. Medians are exact: a value's bits as float32 are counted by their first half in the
first pass, and in the second those of the middle value's half by their second half.

Letters: N samples, M boxes, both of one shard.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from univip_stream.report.numbers import Distribution, bins
from univip_stream.shards import ShardSet
from univip_stream.shards.rows import Rows

_EACH = 3
"""Images shown for each kind of extreme."""
_LEADING = 64 * _EACH
"""Values that are kept of each kind: the most extreme boxes may all be of one image, and others are wanted too."""
_AHEAD = 4
"""Indexes that are opened ahead."""
_HALF = 1 << 16


class Measure:
    """The distribution of one kind of value, none of them below 0."""

    def __init__(self, name: str, of: str, unit: str = "", *, logarithmic: bool = False, whole: bool = False):
        self.name, self.of, self.unit, self.logarithmic, self.whole = name, of, unit, logarithmic, whole
        self.total, self.low, self.high = 0, np.inf, -np.inf
        self._kind = np.dtype(np.float32)
        self._first = np.zeros(_HALF, np.int64)
        """Number of values by the first half of their bits."""
        self._second: dict[int, np.ndarray] = {}
        """Number of values by the second half of their bits, for the first halves that middle values have."""
        self._edges, self._limits = np.array([0.0, 1.0]), np.array([0.0, 1.0])
        self._counts = np.zeros(1, np.int64)

    def look(self, values: np.ndarray) -> None:
        """Take values in the first pass."""
        if len(values):
            self.total, self._kind = self.total + len(values), values.dtype
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
            self._first += np.bincount(_bits(values) >> 16, minlength=_HALF)

    def settle(self) -> None:
        """Choose the bins, between the passes."""
        if self.total:
            self._edges, self._limits = bins(self.low, self.high, logarithmic=self.logarithmic, whole=self.whole)
            self._counts = np.zeros(len(self._edges) - 1, np.int64)
            self._second = {self._half_of(place)[0]: np.zeros(_HALF, np.int64) for place in self._middle()}

    def count(self, values: np.ndarray) -> None:
        """Take the same values again in the second pass."""
        if len(values):
            self._counts += np.histogram(values, self._limits)[0]
            bits = _bits(values)
            for half, counts in self._second.items():
                counts += np.bincount(bits[bits >> 16 == half] & (_HALF - 1), minlength=_HALF)

    def distribution(self) -> Distribution:
        """Return the result of both passes."""
        low, high = (self.low, self.high) if self.total else (0.0, 0.0)
        return Distribution(
            name=self.name, of=self.of, unit=self.unit, edges=self._edges, counts=self._counts, median=self._median(), low=low,
            high=high, logarithmic=self.logarithmic and self.total > 0, whole=self.whole,
        )  # fmt: skip

    def _middle(self) -> tuple[int, int]:
        """Return the places of the two middle values in ascending order, which are the same for an odd number."""
        return (self.total - 1) // 2, self.total // 2

    def _half_of(self, place: int) -> tuple[int, int]:
        """Return (first half of the bits of the value at a place, the number of values with smaller halves)."""
        ends = np.cumsum(self._first)
        half = int(np.searchsorted(ends, place, side="right"))
        return half, int(ends[half] - self._first[half])

    def _median(self) -> float:
        if not self.total:
            return 0.0
        found = []
        for place in self._middle():
            half, before = self._half_of(place)
            rest = int(np.searchsorted(np.cumsum(self._second[half]), place - before, side="right"))
            found.append(np.array([half << 16 | rest], np.uint32).view(np.float32)[0])
        return float(np.mean(np.array(found, self._kind)))  # in the values' own precision, as np.median


class Extremes:
    """The greatest values of one kind and whose they are; none if more than _EACH images share the greatest.

    A value that many share is not extreme: sides of 64 pixels, if the filter cut them off there.
    """

    def __init__(self, text: Callable[[float, int], str]):
        self._text = text
        self._values, self._owners = np.empty(0, np.float64), np.empty(0, np.int64)
        self._alike, self._sharing = 0, set[int]()

    def look(self, values: np.ndarray, owners: np.ndarray) -> None:
        """Take values and the samples that they belong to; samples come in ascending order."""
        if not len(values):
            return
        most = values.max()
        if not len(self._values) or most > self._values[0]:
            self._alike, self._sharing = 0, set()
        if not len(self._values) or most >= self._values[0]:
            alike = owners[values == most]
            self._alike += len(alike)
            if len(self._sharing) <= _EACH:
                self._sharing.update(np.unique(alike)[: _EACH + 1].tolist())
        if len(values) > _LEADING:
            leading = values >= np.partition(values, len(values) - _LEADING)[len(values) - _LEADING]
            values, owners = values[leading], owners[leading]
        values, owners = np.concatenate([self._values, values]), np.concatenate([self._owners, owners])
        kept = np.argsort(-values, kind="stable")[:_LEADING]
        self._values, self._owners = values[kept], owners[kept]

    def found(self) -> list[tuple[int, str]]:
        """Return (sample, what is extreme about it), the most extreme first."""
        if self._alike > _EACH and len(self._sharing) > _EACH:
            return []
        seen: dict[int, float] = {}
        for value, sample in zip(self._values.tolist(), self._owners.tolist(), strict=True):
            if sample not in seen and len(seen) < _EACH:
                seen[sample] = value
        return [(sample, self._text(value, sample)) for sample, value in seen.items()]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What all indexes say of their boxes."""

    boxes: int
    """Number of boxes."""
    distributions: list[Distribution]
    """Distributions over all boxes and all images."""
    empty: list[int]
    """The first samples without a box."""
    extremes: list[tuple[int, str]]
    """(sample, what is extreme about it)."""


def survey(index: ShardSet, most_empty: int) -> Survey:
    """Read all indexes.

    Args:
        index: the shards.
        most_empty: how many samples without a box are named.

    """
    per_image = Measure("Boxes per image", "images", whole=True)
    side = Measure("Shortest side of a box", "boxes", "px", logarithmic=True)
    aspect = Measure("Width by height of a box", "boxes", logarithmic=True)
    share = Measure("Area of a box", "boxes", "% of the image")
    measures = (per_image, side, aspect, share)

    def size(sample: int) -> str:
        width, height = index.size_of(sample)
        return f"{width} × {height} px"

    kinds = [
        Extremes(lambda v, i: f"most boxes: {v:.0f}"),
        Extremes(lambda v, i: f"widest box: {v:.2f} : 1"),
        Extremes(lambda v, i: f"tallest box: 1 : {-1 / v:.2f}"),
        Extremes(lambda v, i: f"smallest box: shortest side {-v:.0f} px"),
        Extremes(lambda v, i: f"largest box: {100 * v:.0f} % of the image"),
        Extremes(lambda v, i: f"largest image: {size(i)}"),
        Extremes(lambda v, i: f"smallest image: {size(i)}"),
        Extremes(lambda v, i: f"widest image: {v:.2f} : 1"),
        Extremes(lambda v, i: f"tallest image: 1 : {v:.2f}"),
    ]
    boxes, empty = 0, list[int]()
    for first, rows in _rows(index):
        facts = _Facts(rows)
        boxes += len(rows.boxes)
        if len(empty) < most_empty:
            empty += (first + np.flatnonzero(facts.counts == 0)[: most_empty - len(empty)]).tolist()
        for measure, values in zip(measures, facts.of_measures(), strict=True):
            measure.look(values)
        samples = first + np.arange(len(rows))
        of_boxes = first + facts.sample
        width, height = rows.width.astype(np.float64), rows.height.astype(np.float64)
        looked: list[tuple[np.ndarray, np.ndarray]] = [
            (facts.counts, samples),
            (facts.aspect, of_boxes),
            (-facts.aspect, of_boxes),
            (-facts.side.astype(np.float32), of_boxes),
            (facts.share, of_boxes),
            (width * height, samples),
            (-width * height, samples),
            (width / height, samples),
            (height / width, samples),
        ]
        for kind, (values, owners) in zip(kinds, looked, strict=True):
            kind.look(values, owners)
    for measure in measures:
        measure.settle()
    for _, rows in _rows(index):
        for measure, values in zip(measures, _Facts(rows).of_measures(), strict=True):
            measure.count(values)
    return Survey(
        boxes=boxes,
        distributions=[measure.distribution() for measure in measures],
        empty=empty,
        extremes=[found for kind in kinds for found in kind.found()],
    )


class _Facts:
    """Facts about every box of a shard and about its image that need no pixels."""

    def __init__(self, rows: Rows):
        self.counts = np.diff(rows.box_start)
        """int64 N: number of boxes of each image."""
        self.sample = np.repeat(np.arange(len(rows), dtype=np.int32), self.counts)
        """int32 M: the image of each box."""
        w, h = rows.boxes[:, 2], rows.boxes[:, 3]
        self.side = np.minimum(w, h)
        """int16 M: shortest side, pixels."""
        self.aspect = w.astype(np.float32) / h
        """float32 M: width by height."""
        area = rows.width.astype(np.float32) * rows.height
        self.share = w.astype(np.float32) * h / area[self.sample]
        """float32 M: area as a share of the image's area."""

    def of_measures(self) -> tuple[np.ndarray, ...]:
        """Return the values of `survey`'s measures."""
        return self.counts, self.side, self.aspect, 100 * self.share


def _rows(index: ShardSet) -> Iterator[tuple[int, Rows]]:
    """Yield (number of the first sample, samples) of every shard that has some; the next ones are opened ahead."""
    filled = np.flatnonzero(index.counts).tolist()
    for at, shard in enumerate(filled):
        index.near([shard], filled[at + 1 : at + 1 + _AHEAD])
        yield int(index.starts[shard]), index.rows(shard)
    index.close()


def _bits(values: np.ndarray) -> np.ndarray:
    """Return values as numbers that are in the same order and have 32 bits, int64."""
    return np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.int64)
