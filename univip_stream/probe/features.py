"""Compute features of images: take the evaluation crop, run the frozen backbone.

Shape letters: B images of a batch, N images in all, D width of a feature, S side of the crop.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from univip_stream.augment import AugmentConfig, normalised
from univip_stream.errors import InputError
from univip_stream.failures import Failure, listed
from univip_stream.probe.crops import CentreCrop, batches
from univip_stream.probe.labelled import ImageSource, LabelledSource


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of the N images of a source that can be read, in its order."""

    vectors_ND: np.ndarray
    """float32, not normalised."""
    labels: list[str]
    """Label of each row."""
    keys: list[str]
    """Key of each row."""
    failed: list[Failure]
    """Images of the source that have no row."""


@dataclass(frozen=True, kw_only=True)
class FeatureBatch:
    """Features of one forward pass."""

    vectors_BD: np.ndarray
    """float32; one row per readable image."""
    numbers: np.ndarray
    """int64 B: numbers of the images."""
    failed: dict[int, Failure]
    """Images of this batch that cannot be read, by their number."""

    def __len__(self) -> int:
        return len(self.numbers) + len(self.failed)


def vectors(
    backbone: nn.Module,
    source: ImageSource,
    numbers: np.ndarray,
    *,
    size: int,
    pixels: AugmentConfig,
    batch_size: int,
    device: torch.device,
    workers: int = 0,
) -> Iterator[FeatureBatch]:
    """Run the frozen backbone over images of a source, in evaluation mode, and yield their features batch by batch, in order.

    Args:
        backbone: B x 3 x S x S normalised float32 -> B x D pooled features.

        source: images.
        numbers: numbers of the images to use.
        size: side of the centre crop in pixels.
        pixels: settings of the backbone's training, for its mean and standard deviation.
        batch_size: images per forward pass; memory holds a few batches.
        device: device of the backbone.
        workers: processes that read and crop; 0 is this one.

    Raises:
        InputError: features are not finite; or reading fails for a reason other than a bad image.

    """
    backbone = backbone.to(device).eval()
    for crops in batches(source, numbers, CentreCrop(size), batch_size=batch_size, workers=workers):
        found = np.empty((0, 0), np.float32)
        if len(crops.numbers):
            with torch.inference_mode():
                found = backbone(normalised(crops.images.to(device, non_blocking=True), pixels)).float().cpu().numpy()
        if not np.isfinite(found).all():
            raise InputError("the backbone's features are not finite: its weights are damaged, or training diverged")
        yield FeatureBatch(vectors_BD=found, numbers=crops.numbers.numpy(), failed=crops.failed)


def extract(
    backbone: nn.Module,
    source: LabelledSource,
    *,
    size: int,
    pixels: AugmentConfig,
    batch_size: int,
    device: torch.device,
    workers: int = 0,
) -> Features:
    """Return the features of all images of a source; see `vectors`.

    Raises:
        InputError: no image can be read, or as in `vectors`.

    """
    found = list(
        vectors(
            backbone, source, np.arange(len(source)),
            size=size, pixels=pixels, batch_size=batch_size, device=device, workers=workers,
        )
    )  # fmt: skip
    numbers = np.concatenate([part.numbers for part in found])
    failed = [failure for part in found for failure in part.failed.values()]
    if not len(numbers):
        raise InputError("\n".join([f"none of the {len(source)} images of {source.name} can be read:", *listed(failed, 10)]))
    return Features(
        vectors_ND=np.concatenate([part.vectors_BD for part in found if len(part.numbers)]),
        labels=[source.labels[number] for number in numbers],
        keys=[source.keys[number] for number in numbers],
        failed=failed,
    )
