"""Batches for training and scoring a detector: images with their targets, in an order that seed and iteration decide."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from univip_stream.distributed import Process
from univip_stream.errors import InputError
from univip_stream.evaluation.detection.data import DetectionSet
from univip_stream.failures import Failure, listed
from univip_stream.images import BadImageError
from univip_stream.shards.format import UNREADABLE
from univip_stream.workers import loaded


class DetectionItems(Dataset[Any]):
    """Items for training: an image, its target, and the failures of unreadable images that it replaces. Items for scoring
    (`masks` is None): an image's number with its pixels or its Failure. Errors are items, because DataLoader would replace
    their message by a worker's traceback."""

    def __init__(self, known: DetectionSet, *, masks: bool | None) -> None:
        self.known, self.masks = known, masks

    def __getitem__(self, item: tuple[int, bool]) -> Any:
        number, flip = item
        if self.masks is None:
            pixels = self._pixels(number)
            return number, pixels if isinstance(pixels, Failure) else torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
        met: dict[int, Failure] = {}
        while isinstance(pixels := self._pixels(number), Failure):
            met[number] = pixels
            number = (number + 1) % len(self.known)
            if number in met:
                return InputError("\n".join([f"no image of {self.known.name} can be read:", *listed(list(met.values()), 10)]))
        image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
        try:
            target = self.known.target(number, masks=self.masks)
        except Exception as error:
            name = self.known.images[number]["file_name"]
            return InputError(f"{self.known.name}: the objects of {name} cannot be used ({type(error).__name__}: {error})")
        if flip:
            width = image.shape[-1]
            image = image.flip(-1)
            target["boxes"] = torch.stack(
                [width - target["boxes"][:, 2], target["boxes"][:, 1], width - target["boxes"][:, 0], target["boxes"][:, 3]],
                1,
            )
            if self.masks:
                target["masks"] = target["masks"].flip(-1)
        return image, target, met

    def _pixels(self, number: int) -> np.ndarray | Failure:
        try:
            return self.known.pixels(number)
        except InputError as error:
            cause = error.__cause__
            status = cause.status if isinstance(cause, BadImageError) else UNREADABLE
            return Failure(self.known.images[number]["file_name"], status, str(cause or error))


class Order:
    """Batches of (number of an image, whether it is flipped) for one rank: a pure function of seed and iteration."""

    def __init__(self, count: int, seed: int, batch_size: int, first: int, last: int, process: Process) -> None:
        self.count, self.seed, self.batch_size, self.first, self.last = count, seed, batch_size, first, last
        self.process = process

    def __iter__(self) -> Iterator[list[tuple[int, bool]]]:
        epoch, order = -1, np.empty(0, np.int64)
        flips = np.empty(0)
        for iteration in range(self.first, self.last):
            batch = []
            for at in range(self.process.rank, self.batch_size, self.process.world_size):
                turn, where = divmod(iteration * self.batch_size + at, self.count)
                if turn != epoch:
                    rng = np.random.Generator(np.random.Philox(key=[self.seed, turn]))
                    epoch, order, flips = turn, rng.permutation(self.count), rng.random(self.count)
                batch.append((int(order[where]), bool(flips[where] < 0.5)))
            yield batch

    def __len__(self) -> int:
        return self.last - self.first


def training_batches(
    known: DetectionSet,
    *,
    seed: int,
    batch_size: int,
    first: int,
    last: int,
    workers: int,
    process: Process,
    masks: bool,
) -> Iterator[Any]:
    """Yield (images, targets, failures) of the iterations from `first` up to, not with, `last`, those of one rank.

    Images are uint8 3 x height x width, targets as of `DetectionSet.target`; failures are unreadable images, by number, in
    whose places the next ones of the order are.
    """
    order: Any = Order(len(known), seed, batch_size, first, last, process)
    for images, targets, met in loaded(
        DetectionItems(known, masks=masks), workers=workers, batch_sampler=order, collate_fn=transposed
    ):
        yield images, targets, {number: failure for one in met for number, failure in one.items()}


def transposed(items: list[Any]) -> Any:
    """Return items as a tuple for each of their places; the first error, if there is one."""
    for item in items:
        if isinstance(item, InputError):
            return item
    return tuple(zip(*items, strict=True))
