"""Boxes: frames, overlaps, the filter of the paper, and random boxes.

A box is four integers x, y, w, h in pixels: x to the right, y down, and x + w and y + h are just outside the box.

Shape letters: N and M boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from univip_stream.errors import InputError
from univip_stream.shapes import Bool, Float, Int32

BoxesLike = np.ndarray | Sequence[Any]
"""An array or nested sequence: N x 4, or 4 for a region. Its content is checked when it is used."""


def as_boxes(boxes: BoxesLike) -> Int32[np.ndarray, "N 4"]:
    """Return a sequence of x, y, w, h as an int32 N x 4 array; an empty one has shape 0 x 4.

    Raises:
        InputError: the shape is another, or numbers are not whole or do not fit 32 bits.

    """
    array = np.asarray(boxes)
    if array.size == 0:
        return np.empty((0, 4), np.int32)
    if array.ndim != 2 or array.shape[1] != 4 or array.dtype.kind not in "iuf":
        raise InputError(f"boxes have shape {array.shape} and type {array.dtype}; expected N x 4 numbers x, y, w, h")
    # Engines give int32, of which there is nothing to ask.
    if array.dtype != np.int32 and (
        not np.isfinite(array).all() or np.any(array != np.trunc(array)) or np.any(np.abs(array) > 2**31 - 1)
    ):
        raise InputError("boxes hold numbers that are not whole pixels; expected 32-bit integers x, y, w, h")
    return array.astype(np.int32)


def validate_boxes(boxes: BoxesLike, width: int, height: int) -> None:
    """Raise InputError, naming the first offender, unless every box has an area and lies inside the image."""
    array = as_boxes(boxes).astype(np.int64)
    x, y, w, h = array.T
    bad = (w < 1) | (h < 1) | (x < 0) | (y < 0) | (x + w > width) | (y + h > height)
    if bad.any():
        first = int(bad.argmax())
        raise InputError(
            f"box {first} is {array[first].tolist()} (x, y, w, h); expected w, h >= 1 inside {width} x {height} pixels"
        )


UPRIGHT, STORED = "upright", "stored"
"""The two frames of a photograph's boxes, which differ if EXIF turns it: the picture as a viewer shows it, and the pixels as
they are stored in the file."""
FRAMES = (UPRIGHT, STORED)


def to_upright(low: np.ndarray, high: np.ndarray, size: tuple[int, int], orientation: int) -> tuple[np.ndarray, np.ndarray]:
    """Transform corners in the stored pixels to corners in the upright image. For a point, give it as both.

    Args:
        low: N x 2, x and y of the corner nearest to the first pixel.
        high: N x 2, x and y of the other corner.
        size: width and height of the upright image, pixels.
        orientation: EXIF orientation, 1 to 8 (Exif 2.32, tag 0x0112).

    """
    if orientation >= 5:  # stored x runs along upright y
        low, high = low[:, ::-1], high[:, ::-1]
    return _mirror_corners(low, high, size, orientation)


def to_stored(low: np.ndarray, high: np.ndarray, size: tuple[int, int], orientation: int) -> tuple[np.ndarray, np.ndarray]:
    """Transform corners in the upright image to the stored pixels, the inverse of `to_upright`; `size` is the upright image's."""
    low, high = _mirror_corners(low, high, size, orientation)
    return (low[:, ::-1], high[:, ::-1]) if orientation >= 5 else (low, high)


def _mirror_corners(
    low: np.ndarray, high: np.ndarray, size: tuple[int, int], orientation: int
) -> tuple[np.ndarray, np.ndarray]:
    backwards = np.array([orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)])
    return np.where(backwards, np.array(size) - high, low), np.where(backwards, np.array(size) - low, high)


def iou(boxes: BoxesLike, others: BoxesLike) -> Float[np.ndarray, "N M"]:
    """Return the intersection over union of every pair, 0 to 1, float64."""
    a, b = as_boxes(boxes).astype(np.int64), as_boxes(others).astype(np.int64)
    overlap = np.ones((len(a), len(b)), np.int64)
    for axis in (0, 1):
        low = np.maximum(a[:, None, axis], b[None, :, axis])
        high = np.minimum((a[:, axis] + a[:, axis + 2])[:, None], (b[:, axis] + b[:, axis + 2])[None, :])
        overlap *= np.maximum(high - low, 0)
    union = (a[:, 2] * a[:, 3])[:, None] + (b[:, 2] * b[:, 3])[None, :] - overlap
    # Areas are exact integers, and a quotient of exact integers is rounded once: equal boxes give exactly 1.
    return np.asarray(overlap / np.maximum(union, 1), np.float64)


