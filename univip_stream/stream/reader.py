"""Read one image of a shard: by its offset, checked against its hash, decoded to what its boxes refer to."""

import hashlib
import os
from collections import OrderedDict

import numpy as np

from univip_stream.errors import InputError
from univip_stream.images import MAX_BYTES, MAX_PIXELS, decode
from univip_stream.shards import ShardIndex

_OPEN_SHARDS = 64
"""Files a reader keeps open: more than a shuffle window touches, fewer than any process may have."""


class Reader:
    """Reads samples of an index. One a process: file positions are not shared, because reads name their offset."""

    def __init__(self, index: ShardIndex):
        self.index = index
        self._open: OrderedDict[int, int] = OrderedDict()

    def image(self, sample: int) -> np.ndarray:
        """The sample's pixels: uint8, height x width x 3, RGB.

        Raises:
            InputError: the shard is gone or its bytes are not those that were mined, by name.

        """
        index = self.index
        data = self._bytes(sample)
        try:
            if hashlib.sha256(data).hexdigest() != index.text("sha256", sample):
                raise InputError("its bytes changed since it was mined (SHA-256 differs)")
            pixels = decode(data, max_pixels=MAX_PIXELS)
            if pixels.shape[:2] != (index.height[sample], index.width[sample]):
                raise InputError(f"it decodes to {pixels.shape[1]} x {pixels.shape[0]} pixels, not to the size in its row")
        except InputError as error:
            raise InputError(f"{self.name(sample)}: {error}; `univip-stream verify` lists every such sample") from error
        return pixels

    def name(self, sample: int) -> str:
        """Where a sample is, for people."""
        shard = self.index.shards[int(self.index.shard[sample])]
        return f"{shard}, sample {self.index.text('key', sample)} ({self.index.text('source', sample)})"

    def close(self) -> None:
        """Close the shards."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _bytes(self, sample: int) -> bytes:
        size, offset = int(self.index.size[sample]), int(self.index.offset[sample])
        if not 0 < size <= MAX_BYTES:
            raise InputError(f"{self.name(sample)}: its row says {size} bytes; expected 1 to {MAX_BYTES}")
        try:
            data = os.pread(self._file(int(self.index.shard[sample])), size, offset)
        except OSError as error:
            raise InputError(f"{self.name(sample)}: {error}") from error
        if len(data) != size:
            raise InputError(f"{self.name(sample)}: the shard ends after {len(data)} of its {size} bytes; it was cut off")
        return data

    def _file(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
        else:
            if len(self._open) >= _OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
            self._open[shard] = os.open(self.index.shards[shard], os.O_RDONLY | os.O_CLOEXEC)
        return self._open[shard]
