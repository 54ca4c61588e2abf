"""Read an image of a shard by its offset, check it against its hash, and decode it to the pixels that its boxes refer to."""

import hashlib
import os
from collections import OrderedDict

import numpy as np

from univip_stream.errors import InputError
from univip_stream.images import MAX_BYTES, decode, read_picture
from univip_stream.shards import ShardSet
from univip_stream.shards.cache import Remote
from univip_stream.stream.ahead import Ahead
from univip_stream.stream.decoded import Decoded

_OPEN_SHARDS = 64
"""Number of files that a reader keeps open: more than a shuffle window needs, fewer than any process may have."""


class Reader:
    """Reads the samples of a set of shards, for one process. Reads give their offset, so a fork may share open files.

    Args:
        index: the set of shards.
        decoded: cache of decoded images; None for none.

    """

    def __init__(self, index: ShardSet, decoded: Decoded | None = None):
        self.index, self.decoded = index, decoded
        self._open: OrderedDict[int, int] = OrderedDict()
        self._ahead: Ahead | None = None
        self._present: frozenset[int] = frozenset()
        self._near: tuple[frozenset[int], bool] | None = None

    def image(self, sample: int) -> np.ndarray:
        """Return the pixels of a sample: uint8, height x width x 3, RGB.

        Raises:
            InputError: the shard is missing, or its bytes are not those that were mined; the message names shard and sample.

        """
        pixels = self.decoded.get(sample) if self.decoded else None
        if pixels is None:
            pixels = self._decode(sample)
            if self.decoded:
                self.decoded.put(sample, pixels)
        return pixels

    def _decode(self, sample: int) -> np.ndarray:
        index = self.index
        rows, at = index.at(sample)
        data, wanted = self._bytes(sample), rows.text("sha256", at)
        whole = hashlib.sha256(data).hexdigest() == wanted
        if not whole:
            data = self._fetch_again(sample, data)
            whole = hashlib.sha256(data).hexdigest() == wanted
        try:
            if not whole:
                raise InputError("its bytes changed since it was mined (SHA-256 differs)")
            # Other programs store images that have to be turned upright.
            shard = index.shard_of(sample)
            foreign, limit = index.foreign[shard], index.max_pixels[shard]
            pixels = read_picture(data, max_pixels=limit).pixels if foreign else decode(data, max_pixels=limit)
            if pixels.shape[:2] != (rows.height[at], rows.width[at]):
                raise InputError(f"it decodes to {pixels.shape[1]} x {pixels.shape[0]} pixels, not to the size in its row")
        except InputError as error:
            raise InputError(f"{self.name(sample)}: {error}; `univip-stream verify` lists every such sample") from error
        return pixels

    def near(self, present: np.ndarray, coming: np.ndarray, *, late: bool = True) -> None:
        """Announce which shards are read now and which come next.

        Indexes are then opened and remote shards fetched ahead, and those that are no longer needed are closed.

        Args:
            present: shards of the present window.
            coming: shards of the next window, in the order in which they are needed.
            late: whether to open the indexes of `coming` now. Remote shards take longer and are fetched in any case.

        """
        now = frozenset(present.tolist())
        if (now, late) != self._near:
            self._near = now, late
            self.index.near(present.tolist(), coming.tolist() if late else [])
        if now == self._present:
            return
        self._present = now
        for shard in [shard for shard in self._open if shard not in now and self.index.remote(shard)]:
            os.close(self._open.pop(shard))
        wanted: list[Remote] = []
        room = self.index.cache.limit
        for shard in [*present.tolist(), *coming.tolist()]:
            remote = self.index.remote(shard)
            room -= remote.size if remote else 0
            if remote and room >= 0:  # more would evict what is read now
                wanted.append(remote)
        if wanted:
            if self._ahead is None or self._ahead.process != os.getpid():
                self._ahead = Ahead(self.index.cache)
            self._ahead.want(wanted)

    def name(self, sample: int) -> str:
        """Return the name of a sample for messages: its shard, key and source."""
        shard = self.index.shards[self.index.shard_of(sample)]
        return f"{shard}, sample {self.index.text('key', sample)} ({self.index.text('source', sample)})"

    def close(self) -> None:
        """Close the shards, and stop fetching ahead."""
        if self._ahead is not None and self._ahead.process == os.getpid():
            self._ahead.close()
        self._ahead = None
        self._present, self._near = frozenset(), None
        self.index.close()
        if self.decoded:
            self.decoded.close()
        while self._open:
            os.close(self._open.popitem()[1])

    def _bytes(self, sample: int) -> bytes:
        rows, at = self.index.at(sample)
        size, offset = int(rows.size[at]), int(rows.offset[at])
        if not 0 < size <= MAX_BYTES:
            raise InputError(f"{self.name(sample)}: its row says {size} bytes; expected 1 to {MAX_BYTES}")
        try:
            data = os.pread(self._file(self.index.shard_of(sample)), size, offset)
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
            remote = self.index.remote(shard)
            if remote is not None:
                self._open[shard] = self.index.cache.open(remote)
            else:
                self._open[shard] = os.open(self.index.shards[shard], os.O_RDONLY | os.O_CLOEXEC)
        return self._open[shard]

    def _fetch_again(self, sample: int, data: bytes) -> bytes:
        """Return a sample's bytes from a new copy, after the cached one was found damaged; of a local shard return `data`."""
        shard = self.index.shard_of(sample)
        remote = self.index.remote(shard)
        if remote is None:
            return data
        os.close(self._open.pop(shard))
        self.index.cache.forget(remote)
        return self._bytes(sample)
