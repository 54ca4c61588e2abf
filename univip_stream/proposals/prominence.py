"""How much a box stands out by its colours alone: from what is around it, and by what is in it.

The cue is colour contrast as in "What is an object?" (Alexe et al., TPAMI 2012, section 2.2), with means in place of histograms; a
flat piece of sky or wall is no thing either, so the spread of the colours inside counts too. Sums over rectangles come from
tables of sums (Crow, SIGGRAPH 1984), in whole numbers.
"""

import numpy as np

from univip_stream.proposals.jit import entry, part

FULL = 64
"""Prominence of a box that stands out."""
SPREAD, CONTRAST = 50.0, 20.0
"""Standard deviation inside, and distance of the mean to that of the surroundings, at which a box stands out: in the 8-bit units of
OpenCV's Lab. Chosen on COCO train images, where half or double of either is no better (docs/log.md)."""
FLAT = 2
"""What has one colour stands out by its contrast alone, at so many times SPREAD."""
MARGIN = 8
"""The surroundings reach this part of width and height beyond the sides, and at least a pixel."""


@entry
def prominence(boxes: np.ndarray, lab: np.ndarray) -> np.ndarray:
    """Return how much boxes stand out: int64 N, from 0 to FULL.

    FULL x min(1, max(spread, contrast / FLAT) / SPREAD) x min(1, contrast / CONTRAST), rounded down. What covers the whole image
    stands out from nothing.

    Args:
        boxes: int32 N x 4 left, top, right, bottom, inside the image and not empty.
        lab: uint8 height x width x 3.

    """
    height, width, _ = lab.shape
    sums = _sums(lab)
    out = np.empty(len(boxes), np.int64)
    inside, around = np.empty(4, np.int64), np.empty(4, np.int64)
    for box in range(len(boxes)):
        left, top, right, bottom = boxes[box, 0], boxes[box, 1], boxes[box, 2], boxes[box, 3]
        across, along = max((right - left) // MARGIN, 1), max((bottom - top) // MARGIN, 1)
        from_x, to_x = max(left - across, 0), min(right + across, width)
        from_y, to_y = max(top - along, 0), min(bottom + along, height)
        _sum(sums, left, top, right, bottom, inside)
        _sum(sums, from_x, from_y, to_x, to_y, around)
        count = np.int64(right - left) * np.int64(bottom - top)
        others = np.int64(to_x - from_x) * np.int64(to_y - from_y) - count
        if others == 0:
            out[box] = 0
            continue
        # Each operation rounds as IEEE 754 says and in the order written: the same bits on every machine.
        variance, distance = np.float64(inside[3]) / count, np.float64(0)
        for c in range(3):
            mean = np.float64(inside[c]) / count
            variance -= mean * mean
            step = mean - np.float64(around[c] - inside[c]) / others
            distance += step * step
        contrast = np.sqrt(distance)
        spread = max(np.sqrt(max(variance, 0.0)), contrast / FLAT)
        out[box] = np.int64(FULL * min(spread / SPREAD, 1.0) * min(contrast / CONTRAST, 1.0))
    return out


@part
def _sums(lab: np.ndarray) -> np.ndarray:
    """Return, for each corner of pixels, the sums over all above and left of it: of each channel, and of all squares.

    Returns:
        int64 height + 1 x width + 1 x 4.

    """
    height, width, _ = lab.shape
    sums = np.empty((height + 1, width + 1, 4), np.int64)
    sums[0] = 0
    for y in range(height):
        above, here, line = sums[y], sums[y + 1], lab[y]
        here[0] = 0
        first, second, third, squares = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
        for x in range(width):
            one, two, three = np.int64(line[x, 0]), np.int64(line[x, 1]), np.int64(line[x, 2])
            first, second, third = first + one, second + two, third + three
            squares += one * one + two * two + three * three
            here[x + 1, 0] = above[x + 1, 0] + first
            here[x + 1, 1] = above[x + 1, 1] + second
            here[x + 1, 2] = above[x + 1, 2] + third
            here[x + 1, 3] = above[x + 1, 3] + squares
    return sums


@part
def _sum(sums: np.ndarray, left: int, top: int, right: int, bottom: int, out: np.ndarray) -> None:
    for c in range(4):
        out[c] = sums[bottom, right, c] - sums[top, right, c] - sums[bottom, left, c] + sums[top, left, c]
