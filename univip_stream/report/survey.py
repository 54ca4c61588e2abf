"""Shards in numbers: what is in them, how their boxes are distributed, and what is odd about them.

All of it comes from the indexes, so it is of every image; only the fill share of Algorithm 1 is of a sample.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from univip_stream.shards import ShardIndex
from univip_stream.shards.format import HELD, index_name
from univip_stream.shards.manifest import has_manifest, read_manifest
from univip_stream.storage import opened, parent
from univip_stream.views import ViewConfig, draw_views

AT_ONCE = 16
FAILURES_SHOWN = 200
ODD_OF_A_KIND = 4


class Failure(NamedTuple):
    """An image that is not in the shards."""

    source: str
    status: str
    reason: str


class Histogram(NamedTuple):
    """Counts in bins."""

    title: str
    unit: str
    edges: list[float]
    counts: list[int]
    says: str
    """Median and extremes, in words."""
    whole: bool = False
    """Counts of things: a bin's edges lie between whole numbers."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What the indexes say of shards."""

    index: ShardIndex
    facts: dict[str, str]
    """What made them, as the manifest says; empty for foreign shards."""
    failed: dict[str, int]
    """Images that are not in the shards, by status."""
    failures: list[Failure]
    """The first of them."""
    histograms: list[Histogram]
    odd: dict[int, list[str]]
    """Samples that a person should see, and why."""
    drawn: int
    """Images that Algorithm 1 was tried on."""

    @property
    def boxes_per_image(self) -> np.ndarray:
        """int64, N."""
        counts: np.ndarray = np.diff(self.index.box_start)
        return counts


def survey(index: ShardIndex, *, seed: int = 0, draws: int = 2000, views: ViewConfig | None = None) -> Survey:
    """Read what there is to know of shards.

    Args:
        index: of the shards.
        seed: of the sample that Algorithm 1 is tried on.
        draws: images in that sample.
        views: settings of Algorithm 1; the paper's if None.

    """
    views = views or ViewConfig()
    failed, failures = _failures(index)
    counts = np.diff(index.box_start)
    boxes = index.boxes.astype(np.int64)
    chosen = sampled(len(index), draws, seed)
    filled, tries = _drawn(index, chosen, seed, views)
    histograms = [
        _histogram("boxes per image", "boxes", counts, whole=True),
        _histogram("shorter side of a box", "px", boxes[:, 2:].min(axis=1) if len(boxes) else boxes[:, 0]),
        _aspects(boxes),
        _histogram("box area", "% of the image", _area_shares(index, counts, boxes)),
        _histogram("image width", "px", index.width),
        _histogram("image height", "px", index.height),
    ]
    if views.instances:
        note = f"of {len(chosen)} images, K = {views.instances}, {views.tries} tries"
        share = _histogram("instances filled with random boxes", "of an image's", filled, whole=True)
        histograms.append(share._replace(says=f"{100 * filled.mean() / views.instances:.1f} % of all instances; {note}"))
        histograms.append(_histogram("tries of Algorithm 1", "tries", tries, whole=True))
    return Survey(
        index=index,
        facts=_facts(index),
        failed=failed,
        failures=failures,
        histograms=histograms,
        odd=_odd(index, counts, boxes, dict(zip(chosen.tolist(), filled.tolist(), strict=True))),
        drawn=len(chosen),
    )


def sampled(count: int, wanted: int, seed: int) -> np.ndarray:
    """int64, sorted: which of `count` samples are looked at."""
    if wanted >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, wanted, replace=False))


def _failures(index: ShardIndex) -> tuple[dict[str, int], list[Failure]]:
    ours = [shard for shard, foreign in zip(index.shards, index.foreign, strict=True) if not foreign]

    def of(shard: str) -> list[Failure]:
        with opened(index_name(shard)) as file:
            table = pq.read_table(file, columns=["source", "status", "reason"])
        return [
            Failure(row["source"], row["status"], row["reason"] or "")
            for row in table.to_pylist()
            if row["status"] not in HELD
        ]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = [failure for part in pool.map(of, ours) for failure in part]
    return dict(Counter(failure.status for failure in found)), found[:FAILURES_SHOWN]


def _facts(index: ShardIndex) -> dict[str, str]:
    folder = parent(index.shards[0])
    if not has_manifest(folder):
        return {}
    manifest = read_manifest(folder)
    told = {str(key): value for key, value in manifest.get("parameters", {}).items()}
    return {key: _said(value) for key, value in told.items() if value not in (None, [], {})}