def inside(boxes: BoxesLike, region: BoxesLike) -> Bool[np.ndarray, "N"]:
    """Return whether each box lies wholly inside the region x, y, w, h; touching its border counts as inside.

    This is the test of UniVIP's Algorithm 1 with its erratum corrected: as printed, it asks whether the region is in the box.
    """
    x, y, w, h = as_boxes(boxes).astype(np.int64).T
    left, top, width, height = (int(v) for v in np.asarray(region))
    return np.asarray((x >= left) & (y >= top) & (x + w <= left + width) & (y + h <= top + height))


_AT_ONCE = 32
"""Number of boxes that are compared with all others at the same time."""


def filter_boxes(
    boxes: BoxesLike,
    min_scale: int | float = 64,
    max_aspect: int | float = 3.0,
    max_iou: int | float = 0.5,
    max_boxes: int | None = None,
) -> Int32[np.ndarray, "N 4"]:
    """Keep boxes that are large, not too long, and not covered by a better one (UniVIP, section 3.1; ORL's order).

    First, boxes with min(w, h) < `min_scale` pixels or an aspect outside [1 / `max_aspect`, `max_aspect`] are dropped. Then, in
    the given order (best first), a box is kept if its IoU with every box kept before it is at most `max_iou`. So the first
    kept box is always the first that passed, and the result does not depend on boxes that were dropped.

    Args:
        boxes: N x 4 integers x, y, w, h, best first.
        min_scale: shortest side kept, in pixels. 64 in the paper.
        max_aspect: longest side over shortest. 3 in the paper.
        max_iou: greatest overlap of two kept boxes, 0 to 1. 0.5 in the paper.
        max_boxes: maximal number of boxes kept; None keeps all.

    Returns:
        The kept boxes in their order, int32.

    """
    array = as_boxes(boxes)
    w, h = array[:, 2].astype(np.int64), array[:, 3].astype(np.int64)
    large = (np.minimum(w, h) >= min_scale) & (np.minimum(w, h) >= 1)
    array = array[large & (w <= max_aspect * h) & (h <= max_aspect * w)]

    x, y, w, h = array.astype(np.int64).T
    edges, number = np.stack([x, y, x + w, y + h, w * h]), np.arange(len(array))
    kept: list[int] = []
    while len(number) and (max_boxes is None or len(kept) < max_boxes):
        # Compare the next few with all that are left at once; then decide one by one which of them to keep.
        head = edges[:, :_AT_ONCE, None]
        wide = np.minimum(head[2], edges[2]) - np.maximum(head[0], edges[0])
        high = np.minimum(head[3], edges[3]) - np.maximum(head[1], edges[1])
        overlap = np.maximum(wide, 0) * np.maximum(high, 0)
        covers = overlap / (head[4] + edges[4] - overlap) > max_iou
        gone = np.zeros(len(number), bool)
        for at in range(len(covers)):
            if not gone[at]:
                kept.append(int(number[at]))
                gone |= covers[at]
        gone[: len(covers)] = True
        edges, number = edges[:, ~gone], number[~gone]
    return array[kept[:max_boxes]]


@dataclass(frozen=True, kw_only=True)
class BoxFilter:
    """Settings of the filter, as one value."""

    min_scale: int = 64
    """Shortest side kept, in pixels of the image. Smaller boxes rarely hold an object that 96 x 96 can show."""
    max_aspect: float = 3.0
    """Longest side over shortest; longer boxes are mostly borders and poles."""
    max_iou: float = 0.5
    """Greatest intersection over union of two kept boxes; of two that overlap more, the later one is dropped."""
    max_boxes: int | None = None
    """Maximal number of boxes kept; None keeps all."""

    def __post_init__(self) -> None:
        if self.min_scale < 1:
            raise InputError(f"min_scale is {self.min_scale}; expected at least 1 pixel")
        if not self.max_aspect >= 1:
            raise InputError(f"max_aspect is {self.max_aspect}; expected at least 1 (longest side over shortest)")
        if not 0 <= self.max_iou <= 1:
            raise InputError(f"max_iou is {self.max_iou}; expected 0 to 1")
        if self.max_boxes is not None and self.max_boxes < 1:
            raise InputError(f"max_boxes is {self.max_boxes}; expected at least 1, or none for all")

    def __call__(self, boxes: BoxesLike) -> Int32[np.ndarray, "N 4"]:
        return filter_boxes(boxes, self.min_scale, self.max_aspect, self.max_iou, self.max_boxes)


