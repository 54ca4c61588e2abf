"""Read images and crop them into batches, for judging a network and for training classifiers on it.

Shape letters: B images of a batch, S side of the crop, P numbers of an augmentation's draw.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
"""(image, number of the image) -> uint8 3 x S x S, and the float32 P of its draw (empty if nothing is drawn)."""


@dataclass(frozen=True, kw_only=True)
class Crops:
    """A batch of crops, of the images that can be read."""

    images: Tensor
    """uint8, B x 3 x S x S."""
    draws: Tensor
    """float32, B x P; B x 0 if nothing was drawn."""
    numbers: Tensor
    """int64, B: numbers of the images in the source."""
    failed: dict[int, Failure]
    """Images missing from the batch because they cannot be read, by their number."""


class CentreCrop:
    """The usual evaluation crop: short side to size * 256 / 224, antialiased, bilinear or bicubic, then the central square."""

    def __init__(self, size: int, interpolation: str = "bilinear") -> None:
        self.size, self.interpolation = size, InterpolationMode(interpolation)

    def __call__(self, image: np.ndarray, number: int) -> tuple[Tensor, Tensor]:
        # A copy, because a decoder may hand out memory that is not writable.
        tensor = torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1)
        resized = TF.resize(tensor, [round(self.size * 256 / 224)], self.interpolation, antialias=True)
        return TF.center_crop(resized, [self.size, self.size]), torch.empty(0)


class RandomCrop:
    """A random resized crop (scale 0.08 to 1, aspect 3/4 to 4/3) with the draw of its augmentation.

    The crop of an image depends only on the seed, the epoch and the image's number.

    Args:
        size: side of the crop, pixels.
        config: settings of the augmentation.
        seed: seed of the draws.
        epoch: number of the pass over the images.
        interpolation: bilinear or bicubic.
        lighting: standard deviation of three more numbers of the draw, for `lit`; 0 draws none.

    """

    def __init__(
        self,
        size: int,
        config: AugmentConfig,
        *,
        seed: int,
        epoch: int,
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
        lighting: float = 0.0,
    ) -> None:
        self.size, self.config, self.seed, self.epoch = size, config, seed, epoch
        self.interpolation, self.lighting = interpolation, lighting

    def __call__(self, image: np.ndarray, number: int) -> tuple[Tensor, Tensor]:
        rng = np.random.Generator(np.random.Philox(key=[self.seed, (self.epoch << 32) + number]))
        pixels = np.empty((self.size, self.size, 3), np.uint8)
        [window] = random_crops(rng, 1, image.shape[1], image.shape[0], (0.08, 1.0))
        cut(image, window, pixels, self.interpolation, antialias=True)
        numbers = draw(rng, self.config, 0)
        if self.lighting:
            numbers = np.concatenate([numbers, rng.normal(0, self.lighting, 3).astype(np.float32)])
        return torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(numbers)


_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
"""Principal components of ImageNet's colours (Krizhevsky et al. 2012; ORL 2ad64f7, `datasets/pipelines/transforms.py`)."""


def lit(images_B3SS: Tensor, numbers_B3: Tensor, std: Sequence[float]) -> Tensor:
    """Add AlexNet's lighting noise to normalised images: each image one colour along the principal components of ImageNet's.

    Args:
        images_B3SS: images, normalised.
        numbers_B3: the draws of the three components.
        std: standard deviation that the images were divided by.

    """
    vectors, values = images_B3SS.new_tensor(_EIGENVECTORS), images_B3SS.new_tensor(_EIGENVALUES)
    # Element by element: a matrix product may be rounded to TF32, and a batch's size may change its sums.
    colour_B3 = (vectors[None] * (numbers_B3 * values)[:, None]).sum(-1) / images_B3SS.new_tensor(std)
    return images_B3SS + colour_B3[:, :, None, None]


def batches(
    source: ImageSource,
    numbers: Sequence[int] | np.ndarray,
    crop: Crop,
    *,
    batch_size: int,
    workers: int,
) -> Iterator[Crops]:
    """Yield crops of the images with these numbers, in this order, read and cropped in `workers` processes (0: in this one).

    Images that cannot be read are listed in `failed` of their batch, which is then smaller, perhaps empty.

    Raises:
        InputError: reading fails for a reason other than a bad image.

    """
    images = _CropDataset(source, np.asarray(numbers), crop)
    # A generator of its own: reading images must not advance that of a training.
    yield from loaded(
        images, workers=workers, start=one_thread, batch_size=batch_size, prefetch_factor=4, collate_fn=_collated,
        generator=torch.Generator(),
    )  # fmt: skip


def require_readable(parts: Iterator[Crops]) -> Iterator[Crops]:
    """Yield the batches of images that were all readable before.

    Raises:
        InputError: an image is no longer readable.

    """
    for crops in parts:
        for failure in crops.failed.values():
            raise InputError(
                f"{failure.source} could be read when this began, and cannot now: {failure.status}: {failure.reason}; mend it, or "
                "run the same command again, which leaves it out"
            )
        yield crops


def look_through(source: ImageSource, numbers: np.ndarray, *, workers: int) -> dict[int, Failure]:
    """Read every image once, and return those that cannot be used, by their number."""
    failed: dict[int, Failure] = {}
    for crops in batches(source, numbers, _no_crop, batch_size=64, workers=workers):
        failed |= crops.failed
    return failed


def _no_crop(image: np.ndarray, number: int) -> tuple[Tensor, Tensor]:
    return torch.empty(0), torch.empty(0)


class _CropDataset(Dataset[Any]):
    """Item n is the n-th image's crop, draw and number; or its number and Failure; or an InputError.

    Errors are items, because DataLoader would replace their message by a worker's traceback.
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
            return InputError(str(error))  # without its cause, which may not be picklable


def _collated(items: list[Any]) -> Crops | InputError:
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
    """Make OpenCV use one thread in a worker; the workers run in parallel already."""
    cv2.setNumThreads(0)  # 1 would wait forever for the threads of a pool that did not survive the fork