def _said(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _drawn(index: ShardIndex, chosen: np.ndarray, seed: int, views: ViewConfig) -> tuple[np.ndarray, np.ndarray]:
    """(random boxes, tries) of Algorithm 1 for each chosen sample."""
    told = []
    for sample in chosen.tolist():
        rng = np.random.default_rng([seed, sample])
        drawn = draw_views(
            index.boxes_of(sample).astype(np.int32), int(index.width[sample]), int(index.height[sample]), rng, views
        )
        told.append((drawn.filled, drawn.tries))
    numbers = np.array(told, np.int64).reshape(-1, 2)
    return numbers[:, 0], numbers[:, 1]


def _odd(index: ShardIndex, counts: np.ndarray, boxes: np.ndarray, filled: dict[int, int]) -> dict[int, list[str]]:
    """The few that are furthest from the rest, of each kind."""
    odd: dict[int, list[str]] = {}

    def note(samples: np.ndarray, why: str) -> None:
        for sample in samples[:ODD_OF_A_KIND].tolist():
            odd.setdefault(sample, []).append(why)

    empty = np.flatnonzero(counts == 0)
    note(empty, "no boxes")
    some = np.flatnonzero(counts > 0)
    note(some[np.argsort(counts[some], kind="stable")], "fewest boxes")
    note(some[np.argsort(-counts[some], kind="stable")], "most boxes")
    ratio = index.width / np.maximum(index.height, 1)
    note(np.argsort(-np.abs(np.log(ratio)), kind="stable"), "longest shape")
    area = index.width.astype(np.int64) * index.height
    note(np.argsort(area, kind="stable"), "smallest image")
    note(np.argsort(-area, kind="stable"), "largest image")
    if len(boxes):
        # Images whose boxes are nearly all the picture, or nearly all alike, say that the proposer found nothing in them.
        owner = np.repeat(np.arange(len(counts)), counts)
        share = boxes[:, 2] * boxes[:, 3] / np.maximum(area[owner], 1)
        mean = np.bincount(owner, share, len(counts)) / np.maximum(counts, 1)
        note(some[np.argsort(-mean[some], kind="stable")], "largest boxes")
    most = sorted((sample for sample, count in filled.items() if count), key=lambda sample: (-filled[sample], sample))
    note(np.array(most, np.int64), "most random boxes")
    return odd


def _histogram(title: str, unit: str, values: np.ndarray, *, whole: bool = False) -> Histogram:
    """About twenty bins to the 99.5th percentile, and what is beyond in the last."""
    if not len(values):
        return Histogram(title, unit, [0, 1], [0], "none")
    low, high = float(values.min()), float(np.quantile(values, 0.995))
    step = max((high - low) / 20, 1e-9)
    if whole:
        step = float(max(1, np.ceil((high - low + 1) / 20)))
        low -= 0.5
    edges = low + step * np.arange(max(2, int(np.ceil((high - low) / step)) + 1))
    counts, _ = np.histogram(np.minimum(values, edges[-1] - step / 2), edges)
    form = "{:.0f}" if whole or float(values.max()) >= 20 else "{:.2f}"
    least, middle, most = (form.format(float(value)) for value in (values.min(), np.median(values), values.max()))
    return Histogram(title, unit, edges.tolist(), counts.tolist(), f"median {middle}, from {least} to {most}", whole)


def _aspects(boxes: np.ndarray) -> Histogram:
    """Width by height of boxes; bins of equal width in the logarithm, so that 1:2 and 2:1 are as far from 1."""
    if not len(boxes):
        return Histogram("width by height of a box", "", [1 / 3, 3], [0], "none")
    ratio = boxes[:, 2] / np.maximum(boxes[:, 3], 1)
    reach = max(3.0, float(np.quantile(np.maximum(ratio, 1 / ratio), 0.995)))
    edges = np.exp(np.linspace(-np.log(reach), np.log(reach), 22))
    counts, _ = np.histogram(np.clip(ratio, edges[0], edges[-1]), edges)
    says = f"median {np.median(ratio):.2f}, from {ratio.min():.2f} to {ratio.max():.2f}"
    return Histogram("width by height of a box", "", edges.tolist(), counts.tolist(), says)


def _area_shares(index: ShardIndex, counts: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    area = np.repeat(index.width.astype(np.int64) * index.height, counts)
    shares: np.ndarray = 100 * boxes[:, 2] * boxes[:, 3] / np.maximum(area, 1)
    return shares
