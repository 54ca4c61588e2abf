"""A plain PyTorch dataset of the images and boxes in shards, for any other method."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from univip_stream.errors import UsageError
from univip_stream.images import MAX_PIXELS
from univip_stream.shards import ShardSet, expand_shards, open_shards
from univip_stream.shards.cache import DEFAULT_BYTES, Cache
from univip_stream.stream.order import Order
from univip_stream.stream.reader import Reader


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One image with its boxes."""

    image: Tensor
    """uint8, 3 x height x width, RGB, upright."""
    boxes: Tensor
    """int64, N x 4: x, y, w, h in pixels of the image, best first."""
    key: str
    """Key of the image, unique within its set of shards."""
    label: str | None
    """Class of the image; None if the source gives none."""
    source: str
    """Name of the image in its source."""


class ShardDataset(IterableDataset[Sample]):
    """Every image of some shards exactly once, split among the workers of a DataLoader and the ranks of a job.

    Args:

        shards: any spec of `expand_shards`: `shards/<000..127>.tar`, a glob, a folder, or several of these in a list.
        rank: rank of this process.
        world_size: number of processes that share the images; if it does not divide their number, the last ranks get one
            fewer.
        window: number of shards whose samples are shuffled together after `epoch` was called.
        cache: folder for copies of remote shards; None is the user's cache folder.
        cache_bytes: the most bytes that the copies may take in that folder.
        max_pixels: larger images (width times height) in shards of other programs are left out.

    Before `epoch` is called, the samples come in the order of the shards. Images differ in size: use `batch_size=None`, or a
    `collate_fn`.

    Raises:
        InputError: shards that are missing or broken.
        UsageError: a rank outside 0 to world_size - 1.

    """

    def __init__(
        self,
        shards: str | Path | Sequence[str | Path] | ShardSet,
        *,
        rank: int = 0,
        world_size: int = 1,
        window: int = 16,
        cache: str | Path | None = None,
        cache_bytes: int = DEFAULT_BYTES,
        max_pixels: int = MAX_PIXELS,
    ):
        if not 0 <= rank < world_size:
            raise UsageError(f"rank {rank} of {world_size}; expected 0 to {world_size - 1}")
        if isinstance(shards, ShardSet):
            self.index = shards
        else:
            self.index = open_shards(expand_shards(shards), Cache(cache, cache_bytes), max_pixels=max_pixels)
        self.rank, self.world_size, self.window = rank, world_size, window
        self._epoch: tuple[Order, int] | None = None

    def epoch(self, seed: int, epoch: int) -> "ShardDataset":
        """Take the order of an epoch from now on, a pure function of (seed, epoch), and return self."""
        self._epoch = Order(self.index.counts, seed, self.window), epoch
        return self

    def __len__(self) -> int:
        return len(range(self.rank, len(self.index), self.world_size))

    def __iter__(self) -> Iterator[Sample]:
        mine = range(self.rank, len(self.index), self.world_size)
        worker = get_worker_info()
        if worker is not None:
            mine = mine[worker.id :: worker.num_workers]
        reader = Reader(self.index)
        try:
            for place in mine:
                reader.near(*self._near(place))
                sample = self._sample(place)
                yield Sample(
                    image=torch.from_numpy(reader.image(sample)).permute(2, 0, 1),
                    boxes=torch.from_numpy(self.index.boxes_of(sample).astype(np.int64)),
                    key=self.index.text("key", sample),
                    label=self.index.text("label", sample),
                    source=self.index.text("source", sample),
                )
        finally:
            reader.close()

    def _sample(self, place: int) -> int:
        """Return the sample at a place of the order."""
        if self._epoch is None:
            return place
        order, epoch = self._epoch
        return order.sample(epoch * order.count + place)

    def _near(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (shards read now, shards that come next) at a place of the order."""
        if self._epoch is not None:
            order, epoch = self._epoch
            return order.near(epoch * order.count + place)
        shard = self.index.shard_of(place)
        return np.array([shard]), np.arange(shard + 1, min(shard + 1 + self.window, len(self.index.shards)))
