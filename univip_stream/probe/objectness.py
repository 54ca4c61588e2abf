"""Whether a box holds a thing, by a backbone's features alone: its parts agree, and differ from what is around them.

Letters: h and w sides of a map, P = h * w its places, D width of a feature, N boxes.
"""

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from univip_stream.augment import AugmentConfig
from univip_stream.errors import InputError, UsageError
from univip_stream.networks import Backbone
from univip_stream.probe.dense import dense_map
from univip_stream.shapes import Float

VERSION = "1"
"""Changes with the order that the same features give."""
SIDE = 512
"""Longer side of the image that the backbone sees, pixels."""
LEAST_PLACES = 8
"""The fewest places along the longer side of a map: with fewer most boxes have no place of their own."""
MOST_PLACES = 32
"""The most places along the longer side: finer maps are averaged, as every place is compared with every other."""
SHARE = 0.25
"""How much the features say of the new order; the order of before says the rest. Chosen on COCO train2017 images (docs/log.md)."""
_MULTIPLE = 32
"""Sides that the backbone sees are multiples of this, so that the places of a map fill the image."""
_AT_ONCE = 1024
"""Number of boxes that are scored at once: with the finest map, some 50 MB."""
_AROUND = 0.25
"""Width of what is around a box, by the box's own width and height."""


def check_backbone(backbone: Backbone, name: str) -> None:
    """Check that a backbone has a map of features that is fine enough.

    Args:
        backbone: the network, on the CPU.
        name: its name for the message.

    Raises:
        UsageError: it has no map, or a map that is too coarse.

    """
    with torch.inference_mode():
        h, w, _ = dense_map(backbone, torch.zeros(1, 3, SIDE, SIDE), name)[0].shape
    if max(h, w) < LEAST_PLACES:
        raise UsageError(
            f"the features of {name} are too coarse to tell boxes apart: {w} x {h} places for an image of {SIDE} pixels, expected "
            f"at least {LEAST_PLACES} x {LEAST_PLACES}"
        )


