"""A cache of decoded images, for data sets that are read many times: decoding is most of what an image costs.

One pair of files a shard, named after the shard's hash: the pixels of its images one after the other, and a number each
that says whether they are there and what their CRC-32 is. Pixels are written before the number, and checked against it each
time they are read, so that a crash, a full disk or a flipped bit costs a decoding and is never trained on.
"""

import os
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np

from univip_stream import storage
from univip_stream.errors import InputError, UsageError
from univip_stream.shards import ShardSet

DEFAULT_BYTES = 128 << 30
"""COCO's train2017 takes 108 GB."""
_THERE = 1 << 32
"""Set in the number of an image whose pixels were written; below it are 32 bits of CRC."""

_SHARDS = 64
"""Shards whose images' places are kept: more than a shuffle window has."""


class Decoded:
    """Pixels of the first shards of an index, as many as there is room for.

    Every image is read once an epoch, so what is read least recently is what comes next: throwing out old ones to make room
    would leave nothing to find. So shards are kept or not from the beginning, in their order.

    Args:
        index: of the shards.
        folder: on a local disk; made if it is not there. Several processes and runs over the same shards share it.
        limit: bytes that these shards may take in it.

    Raises:
        InputError: the folder cannot be made or written.

    """

    def __init__(self, index: ShardSet, folder: str | Path, limit: int):
        if storage.is_remote(folder):
            raise UsageError(f"the folder for decoded images is {folder}; expected one on a disk of this machine")
        self.index, self.folder = index, Path(folder)
        # A shard is kept if all up to its end is within the limit.
        self.kept = 3 * np.cumsum(_pixels(index)) + 8 * index.starts[1:] <= limit
        """bool, one a shard."""
        self._open: dict[int, tuple[int, int]] = {}
        self._starts: OrderedDict[int, np.ndarray] = OrderedDict()
        self._full = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK):
                raise PermissionError(13, "permission denied")
        except OSError as error:
            raise InputError(f"the folder for decoded images {folder} cannot be written: {error.strerror}") from error

    def get(self, sample: int) -> np.ndarray | None:
        """uint8 H x W x 3, or None where they are not there, or not as they were written."""
        shard = self.index.shard_of(sample)
        if not self.kept[shard]:
            return None
        pixels, numbers = self._files(shard)
        number = os.pread(numbers, 8, 8 * (sample - int(self.index.starts[shard])))
        if len(number) < 8 or not (found := int.from_bytes(number, "little")) & _THERE:
            return None
        width, height = self.index.size_of(sample)
        out = np.empty((height, width, 3), np.uint8)
        try:
            read = os.preadv(pixels, [out.data], self._place(sample))
        except OSError:  # a disk that gives errors: the shard still has the image
            return None
        return out if read == out.nbytes and zlib.crc32(out.data) == found & (_THERE - 1) else None

    def put(self, sample: int, image: np.ndarray) -> None:
        """Keep an image's pixels, if there is room on the disk."""
        shard = self.index.shard_of(sample)
        if self._full or not self.kept[shard]:
            return
        pixels, numbers = self._files(shard)
        try:
            data = np.ascontiguousarray(image)
            if os.pwrite(pixels, data.data, self._place(sample)) == data.nbytes:
                number = zlib.crc32(data.data) | _THERE
                os.pwrite(numbers, number.to_bytes(8, "little"), 8 * (sample - int(self.index.starts[shard])))
        except OSError:
            self._full = True  # what is there stays good; the rest is decoded each time

    def close(self) -> None:
        """Close the files."""
        for pair in self._open.values():
            for descriptor in pair:
                os.close(descriptor)
        self._open = {}

    def _place(self, sample: int) -> int:
        """Where an image's pixels begin in its shard's file."""
        shard = self.index.shard_of(sample)
        if shard not in self._starts:
            rows = self.index.rows(shard)
            pixels = 3 * rows.width.astype(np.int64) * rows.height
            self._starts[shard] = np.cumsum(pixels) - pixels
            while len(self._starts) > _SHARDS:
                self._starts.popitem(last=False)
        return int(self._starts[shard][sample - int(self.index.starts[shard])])

    def _files(self, shard: int) -> tuple[int, int]:
        # Descriptors may be shared with a forked process, because every read and write names its place.
        if shard not in self._open:
            base = self.folder / self.index.tar_sha256[shard]
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._open[shard] = (os.open(f"{base}.pixels", flags, 0o644), os.open(f"{base}.crc32", flags, 0o644))
        return self._open[shard]


def _pixels(index: ShardSet) -> np.ndarray:
    """int64: width times height of each shard's images; of version 1, whose manifests do not say it, from the indexes."""
    if (index.pixels >= 0).all():
        return index.pixels
    whole = index.whole()
    pixels = np.concatenate([[0], np.cumsum(whole.width.astype(np.int64) * whole.height)])
    return np.diff(pixels[index.starts])
