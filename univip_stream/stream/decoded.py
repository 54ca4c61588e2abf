"""A cache of decoded images for data sets that are read many times, since decoding takes most of the time of an image.

Each shard has a pair of files, named after the hash of the shard. One holds the pixels of its images, one image after the
other; the other holds a number for each image, which says whether its pixels were written, and their CRC-32. Pixels are
written before the number and checked against it each time they are read. So after a crash, on a full disk or with a flipped
bit the image is decoded again, and damaged pixels never reach the training.
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
_WRITTEN = 1 << 32
"""Bit that is set in the number of an image whose pixels were written; the 32 bits below it are the CRC-32."""

_MOST_SHARDS = 64
"""Number of shards whose images' offsets are kept in memory: more than a shuffle window has."""


class Decoded:
    """Decoded pixels of the first shards of a set, as many shards as fit into `limit` bytes.

    Every image is read once an epoch, so the image that was read least recently is the next one to be read: if old images
    were evicted to make room, none would ever be found again. So it is decided at the start which shards are kept: the first
    ones.

    Args:
        index: the set of shards.
        folder: a folder on a local disk, which is made if it does not exist. Processes and runs over the same shards share
            it.
        limit: the most bytes that these shards may take in the folder.

    Raises:
        InputError: the folder cannot be made or written.
        UsageError: the folder is remote.

    """

    def __init__(self, index: ShardSet, folder: str | Path, limit: int):
        if storage.is_remote(folder):
            raise UsageError(f"the folder for decoded images is {folder}; expected one on a disk of this machine")
        self.index, self.folder = index, Path(folder)
        # A shard is kept if everything up to its end fits into the limit.
        self.kept = 3 * np.cumsum(_pixels(index)) + 8 * index.starts[1:] <= limit
        """bool S: whether each shard is kept."""
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
        """Return the pixels of an image, uint8 H x W x 3; None if they are not here or are damaged."""
        shard = self.index.shard_of(sample)
        if not self.kept[shard]:
            return None
        pixels, numbers = self._files(shard)
        number = os.pread(numbers, 8, 8 * (sample - int(self.index.starts[shard])))
        if len(number) < 8 or not (found := int.from_bytes(number, "little")) & _WRITTEN:
            return None
        width, height = self.index.size_of(sample)
        out = np.empty((height, width, 3), np.uint8)
        try:
            read = os.preadv(pixels, [out.data], self._place(sample))
        except OSError:  # the disk gives errors; the shard still has the image
            return None
        return out if read == out.nbytes and zlib.crc32(out.data) == found & (_WRITTEN - 1) else None

    def put(self, sample: int, image: np.ndarray) -> None:
        """Store the pixels of an image, uint8 H x W x 3, if its shard is kept and the disk has room."""
        shard = self.index.shard_of(sample)
        if self._full or not self.kept[shard]:
            return
        pixels, numbers = self._files(shard)
        try:
            data = np.ascontiguousarray(image)
            if os.pwrite(pixels, data.data, self._place(sample)) == data.nbytes:
                number = zlib.crc32(data.data) | _WRITTEN
                os.pwrite(numbers, number.to_bytes(8, "little"), 8 * (sample - int(self.index.starts[shard])))
        except OSError:
            self._full = True  # what was written stays good; the other images are decoded each time

    def close(self) -> None:
        """Close the files."""
        for pair in self._open.values():
            for descriptor in pair:
                os.close(descriptor)
        self._open = {}

    def _place(self, sample: int) -> int:
        """Return the byte at which the pixels of an image begin in the file of its shard."""
        shard = self.index.shard_of(sample)
        if shard not in self._starts:
            rows = self.index.rows(shard)
            pixels = 3 * rows.width.astype(np.int64) * rows.height
            self._starts[shard] = np.cumsum(pixels) - pixels
            while len(self._starts) > _MOST_SHARDS:
                self._starts.popitem(last=False)
        return int(self._starts[shard][sample - int(self.index.starts[shard])])

    def _files(self, shard: int) -> tuple[int, int]:
        # Descriptors may be shared with a forked process, because every read and write gives its offset.
        if shard not in self._open:
            base = self.folder / self.index.tar_sha256[shard]
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._open[shard] = (os.open(f"{base}.pixels", flags, 0o644), os.open(f"{base}.crc32", flags, 0o644))
        return self._open[shard]


def _pixels(index: ShardSet) -> np.ndarray:
    """Return the pixels (width times height) of each shard's images, int64 S.

    Manifests of version 1 do not state them, so there they are computed from the indexes.
    """
    if (index.pixels >= 0).all():
        return index.pixels
    whole = index.whole()
    pixels = np.concatenate([[0], np.cumsum(whole.width.astype(np.int64) * whole.height)])
    return np.diff(pixels[index.starts])
