"""Cut a box out of a uint8 image and resize it directly into its place in the batch."""

import cv2
import numpy as np
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from univip_stream.shapes import Int, UInt8

_CV2 = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
_TORCHVISION = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


def cut(
    image: UInt8[np.ndarray, "H W 3"],
    box: Int[np.ndarray, "4"],
    out: UInt8[np.ndarray, "S S 3"],
    interpolation: str,
    *,
    antialias: bool,
) -> None:
    """Resize the pixels of `image` inside `box` into `out`.

    Args:
        image: RGB.
        box: x, y, w, h in pixels, inside the image.
        out: a square of S x S pixels, which is overwritten completely.
        interpolation: "bilinear" or "bicubic".
        antialias: widen the filter when shrinking, as Pillow and the papers' pipelines do. Without it, resizing is about
            three times cheaper and shows moire.

    """
    x, y, w, h = (int(v) for v in box)
    window = image[y : y + h, x : x + w]
    side = len(out)
    if (h, w) == (side, side):
        out[:] = window
    elif antialias and (h > side or w > side):
        # A view of H x W x 3 memory as 3 x H x W is channels-last, which torch resizes without a copy.
        pixels = torch.from_numpy(window).permute(2, 0, 1)
        resized = TF.resize(pixels, [side, side], _TORCHVISION[interpolation], antialias=True)
        torch.from_numpy(out).copy_(resized.permute(1, 2, 0))
    else:
        cv2.resize(window, (side, side), dst=out, interpolation=_CV2[interpolation])
