"""Features of images: cut the evaluation crop, run the frozen backbone.

Shape letters: B images of a batch, N images in all, D width of a feature, S side of the crop.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from univip_stream.errors import InputError
from univip_stream.probe.crops import CentreCrop, batches
from univip_stream.probe.labelled import ImageSource, LabelledSource

# ImageNet's channel statistics, as every torchvision and BYOL recipe uses them (RGB, images in 0..1).
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of N images, in the order of the source."""

    vectors_ND: np.ndarray
    """float32, not normalised."""
    labels: list[str]
    """One a row."""
    keys: list[str]
    """One a row."""


def normalised(images_B3SS: Tensor) -> Tensor:
    """uint8 of 0 to 255 as float32 of the statistics that networks are trained with."""
    mean = torch.tensor(MEAN, device=images_B3SS.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=images_B3SS.device).view(1, 3, 1, 1)
    return (images_B3SS.float() / 255 - mean) / std


def vectors(
    backbone: nn.Module,
    source: ImageSource,
    numbers: np.ndarray,
    *,
    size: int,
    batch_size: int,
    device: torch.device,
    workers: int = 0,
) -> Iterator[np.ndarray]:
    """Run the frozen backbone over images of a source, in evaluation mode: a B x D float32 at a time, in order.

    Args:
        backbone: B x 3 x S x S normalised float32 -> B x D pooled features.
        source: of the images.
        numbers: which of them.
        size: side of the centre crop in pixels.
        batch_size: images a forward pass; memory holds a few batches.
        device: where the backbone runs.
        workers: processes that read and cut; 0 is this one.

    Raises:
        InputError: an image that cannot be read; features that are not finite.

    """
    backbone = backbone.to(device).eval()
    for crops in batches(source, numbers, CentreCrop(size), batch_size=batch_size, workers=workers):
        with torch.inference_mode():
            found = backbone(normalised(crops.images.to(device, non_blocking=True))).float().cpu().numpy()
        if not np.isfinite(found).all():
            raise InputError("the backbone's features are not finite: its weights are damaged, or training had burst")
        yield found


def extract(
    backbone: nn.Module, source: LabelledSource, *, size: int, batch_size: int, device: torch.device, workers: int = 0
) -> Features:
    """Features of all images of a source, in memory; see `vectors`."""
    found = list(
        vectors(backbone, source, np.arange(len(source)), size=size, batch_size=batch_size, device=device, workers=workers)
    )
    return Features(vectors_ND=np.concatenate(found), labels=source.labels, keys=source.keys)
