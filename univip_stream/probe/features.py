"""Features of labelled images: read them, cut the evaluation crop, run the frozen backbone.

Shape letters: B images of a batch, N images in all, D width of a feature, S side of the crop.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from univip_stream.errors import InputError

# ImageNet's channel statistics, as every torchvision and BYOL recipe uses them (RGB, images in 0..1).
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """An image with what it is."""

    image: np.ndarray
    """uint8, height x width x 3, RGB, upright."""
    label: str
    """Its class."""
    key: str
    """Its name in the source."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of N images, in the order of the source."""

    vectors_ND: np.ndarray
    """float32, not normalised."""
    labels: list[str]
    """One a row."""
    keys: list[str]
    """One a row."""


def centre_crop(image: np.ndarray, size: int) -> Tensor:
    """The usual evaluation crop: short side to size * 256 / 224, antialiased bilinear, then the central square.

    Args:
        image: uint8, height x width x 3.
        size: side of the result in pixels.

    Returns:
        uint8, 3 x size x size.

    """
    # asarray then tensor: a copy, because a decoder may hand out memory that is not writable.
    tensor = torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1)
    resized = TF.resize(tensor, [round(size * 256 / 224)], InterpolationMode.BILINEAR, antialias=True)
    crop: Tensor = TF.center_crop(resized, [size, size])
    return crop


@torch.inference_mode()
def extract(
    backbone: nn.Module,
    images: Iterable[LabelledImage],
    *,
    size: int,
    batch_size: int,
    device: torch.device,
) -> Features:
    """Run the frozen backbone over the images, in evaluation mode.

    Args:
        backbone: B x 3 x S x S normalised float32 -> B x D pooled features.
        images: read one after the other; memory holds one batch.
        size: side of the crop in pixels.
        batch_size: images a forward pass.
        device: where the backbone runs.

    """
    backbone = backbone.to(device).eval()
    mean = torch.tensor(MEAN, device=device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=device).view(1, 3, 1, 1)
    vectors, labels, keys = [], [], []
    for batch in _batches(images, batch_size):
        crops_B3SS = torch.stack([centre_crop(item.image, size) for item in batch]).to(device)
        found = backbone((crops_B3SS.float() / 255 - mean) / std).float().cpu().numpy()
        if not np.isfinite(found).all():
            raise InputError("the backbone's features are not finite: its weights are damaged, or training had burst")
        vectors.append(found)
        labels += [item.label for item in batch]
        keys += [item.key for item in batch]
    width = vectors[0].shape[1] if vectors else 0
    return Features(
        vectors_ND=np.concatenate(vectors) if vectors else np.empty((0, width), np.float32), labels=labels, keys=keys
    )


def _batches(images: Iterable[LabelledImage], size: int) -> Iterator[list[LabelledImage]]:
    waiting = iter(images)
    while batch := list(islice(waiting, size)):
        yield batch
