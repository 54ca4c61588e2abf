"""Crops of one image as a run sees them: Algorithm 1's views and instances, cropped and augmented by the stream's own code.

Letters: K instances, S side of a picture in pixels.
"""

import hashlib
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from univip_stream import augment as augmentation
from univip_stream import storage
from univip_stream.augment import AugmentConfig
from univip_stream.errors import InputError
from univip_stream.report.numbers import FirstEpoch
from univip_stream.stream.cut import cut
from univip_stream.stream.reader import Reader
from univip_stream.views import ViewConfig, Views

LONGEST = 512
"""Longest side of an image in the page, pixels."""


class RangeReader(Reader):
    """Reads single images of local or remote shards, also from several threads; of a remote shard only their bytes are read."""

    def _bytes(self, sample: int) -> bytes:
        index = self.index
        rows, at = index.at(sample)
        size, offset = int(rows.size[at]), int(rows.offset[at])
        try:
            data = storage.read(index.shards[index.shard_of(sample)], offset, size)
        except OSError as error:
            raise InputError(f"{self.name(sample)}: {error}") from error
        if len(data) != size:
            raise InputError(f"{self.name(sample)}: the shard ends after {len(data)} of its {size} bytes; it was cut off")
        return data

    def _fetch_again(self, sample: int, data: bytes) -> bytes:
        return self._bytes(sample) if hashlib.sha256(data).hexdigest() != self.index.text("sha256", sample) else data


@dataclass(frozen=True, kw_only=True)
class Crop:
    """One window of an image, before and after augmentation."""

    before: np.ndarray
    """uint8, S x S x 3, RGB: cropped and resized."""
    after: np.ndarray
    """uint8, S x S x 3, RGB: augmented, without the final normalisation."""
    flipped: bool
    """Whether `after` is mirrored."""


@dataclass(frozen=True, kw_only=True)
class ImageCrops:
    """An image with its views and instances."""

    image: np.ndarray
    """uint8, RGB, with the longest side at most LONGEST."""
    views: Views
    """Windows of the views and instances."""
    scenes: list[Crop]
    """The two views."""
    instances: list[Crop]
    """The K instances."""
    ranks: list[int | None]
    """For each of the K instances, the rank of its box among the image's, 0 the best; None for a random box."""


def crop_image(reader: Reader, epoch: FirstEpoch, augment: AugmentConfig, sample: int) -> ImageCrops:
    """Crop and augment one image as the stream does at its position in the first epoch, with the same random numbers.

    Raises:
        InputError: the image's bytes are not those that were mined.

    """
    image = reader.image(sample)
    views, rng = epoch.draw(sample)
    config = epoch.config
    scenes = []
    for view, box in enumerate(views.scenes):
        numbers = augmentation.draw(rng, augment, view)
        scenes.append(_crop(image, box, config.scene_size, numbers, augment, config))
    instances = []
    for box in views.instances:
        # An instance may have two augmentations: all are drawn, as in the stream, and the first is shown.
        drawn = [augmentation.draw(rng, augment, which) for which in range(config.instance_augmentations)]
        instances.append(_crop(image, box, config.instance_size, drawn[0], augment, config))
    rank = {tuple(box): at for at, box in reversed(list(enumerate(reader.index.boxes_of(sample).tolist())))}
    mined = len(views.instances) - views.filled
    ranks = [rank.get(tuple(box)) if k < mined else None for k, box in enumerate(views.instances.tolist())]
    return ImageCrops(image=fitted(image, LONGEST), views=views, scenes=scenes, instances=instances, ranks=ranks)


def fitted(image: np.ndarray, longest: int) -> np.ndarray:
    """Return the image with its longest side at most `longest` pixels; smaller ones stay as they are."""
    height, width = image.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def _crop(
    image: np.ndarray, box: np.ndarray, side: int, numbers: np.ndarray, augment: AugmentConfig, config: ViewConfig
) -> Crop:
    before = np.empty((side, side, 3), np.uint8)
    cut(image, box, before, config.interpolation, antialias=True)
    pixels = torch.from_numpy(before).permute(2, 0, 1)[None]
    after = augmentation.augment(pixels, torch.from_numpy(numbers)[None], augment, keep_uint8=True)
    return Crop(before=before, after=after[0].permute(1, 2, 0).numpy(), flipped=bool(numbers[augmentation.FLIP]))