# Random boxes tried before the overlap constraint is dropped. With K = 4 and IoU 0.5, one of the first few nearly always fits.
_TRIES_A_BOX = 32


def naive_boxes(
    region: BoxesLike,
    count: int,
    rng: np.random.Generator,
    *,
    min_scale: int = 64,
    max_aspect: float = 3.0,
    max_iou: float = 0.5,
    avoid: BoxesLike = (),
) -> Int32[np.ndarray, "N 4"]:
    """Draw random boxes inside a region, under the constraints of the filter (the paper's "naive" strategy, Table 8 b).

    Side lengths are uniform among those allowed, then positions. If the region is smaller than `min_scale`, its shortest side
    is the smallest allowed; if no free position is found, the box that overlaps least is taken. So there are always exactly
    `count` boxes, and it always ends.

    Args:
        region: x, y, w, h to stay inside; w, h >= 1.
        count: number of boxes.
        rng: random generator.
        min_scale: shortest side in pixels.
        max_aspect: longest side over shortest, at least 1.
        max_iou: greatest overlap among them and with `avoid`.
        avoid: existing boxes.

    Returns:
        int32, count x 4.

    """
    left, top, width, height = (int(v) for v in np.asarray(region))
    if width < 1 or height < 1:
        raise InputError(f"a region of {width} x {height} pixels holds no box; expected at least 1 x 1")
    shortest = max(1, min(int(min_scale), width, height))
    taken = as_boxes(avoid)
    for _ in range(count):
        w = rng.integers(shortest, min(width, int(max_aspect * height)) + 1, _TRIES_A_BOX)
        lowest = np.maximum(shortest, np.ceil(w / max_aspect).astype(np.int64))
        h = rng.integers(lowest, np.minimum(height, (w * max_aspect).astype(np.int64)) + 1)
        x = left + rng.integers(0, width - w + 1)
        y = top + rng.integers(0, height - h + 1)
        tries = np.stack([x, y, w, h], axis=1).astype(np.int32)
        worst = iou(tries, taken).max(axis=1, initial=0.0)
        free = worst <= max_iou
        chosen = int(free.argmax()) if free.any() else int(worst.argmin())
        taken = np.concatenate([taken, tries[chosen : chosen + 1]])
    return taken[len(taken) - count :]


_NEARBY_TRIES = 200
"""Number of boxes tried by `nearby_box`, as in ORL's code."""


def nearby_box(box: Int32[np.ndarray, "4"], width: int, height: int, rng: np.random.Generator) -> Int32[np.ndarray, "4"]:
    """Draw a random box near another, as ORL draws the second view of a region (Jiahao000/ORL @ 2ad64f7, `aug_bbox`).

    It has half to twice the area, an aspect of 1/2 to 2, and a centre moved by up to half the sides; it must be inside the image,
    with an IoU of more than 0.5. The first of 200 draws that fits is returned; if none does, the box itself.

    Args:
        box: x, y, w, h.
        width: width of the image, pixels.
        height: height of the image, pixels.
        rng: random generator.

    """
    x, y, w, h = (int(v) for v in box)
    area, log_aspect, right, down = rng.random((4, _NEARBY_TRIES))
    area = w * h * (0.5 + 1.5 * area)
    aspect = np.exp(np.log(2) * (2 * log_aspect - 1))
    wide, high = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
    left = np.round(x + 0.5 * w + (right - 0.5) * w - 0.5 * wide)
    top = np.round(y + 0.5 * h + (down - 0.5) * h - 0.5 * high)
    tries = np.stack([left, top, wide, high], axis=1).astype(np.int32)
    within = (left >= 0) & (top >= 0) & (left + wide <= width) & (top + high <= height) & (wide >= 1) & (high >= 1)
    good = within & (iou(tries, np.array([[x, y, w, h]]))[:, 0] > 0.5)
    return tries[good.argmax()] if good.any() else np.array([x, y, w, h], np.int32)
