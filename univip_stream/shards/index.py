"""A list of shards: what their manifests state, and their indexes, which are opened one by one when needed or all at once.

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
"""Number of indexes that are read at the same time."""

_MANY = 4096
"""Number of samples of a shard above which the memory that reading its index took is returned to the system at once."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the facts about each shard come from: an entry of a manifest, or a table that was read already."""

    manifests: list[Manifest]
    manifest: np.ndarray
    """int32 S: index into `manifests`; -1 for shards of other programs."""
    entry: np.ndarray
    """int64 S: index into the entries of that manifest; -1 for shards of other programs."""
    foreign: dict[int, pa.Table]
    """Samples of shards of other programs, by the number of the shard."""


class ShardSet:
    """The samples of all shards, in the order of the shards and of their keys. At first only the manifests are read.

    The index of a shard is opened, and checked by its hash, when one of its samples is asked for. It takes some 300 bytes for
    each sample, and indexes that are no longer needed are dropped: so memory grows with the shuffle window, not with the set.
    """

    def __init__(
        self, shards: list[str], place: Layout, *, counts: np.ndarray, pixels: np.ndarray, boxes: int | None, tar_bytes: list[int],
        tar_sha256: list[str], max_pixels: list[int], remote: np.ndarray, notes: list[str], cache: Cache,
    ):  # fmt: skip
        self.shards = shards
        """Locations of the tars."""
        self.counts = counts
        """int64 S: number of samples of each shard."""
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        """int64 S + 1: shard s has the samples from starts[s] up to but not including starts[s + 1]."""
        self.pixels = pixels
        """int64 S: sum of width times height of the samples of each shard; -1 where its manifest does not state it."""
        self.box_count = boxes
        """M; None if a manifest does not state it."""
        self.tar_bytes = tar_bytes
        """Size of each tar in bytes."""
        self.tar_sha256 = tar_sha256
        """SHA-256 of each tar, hexadecimal."""
        self.max_pixels = max_pixels
        """Largest width times height up to which the images of each shard are decoded."""
        self.is_remote = remote
        """bool S: whether a shard is fetched to be read."""
        self.notes = notes
        """Notes for people: that only a part of a set was named, and how much of foreign shards is not a sample."""
        self.cache = cache
        """Cache that remote shards are fetched to."""
        self._place = place
        self._opened = Opened(self._load)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the contents of the shards, which does not depend on their location."""
        return hashlib.sha256("\n".join(self.tar_sha256).encode()).hexdigest()

    @cached_property
    def foreign(self) -> list[bool]:
        """Whether each shard was written by another program; then its images may have to be turned upright."""
        found: list[bool] = (self._place.manifest < 0).tolist()
        return found

    def __len__(self) -> int:
        return int(self.starts[-1])

    def shard_of(self, sample: int) -> int:
        """Return the shard that contains a sample."""
        return int(np.searchsorted(self.starts, sample, side="right")) - 1

    def rows(self, shard: int) -> Rows:
        """Return the samples of a shard.

        Raises:
            InputError: its index is missing, or is not the one that the manifest names; the message names it.

        """
        return self._opened[shard]

    def at(self, sample: int) -> tuple[Rows, int]:
        """Return (rows that contain the sample, its place in them)."""
        shard = self.shard_of(sample)
        return self._opened[shard], sample - int(self.starts[shard])

    def boxes_of(self, sample: int) -> np.ndarray:
        """Return the boxes of a sample: int32, N x 4, xywh in pixels, best first."""
        rows, at = self.at(sample)
        return rows.boxes_of(at)

    def size_of(self, sample: int) -> tuple[int, int]:
        """Return (width, height) of a sample in pixels, upright."""
        rows, at = self.at(sample)
        return int(rows.width[at]), int(rows.height[at])

    def text(self, column: str, sample: int) -> Any:
        """Return the value of `key`, `source`, `label` or `sha256` of a sample."""
        rows, at = self.at(sample)
        return rows.text(column, at)

    def remote(self, shard: int) -> Remote | None:
        """Return what to fetch for a shard; None if it is local."""
        if not self.is_remote[shard]:
            return None
        return Remote(location=self.shards[shard], size=self.tar_bytes[shard], sha256=self.tar_sha256[shard])

    def near(self, present: Iterable[int], coming: Iterable[int]) -> None:
        """Announce which shards are read now and which come next: their indexes are opened ahead, others may be dropped."""
        self._opened.want(present, coming)

    def close(self) -> None:
        """End the threads that open indexes ahead."""
        self._opened.close()

    def whole(self) -> "ShardIndex":
        """Return the same shards with all indexes in memory, as arrays over all samples.

        Raises:
            InputError: as in `rows`, or an index cannot be read.

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
        # In each thread, Arrow's own pools keep the memory of one index for the next: as much again as the rows take in the
        # end.
        pool = pa.system_memory_pool()
        pa.set_memory_pool(pool)
        rows = rows_of([self._samples(shard)])
        if len(rows) > _MANY:
            pool.release_unused()
        return rows


class ShardIndex(ShardSet):
    """A `ShardSet` with all indexes in memory. Forked processes share its arrays."""

    def __init__(self, of: ShardSet, rows: Rows):
        self.__dict__ |= {name: value for name, value in of.__dict__.items() if name != "_opened"}
        self._opened = Opened(self._load)
        self.all = rows
        """Rows of all shards."""
        self.shard = np.repeat(np.arange(len(of.shards), dtype=np.int32), of.counts)
        """int32 N: the shard that contains each sample."""
        self.offset, self.size, self.width, self.height = rows.offset, rows.size, rows.width, rows.height
        """As in `Rows`, here and below."""
        self.boxes, self.box_start = rows.boxes, rows.box_start
        self.key, self.source, self.label, self.sha256 = rows.key, rows.source, rows.label, rows.sha256

    def at(self, sample: int) -> tuple[Rows, int]:
        return self.all, sample

    def near(self, present: Iterable[int], coming: Iterable[int]) -> None:
        pass  # all are in memory

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
