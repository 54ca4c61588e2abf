"""The default proposer: selective search (Uijlings et al., IJCV 2013) with every thing done once, and ranked by agreement.

What OpenCV's Fast mode repeats for each of its six segmentations is shared here: pixels are smoothed, compared and sorted
once a colour space, segmented once into small atoms, and everything after that works on some hundreds of atoms. Boxes are
found on a copy of `working_resolution` pixels a side. See docs/selective-search.md.
"""

from functools import lru_cache

import cv2
import numpy as np

from univip_stream.errors import InputError
from univip_stream.proposals import features, graph, grouping, ranking

SIGMA = 0.8
"""Of the smoothing, pixels of the working copy (Felzenszwalb and Huttenlocher's and OpenCV's value)."""
SCALES = (30, 100, 200)
"""k of the segmentations at 256 pixels, in grey levels. OpenCV Fast has 150, 300, 450 for full images; smaller copies have
fewer pixels a region. Chosen, as the next three, on COCO train images (docs/log.md)."""
ATOM_SCALE = 30
"""k of the atoms."""
ATOM_SIZE = 25
"""Pixels an atom has at least, at 256 pixels; it grows with the copy's area."""
AGREE = 70
"""Percent of IoU at which two boxes agree."""


def selective_search(image: np.ndarray, *, seed: int = 0, working_resolution: int = 256) -> np.ndarray:
    """Propose boxes by selective search on a small copy.

    Args:
        image: uint8, height x width x 3, RGB.
        seed: not used: nothing here is random.
        working_resolution: longer side of the copy, pixels; a smaller image is taken as it is. More pixels cost
            proportionally more time.

    Returns:
        int32, N x 4 x, y, w, h in pixels of the image: those that most others agree with first, larger first among equals.

    """
    if working_resolution < 16:
        raise InputError(f"working_resolution is {working_resolution}; expected at least 16 pixels")
    height, width = image.shape[:2]
    small = working_copy(image, working_resolution)
    found = [
        boxes
        for conversion in (cv2.COLOR_RGB2HSV, cv2.COLOR_RGB2Lab)
        for boxes in hierarchies(cv2.cvtColor(small, conversion), working_resolution)
    ]
    boxes = ranking.ranked(np.concatenate(found), AGREE)
    return full_size(boxes, small.shape[1], small.shape[0], width, height)


def hierarchies(image: np.ndarray, working_resolution: int) -> list[np.ndarray]:
    """The boxes of every hierarchy of one colour space: three segmentations, grouped in two ways each.

    Args:
        image: uint8, height x width x 3, of one colour space.
        working_resolution: as above; sizes follow it.

    Returns:
        Six arrays, int32 n x 4 left, top, right, bottom.

    """
    height, width = image.shape[:2]
    weights = graph.drop_heaviest_of_squares(graph.weigh_edges(graph.smooth(image, taps(SIGMA))))
    order, sorted_weights = graph.sorted_edges(weights)
    growth = working_resolution / 256
    atom_k, atom_size = int(ATOM_SCALE * growth * graph.UNIT), max(1, int(ATOM_SIZE * growth * growth))
    labels, sizes, inners, pairs, pair_weights = graph.segment_pixels(order, sorted_weights, height, width, atom_k, atom_size)
    pairs, pair_weights = graph.first_of_each_pair(pairs, pair_weights, len(sizes))
    colour, texture = features.atom_histograms(image, labels, len(sizes), 2)
    boxes = features.atom_boxes(labels, len(sizes))
    found = []
    for k in SCALES:
        region, regions = graph.segment_atoms(pairs, pair_weights, sizes, inners, int(k * growth * graph.UNIT), atom_size)
        parts = grouping.pool(region, regions, colour, texture, boxes, sizes)
        for with_colour in (True, False):
            found.append(grouping.group(region, regions, pairs, *parts, height * width, with_colour))
    return found


def working_copy(image: np.ndarray, working_resolution: int) -> np.ndarray:
    """The image with its longer side at most `working_resolution` pixels, never enlarged."""
    height, width = image.shape[:2]
    longest = max(height, width)
    if longest <= working_resolution:
        return image
    size = (max(1, round(width * working_resolution / longest)), max(1, round(height * working_resolution / longest)))
    # The exact one: fixed point, the same pixels from every build and processor.
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR_EXACT), np.uint8)


def full_size(boxes: np.ndarray, width: int, height: int, full_width: int, full_height: int) -> np.ndarray:
    """Boxes of the working copy (left, top, right, bottom) as x, y, w, h of the image; equal ones once, order kept."""
    if (width, height) == (full_width, full_height):
        edges = boxes.astype(np.int64)
    else:
        edges = np.empty((len(boxes), 4), np.int64)
        for axis, (side, full) in enumerate(((width, full_width), (height, full_height))):
            edges[:, axis::2] = (boxes[:, axis::2].astype(np.int64) * full * 2 + side) // (2 * side)
        # A box of less than half a pixel in a long thin image would vanish.
        edges[:, 2:] = np.maximum(edges[:, 2:], edges[:, :2] + 1)
        edges[:, :2] = np.minimum(edges[:, :2], (full_width - 1, full_height - 1))
        edges[:, 2:] = np.minimum(edges[:, 2:], (full_width, full_height))
    xywh = np.concatenate([edges[:, :2], edges[:, 2:] - edges[:, :2]], axis=1).astype(np.int32)
    return xywh


def version() -> str:
    """Changes when the same image can get other boxes."""
    return f"1, opencv {cv2.__version__}"


@lru_cache(maxsize=4)
def taps(sigma: float) -> np.ndarray:
    """Half a Gaussian kernel in 14-bit fixed point, from the centre on; with its mirror it sums to 2 ** 14."""
    radius = round(4 * sigma)
    half = np.exp(-(np.arange(radius + 1) ** 2) / (2 * sigma**2))
    whole = half[0] + 2 * half[1:].sum()
    taps = np.round(half / whole * (1 << 14)).astype(np.int32)
    taps[0] = (1 << 14) - 2 * taps[1:].sum()
    return np.asarray(taps, np.int32)
