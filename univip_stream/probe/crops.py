"""From images to batches of crops: what a network is judged on, and what a classifier is trained on.

Shape letters: B images of a batch, S side of the crop, P numbers of an augmentation's draw.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from univip_stream.augment import AugmentConfig, draw
from univip_stream.errors import InputError
from univip_stream.failures import Failure
from univip_stream.images import BadImageError
from univip_stream.probe.labelled import ImageSource
from univip_stream.stream.cut import cut
from univip_stream.views import random_crops
from univip_stream.workers import loaded

Crop = Callable[[np.ndarray, int], tuple[Tensor, Tensor]]
"""(image, number of the image) -> uint8 3 x S x S, and the float32 P of its draw (empty where nothing is drawn)."""


@dataclass(frozen=True, kw_only=True)
class Crops:
    """A batch, of the images that can be read."""

    images: Tensor
    """uint8, B x 3 x S x S."""
    draws: Tensor
    """float32, B x P; B x 0 where nothing was drawn."""
    numbers: Tensor
    """int64, B: which images of the source."""
    failed: dict[int, Failure]
    """Those asked for that are not here because they cannot be read, by their number."""


class CentreCrop:
    """The usual evaluation crop: short side to size * 256 / 224, antialiased bilinear, then the central square."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: np.ndarray, number: int) -> tuple[Tensor, Tensor]:
        # A copy, because a decoder may hand out memory that is not writable.
        tensor = torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1)
        resized = TF.resize(tensor, [round(self.size * 256 / 224)], InterpolationMode.BILINEAR, antialias=True)
        return TF.center_crop(resized, [self.size, self.size]), torch.empty(0)


class RandomCrop:
    """A random resized crop (scale 0.08 to 1, aspect 3/4 to 4/3) with the draw of its augmentation.

    What an image gets depends on the seed, the epoch and its number alone.
    """

    def __init__(self, size: int, config: AugmentConfig, *, seed: int, epoch: int) -> None:
        self.size, self.config, self.seed, self.epoch = size, config, seed, epoch

    def __call__(self, image: np.ndarray, number: int) -> tuple[Tensor, Tensor]:
        rng = np.random.Generator(np.random.Philox(key=[self.seed, (self.epoch << 32) + number]))
        pixels = np.empty((self.size, self.size, 3), np.uint8)
        [window] = random_crops(rng, 1, image.shape[1], image.shape[0], (0.08, 1.0))
        cut(image, window, pixels, "bilinear", antialias=True)
        return torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(draw(rng, self.config, 0))


def batches(
    source: ImageSource,
    numbers: Sequence[int] | np.ndarray,
    crop: Crop,
    *,
    batch_size: int,
    workers: int,
) -> Iterator[Crops]:
    """Crops of the images with these numbers, in this order, read and cut in `workers` processes (0: in this one).

    Images that cannot be read are named in `failed` of their batch, which is smaller then, perhaps empty.

    Raises:
        InputError: images cannot be read for a reason that is not theirs.

    """
    images = _Cropped(source, np.asarray(numbers), crop)
    # A generator of its own: looking at images must not move that of a training.
    yield from loaded(
        images, workers=workers, start=one_thread, batch_size=batch_size, prefetch_factor=4, collate_fn=_stacked,
        generator=torch.Generator(),
    )  # fmt: skip


def sound(parts: Iterator[Crops]) -> Iterator[Crops]:
    """The batches of images that were all found readable before.

    Raises:
        InputError: one of them no longer is.

    """
    for crops in parts:
        for failure in crops.failed.values():
            raise InputError(
                f"{failure.source} could be read when this began, and cannot now: {failure.status}: {failure.reason}; mend it, or "
                "run the same command again, which leaves it out"
            )
        yield crops


def look_through(source: ImageSource, numbers: np.ndarray, *, workers: int) -> dict[int, Failure]:
    """Read every image once: those that cannot be used, by their number."""
    failed: dict[int, Failure] = {}
    for crops in batches(source, numbers, _no_crop, batch_size=64, workers=workers):
        failed |= crops.failed
    return failed


def _no_crop(image: np.ndarray, number: int) -> tuple[Tensor, Tensor]:
    return torch.empty(0), torch.empty(0)


class _Cropped(Dataset[Any]):
    """Item n is the n-th image's crop, its draw and number; or its number and why it cannot be read; or what else is wrong.

    Errors are items, because DataLoader would lay a worker's traceback over their words.
    """

    def __init__(self, source: ImageSource, numbers: np.ndarray, crop: Crop) -> None:
        self.source, self.numbers, self.crop = source, numbers, crop

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor, int] | tuple[int, Failure] | InputError:
        number = int(self.numbers[place])
        try:
            return *self.crop(self.source[number].image, number), number
        except BadImageError as error:
            return number, self.source.failure(number, error)
        except InputError as error:
            return InputError(str(error))  # without what it holds on to, which may not travel between processes


def _stacked(items: list[Any]) -> Crops | InputError:
    for item in items:
        if isinstance(item, InputError):
            return item
    failed = dict(item for item in items if len(item) == 2)
    good = [item for item in items if len(item) == 3]
    images, draws, numbers = zip(*good, strict=True) if good else ((torch.empty(0),), (torch.empty(0),), ())
    return Crops(
        images=torch.stack(images), draws=torch.stack(draws), numbers=torch.tensor(numbers, dtype=torch.int64), failed=failed
    )


def one_thread() -> None:
    """Workers are the parallelism."""
    cv2.setNumThreads(0)  # 1 would end the threads of a pool that did not survive the fork, and wait for them for ever
