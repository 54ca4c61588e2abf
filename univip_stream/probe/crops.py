"""From images to batches of crops: what a network is judged on, and what a classifier is trained on.

Shape letters: B images of a batch, S side of the crop, P numbers of an augmentation's draw.
"""

import math
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
from univip_stream.probe.labelled import ImageSource
from univip_stream.stream.cut import cut
from univip_stream.workers import loaded

_TRIES = 10
"""Of a random crop before the central one is taken, as in torchvision's RandomResizedCrop."""

Crop = Callable[[np.ndarray, int], tuple[Tensor, Tensor]]
"""(image, number of the image) -> uint8 3 x S x S, and the float32 P of its draw (empty where nothing is drawn)."""


@dataclass(frozen=True, kw_only=True)
class Crops:
    """A batch."""

    images: Tensor
    """uint8, B x 3 x S x S."""
    draws: Tensor
    """float32, B x P; B x 0 where nothing was drawn."""
    numbers: Tensor
    """int64, B: which images of the source."""


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
        cut(image, random_box(image.shape[1], image.shape[0], rng), pixels, "bilinear", antialias=True)
        return torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(draw(rng, self.config, 0))


def random_box(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """x, y, w, h of a random resized crop (Szegedy et al. 2015, as torchvision's RandomResizedCrop draws it)."""
    for _ in range(_TRIES):
        area = width * height * rng.uniform(0.08, 1)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return np.array([rng.integers(width - w + 1), rng.integers(height - h + 1), w, h])
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return np.array([(width - w) // 2, (height - h) // 2, w, h])


def batches(
    source: ImageSource,
    numbers: Sequence[int] | np.ndarray,
    crop: Crop,
    *,
    batch_size: int,
    workers: int,
) -> Iterator[Crops]:
    """Crops of the images with these numbers, in this order, read and cut in `workers` processes (0: in this one)."""
    images = _Cropped(source, np.asarray(numbers), crop)
    yield from loaded(
        images, workers=workers, start=one_thread, batch_size=batch_size, prefetch_factor=4, collate_fn=_stacked
    )


class _Cropped(Dataset[Any]):
    def __init__(self, source: ImageSource, numbers: np.ndarray, crop: Crop) -> None:
        self.source, self.numbers, self.crop = source, numbers, crop

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor, int]:
        number = int(self.numbers[place])
        return *self.crop(self.source[number].image, number), number


def _stacked(items: list[tuple[Tensor, Tensor, int]]) -> Crops:
    images, draws, numbers = zip(*items, strict=True)
    return Crops(images=torch.stack(images), draws=torch.stack(draws), numbers=torch.tensor(numbers))


def one_thread() -> None:
    """Workers are the parallelism."""
    cv2.setNumThreads(0)  # 1 would end the threads of a pool that did not survive the fork, and wait for them for ever
