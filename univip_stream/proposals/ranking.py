"""Rank boxes by agreement: a box that many different hierarchies find is probably an object.

Shape letter: N boxes.
"""

import numpy as np

from univip_stream.proposals.jit import entry


def unique_boxes(boxes: np.ndarray) -> np.ndarray:
    """Return each of the boxes once, int32 N x 4, by rising area, equal areas by coordinates.

    Args:
        boxes: int32, left, top, right, bottom, none negative.

    """
    stride = int(boxes.max(initial=0)) + 1
    if stride <= 1 << 15:
        wide = boxes.astype(np.int64)
        keys = np.unique(((wide[:, 0] * stride + wide[:, 1]) * stride + wide[:, 2]) * stride + wide[:, 3])
        unique = np.stack([keys // stride**3, keys // stride**2 % stride, keys // stride % stride, keys % stride], axis=1)
    else:  # a side of more than 32767 pixels: four coordinates do not fit one number
        unique = np.unique(boxes.astype(np.int64), axis=0)
    areas = (unique[:, 2] - unique[:, 0]) * (unique[:, 3] - unique[:, 1])
    return unique[np.argsort(areas, kind="stable")].astype(np.int32)


@entry
def neighbours(boxes: np.ndarray, percent: int) -> np.ndarray:
    """Return, for each box, the number of boxes with an IoU of at least `percent`, including itself: int32 N.

    Args:
        boxes: int32 N x 4 left, top, right, bottom, in rising area.
        percent: least IoU, in hundredths.

    """
    count = len(boxes)
    # Whole numbers far below 2 ** 53: floats hold them exactly, and the compiler has vector instructions for them.
    left, top = boxes[:, 0].astype(np.float64), boxes[:, 1].astype(np.float64)
    right, bottom = boxes[:, 2].astype(np.float64), boxes[:, 3].astype(np.float64)
    areas = (right - left) * (bottom - top)
    near = np.ones(count, np.int32)
    end = 0
    for a in range(count):
        # Boxes grow from here on: once the smaller cannot cover its share of the larger, no later one will do.
        while end < count and areas[end] * percent <= areas[a] * 100:
            end += 1
        a_left, a_top, a_right, a_bottom, area = left[a], top[a], right[a], bottom[a], areas[a]
        b_left, b_top, b_right, b_bottom = left[a + 1 : end], top[a + 1 : end], right[a + 1 : end], bottom[a + 1 : end]
        b_areas, b_near = areas[a + 1 : end], near[a + 1 : end]
        total = np.int32(0)
        for b in range(len(b_areas)):
            wide = max(min(a_right, b_right[b]) - max(a_left, b_left[b]), 0.0)
            high = max(min(a_bottom, b_bottom[b]) - max(a_top, b_top[b]), 0.0)
            agrees = np.int32(wide * high * (100 + percent) >= (area + b_areas[b]) * percent)
            b_near[b] += agrees
            total = np.int32(total + agrees)
        near[a] += total
    return near


def ranked(boxes: np.ndarray, percent: int) -> np.ndarray:
    """Return each box once, most neighbours first, larger first among equals: int32 N x 4 left, top, right, bottom."""
    unique = unique_boxes(boxes)
    # The input has rising area, so the reverse of a stable sort gives the larger first among equals.
    return unique[np.argsort(neighbours(unique, percent), kind="stable")[::-1]]