def image_map(backbone: Backbone, pixels: np.ndarray, settings: AugmentConfig, name: str) -> Float[Tensor, "h w D"]:
    """Return what a backbone has at each place of an image, row by row from the upper left.

    Args:
        backbone: the network, on the CPU, in evaluation mode.
        pixels: uint8, height x width x 3, RGB.
        settings: of its training, for mean and standard deviation.
        name: its name for messages.

    Returns:
        float32 (h, w, D).

    Raises:
        InputError: features are not finite.
        UsageError: as in `dense_map`.

    """
    height, width = pixels.shape[:2]
    scale = SIDE / max(height, width)
    h, w = (max(_MULTIPLE, round(side * scale / _MULTIPLE) * _MULTIPLE) for side in (height, width))
    seen = cv2.resize(pixels, (w, h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    image = torch.from_numpy(seen).permute(2, 0, 1)[None].float() / 255
    mean, std = (image.new_tensor(values).view(1, 3, 1, 1) for values in (settings.mean, settings.std))
    with torch.inference_mode():
        found = dense_map(backbone, (image - mean) / std, name)[0].float()
    if not found.isfinite().all():
        raise InputError("the backbone's features are not finite: its weights are damaged, or training diverged")
    h, w, _ = found.shape
    if (times := -(-max(h, w) // MOST_PLACES)) > 1:
        sides = (-(-h // times), -(-w // times))
        found = nn.functional.adaptive_avg_pool2d(found.permute(2, 0, 1), sides).permute(1, 2, 0)
    return found


def objectness(map_hwD: Tensor, boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Score boxes: how alike their parts are, and how unlike their surroundings, both beside boxes of about their size.

    Features are taken less the image's mean and to unit length. With a mean over the places of a box (by the share of each place
    that the box covers) and one over the frame around it, a quarter of its sides wide, the score is the length of the former,
    which is 1 where all places agree, less the cosine between the two. Small boxes have few places, which agree by themselves:
    what a quadratic in the logarithm of the area explains of the image's own scores is taken off.

    Args:
        map_hwD: float (h, w, D), from `image_map`.
        boxes: int32 N x 4, x, y, w, h in pixels.
        width: width of the image, pixels.
        height: height of the image, pixels.

    Returns:
        float64 N.

    """
    h, w, _ = map_hwD.shape
    features_PD = map_hwD.flatten(0, 1).double()
    features_PD = nn.functional.normalize(features_PD - features_PD.mean(0), dim=1, eps=1e-6)
    alike_PP = features_PD @ features_PD.T

    edges = torch.from_numpy(boxes.astype(np.float64))
    parts = [_alike(some, alike_PP, (h, w), width, height) for some in torch.split(edges, _AT_ONCE)]
    agreement, cosine = (torch.cat(values) for values in zip(*parts, strict=True))
    # The box of the whole image has nothing around it, which says neither yes nor no.
    cosine = cosine.nan_to_num(nan=float(cosine.nanmean()) if not cosine.isnan().all() else 0.0)
    return _beside_its_size((agreement - cosine).numpy(), np.log((edges[:, 2] * edges[:, 3]).numpy()))


def _alike(edges: Tensor, alike_PP: Tensor, sides: tuple[int, int], width: int, height: int) -> tuple[Tensor, Tensor]:
    """Return (how alike the parts of boxes are, how like their surroundings; NaN if there are none), float64 N each."""
    low, size = edges[:, :2], edges[:, 2:]
    room = edges.new_tensor([width, height])
    inside_NP = _covered(low, low + size, room, sides)
    wider_NP = _covered((low - _AROUND * size).clamp_min(0), torch.minimum(low + (1 + _AROUND) * size, room), room, sides)
    around_NP = wider_NP - inside_NP
    has_around = around_NP.sum(1) > 1e-9
    inside_NP = inside_NP / inside_NP.sum(1, keepdim=True)
    around_NP = around_NP / around_NP.sum(1, keepdim=True).clamp_min(1e-9)

    towards_NP = inside_NP @ alike_PP
    agreement = (towards_NP * inside_NP).sum(1).clamp_min(0).sqrt()
    length = ((around_NP @ alike_PP) * around_NP).sum(1).clamp_min(0).sqrt()
    cosine = (towards_NP * around_NP).sum(1) / (agreement * length).clamp_min(1e-9)
    return agreement, torch.where(has_around, cosine, torch.full_like(cosine, torch.nan))


def _covered(low: Tensor, high: Tensor, room: Tensor, sides: tuple[int, int]) -> Float[Tensor, "N P"]:
    """Return how much of each place of a map each box covers, 0 to 1."""
    shares = []
    for axis, count in ((1, sides[0]), (0, sides[1])):
        place = torch.arange(count, dtype=low.dtype)
        begin, end = (bound[:, axis : axis + 1] * count / room[axis] for bound in (low, high))
        shares.append((torch.minimum(end, place + 1) - torch.maximum(begin, place)).clamp_min(0))
    return (shares[0][:, :, None] * shares[1][:, None, :]).flatten(1)


def _beside_its_size(scores: np.ndarray, log_areas: np.ndarray) -> np.ndarray:
    """Return scores less what a quadratic in the logarithm of the area explains of them."""
    x = log_areas - log_areas.mean()
    powers_3N = np.stack([np.ones_like(x), x, x * x])
    # A little on the diagonal: with boxes of one size only, the rest of the system is empty.
    factors = np.linalg.solve(powers_3N @ powers_3N.T + 1e-9 * np.eye(3), powers_3N @ scores)
    return np.asarray(scores - factors @ powers_3N)


def order_by(scores: np.ndarray, share: float = SHARE) -> np.ndarray:
    """Return the order of boxes that were in an order before and have scores now: int64 N.

    Ranks are mixed by their logarithms (a weighted geometric mean): the first few of either order stay among the first. Ties go to
    the earlier.

    Args:
        scores: float64 N, in the order of before.
        share: how much the scores say, 0 to 1.

    """
    before = np.arange(len(scores))
    by_scores = np.empty(len(scores), np.int64)
    by_scores[np.argsort(-scores, kind="stable")] = before
    return np.argsort((1 - share) * np.log1p(before) + share * np.log1p(by_scores), kind="stable")
