"""Rank boxes by agreement: a box that many hierarchies find, each in its own way, is likely a thing.

Shape letter: N boxes.
"""

import numpy as np

from univip_stream.proposals.jit import kernel


@kernel
def unique_boxes(boxes: np.ndarray, stride: int) -> np.ndarray:
    """Equal boxes once: int32 N x 4, in rising area, equal areas by coordinates.

    Args:
        boxes: int32, left, top, right, bottom, all below `stride`.
        stride: a number larger than any coordinate, at most 2 ** 15.

    """
    keys = np.empty(len(boxes), np.int64)
    for at in range(len(boxes)):
        x0, y0, x1, y1 = np.int64(boxes[at, 0]), np.int64(boxes[at, 1]), np.int64(boxes[at, 2]), np.int64(boxes[at, 3])
        keys[at] = ((x0 * stride + y0) * stride + x1) * stride + y1
    order = np.argsort(keys, kind="mergesort")
    kept = np.empty_like(boxes)
    count = 0
    for place in range(len(order)):
        if place == 0 or keys[order[place]] != keys[order[place - 1]]:
            kept[count] = boxes[order[place]]
            count += 1
    areas = np.empty(count, np.int64)
    for at in range(count):
        areas[at] = np.int64(kept[at, 2] - kept[at, 0]) * (kept[at, 3] - kept[at, 1])
    return kept[:count][np.argsort(areas, kind="mergesort")]


@kernel
def neighbours(boxes: np.ndarray, percent: int) -> np.ndarray:
    """How many boxes have an IoU of at least `percent` with each, itself included: int64 N.

    Args:
        boxes: int32 N x 4 left, top, right, bottom, in rising area.
        percent: least IoU, in hundredths: integers compare exactly.

    """
    count = len(boxes)
    areas = np.empty(count, np.int64)
    for at in range(count):
        areas[at] = np.int64(boxes[at, 2] - boxes[at, 0]) * (boxes[at, 3] - boxes[at, 1])
    near = np.ones(count, np.int64)
    for a in range(count):
        for b in range(a + 1, count):
            # Boxes grow from here on: once the smaller cannot cover its share of the larger, no later one will do.
            if areas[a] * 100 < areas[b] * percent:
                break
            wide = min(boxes[a, 2], boxes[b, 2]) - max(boxes[a, 0], boxes[b, 0])
            high = min(boxes[a, 3], boxes[b, 3]) - max(boxes[a, 1], boxes[b, 1])
            if wide <= 0 or high <= 0:
                continue
            shared = np.int64(wide) * high
            if shared * 100 >= (areas[a] + areas[b] - shared) * percent:
                near[a] += 1
                near[b] += 1
    return near


def ranked(boxes: np.ndarray, percent: int) -> np.ndarray:
    """Equal boxes once, most neighbours first, larger first among equals: int32 N x 4 left, top, right, bottom."""
    unique = unique_boxes(boxes, int(boxes.max(initial=0)) + 1)
    # Rising area in, so the reverse of a stable sort gives the larger first among equals.
    return unique[np.argsort(neighbours(unique, percent), kind="stable")[::-1]]
