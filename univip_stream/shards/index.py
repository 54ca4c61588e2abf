"""A list of shards: what the manifests say of them, and the index of each, opened when it is wanted or all at once.

Letters: N samples, M boxes in all, S shards.
"""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from univip_stream.shards.cache import Cache, Remote
from univip_stream.shards.manifest import Manifest
from univip_stream.shards.opened import Opened
from univip_stream.shards.rows import Rows, read_samples, rows_of

_AT_ONCE = 8
"""Shards whose index is read at a time."""

_MANY = 4096
"""Samples of a shard from which what reading its index took is given back to the system at once."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where what is known of shards comes from: numbers of a manifest's entries, or a table that was read already."""

    manifests: list[Manifest]
    manifest: np.ndarray
    """int32 S: which of `manifests`; -1 for shards of other programs."""
    entry: np.ndarray
    """int64 S: which of its entries."""
    foreign: dict[int, pa.Table]
    """Samples of shards of other programs, by the shard's number."""


class ShardSet:
    """Samples of all shards, in the order of the shards and of their keys, of which only the manifests are read at first.

    The index of a shard is opened, and checked by its hash, when a sample of it is asked for. It takes some 300 bytes a sample,
    and those that are not wanted any more go: so memory grows with the window that is read, and not with the set.
    """

    def __init__(
        self, shards: list[str], place: Layout, *, counts: np.ndarray, pixels: np.ndarray, boxes: int | None, tar_bytes: list[int],
        tar_sha256: list[str], max_pixels: list[int], remote: np.ndarray, notes: list[str], cache: Cache,
    ):  # fmt: skip
        self.shards = shards
        """Paths of the tars."""
        self.counts = counts
        """int64 S: samples of each shard."""
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        """int64 S + 1: shard s has the samples from starts[s] up to, not with, starts[s + 1]."""
        self.pixels = pixels
        """int64 S: width times height of all samples of each shard; -1 where its manifest does not say it."""
        self.box_count = boxes
        """M; None where a manifest does not say it."""
        self.tar_bytes = tar_bytes
        """Of each shard."""
        self.tar_sha256 = tar_sha256
        """Of each shard."""
        self.max_pixels = max_pixels
        """Of each shard: width times height up to which its images are decoded."""
        self.is_remote = remote
        """bool S: whether a shard is fetched to be read."""
        self.notes = notes
        """What a person should know: that only a part of a set was named, and what of foreign shards is no sample, counted."""
        self.cache = cache
        """Where remote shards come to."""
        self._place = place
        self._opened = Opened(self._load)

    @cached_property
    def fingerprint(self) -> str:
        """Of the shards' contents: the same wherever the folder lies."""
        return hashlib.sha256("\n".join(self.tar_sha256).encode()).hexdigest()

    @cached_property
    def foreign(self) -> list[bool]:
        """Whether a shard was written by another program: its images may need turning upright."""
        found: list[bool] = (self._place.manifest < 0).tolist()
        return found

    def __len__(self) -> int:
        return int(self.starts[-1])

    def shard_of(self, sample: int) -> int:
        """The shard that a sample lies in."""
        return int(np.searchsorted(self.starts, sample, side="right")) - 1

    def rows(self, shard: int) -> Rows:
        """The samples of a shard.

        Raises:
            InputError: its index is missing, or not the one that the manifest was written for, by name.

        """
        return self._opened[shard]

    def at(self, sample: int) -> tuple[Rows, int]:
        """(rows that have the sample, its place in them)."""
        shard = self.shard_of(sample)
        return self._opened[shard], sample - int(self.starts[shard])

    def boxes_of(self, sample: int) -> np.ndarray:
        """int32, boxes of a sample x 4 xywh, best first."""
        rows, at = self.at(sample)
        return rows.boxes_of(at)

    def size_of(self, sample: int) -> tuple[int, int]:
        """(width, height) of a sample, pixels, upright."""
        rows, at = self.at(sample)
        return int(rows.width[at]), int(rows.height[at])

    def text(self, column: str, sample: int) -> Any:
        """`key`, `source`, `label` or `sha256` of a sample."""
        rows, at = self.at(sample)
        return rows.text(column, at)

    def remote(self, shard: int) -> Remote | None:
        """What to fetch for a shard; None where it is local."""
        if not self.is_remote[shard]:
            return None
        return Remote(location=self.shards[shard], size=self.tar_bytes[shard], sha256=self.tar_sha256[shard])

    def near(self, present: Iterable[int], coming: Iterable[int]) -> None:
        """Say which shards are read now and which come next: their indexes are opened ahead, others may be let go."""
        self._opened.want(present, coming)

    def close(self) -> None:
        """End the threads that open indexes ahead."""
        self._opened.close()

    def whole(self) -> "ShardIndex":
        """The same shards with all indexes in memory, as arrays over all samples.

        Raises:
            InputError: as `rows`, and if an index cannot be read.

        """
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            tables = list(pool.map(self._samples, range(len(self.shards))))
        return ShardIndex(self, rows_of(tables))

    def _samples(self, shard: int) -> pa.Table:
        of = int(self._place.manifest[shard])
        if of < 0:
            return self._place.foreign[shard]
        return read_samples(self.shards[shard], self._place.manifests[of].shards[int(self._place.entry[shard])], self.cache)

    def _load(self, shard: int) -> Rows:
        # Arrow's own pools keep what one index took for the next, in each thread: as much again as what is held in the end.
        pool = pa.system_memory_pool()
        pa.set_memory_pool(pool)
        rows = rows_of([self._samples(shard)])
        if len(rows) > _MANY:
            pool.release_unused()
        return rows


class ShardIndex(ShardSet):
    """The same with all indexes in memory. Arrays are shared when processes fork."""

    def __init__(self, of: ShardSet, rows: Rows):
        self.__dict__ |= {name: value for name, value in of.__dict__.items() if name != "_opened"}
        self._opened = Opened(self._load)
        self.all = rows
        """Of all shards."""
        self.shard = np.repeat(np.arange(len(of.shards), dtype=np.int32), of.counts)
        """int32 N: which shard a sample lies in."""
        self.offset, self.size, self.width, self.height = rows.offset, rows.size, rows.width, rows.height
        """As `Rows` has them, here and below."""
        self.boxes, self.box_start = rows.boxes, rows.box_start
        self.key, self.source, self.label, self.sha256 = rows.key, rows.source, rows.label, rows.sha256

    def at(self, sample: int) -> tuple[Rows, int]:
        return self.all, sample

    def near(self, present: Iterable[int], coming: Iterable[int]) -> None:
        pass  # all are here

    def whole(self) -> "ShardIndex":
        return self

    def _load(self, shard: int) -> Rows:
        first, last = int(self.starts[shard]), int(self.starts[shard + 1])
        of, begin = self.all, self.all.box_start[first]
        return Rows(
            **{name: getattr(of, name)[first:last] for name in ("offset", "size", "width", "height")},
            **{name: getattr(of, name).slice(first, last - first) for name in ("key", "source", "label", "sha256")},
            boxes=of.boxes[begin : of.box_start[last]],
            box_start=of.box_start[first : last + 1] - begin,
        )
