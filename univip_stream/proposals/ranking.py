"""Rank boxes by agreement: a box that many hierarchies find, each in its own way, is likely a thing.

Shape letter: N boxes.
"""

import numpy as np

from univip_stream.proposals.jit import kernel


@kernel
def unique_boxes(boxes: np.ndarray, voters: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Equal boxes once, with the sets of all who found them: (int32 N x 4 in order of area, int64 N sets as bits).

    Args:
        boxes: int32, left, top, right, bottom, all below `stride`.
        voters: int64, a bit for the hierarchy each box is from.
        stride: a number larger than any coordinate.

    """
    keys = np.empty(len(boxes), np.int64)
    for at in range(len(boxes)):
        x0, y0, x1, y1 = np.int64(boxes[at, 0]), np.int64(boxes[at, 1]), np.int64(boxes[at, 2]), np.int64(boxes[at, 3])
        keys[at] = ((x0 * stride + y0) * stride + x1) * stride + y1
    order = np.argsort(keys, kind="mergesort")
    kept, sets = np.empty_like(boxes), np.zeros(len(boxes), np.int64)
    count = 0
    for place in range(len(order)):
        at = order[place]
        if place == 0 or keys[at] != keys[order[place - 1]]:
            kept[count] = boxes[at]
            count += 1
        sets[count - 1] |= voters[at]
    areas = np.empty(count, np.int64)
    for at in range(count):
        areas[at] = np.int64(kept[at, 2] - kept[at, 0]) * (kept[at, 3] - kept[at, 1])
    by_area = np.argsort(areas, kind="mergesort")
    return kept[:count][by_area], sets[:count][by_area]


@kernel
def agreement(boxes: np.ndarray, sets: np.ndarray, percent: int) -> np.ndarray:
    """In how many hierarchies a box with an IoU of at least `percent` appears: int64 N.

    Args:
        boxes: int32 N x 4 left, top, right, bottom, in rising area.
        sets: int64 N, the hierarchies each box itself is in, as bits.
        percent: least IoU, in hundredths: integers compare exactly.

    """
    count = len(boxes)
    areas = np.empty(count, np.int64)
    for at in range(count):
        areas[at] = np.int64(boxes[at, 2] - boxes[at, 0]) * (boxes[at, 3] - boxes[at, 1])
    near = sets.copy()
    for a in range(count):
        for b in range(a + 1, count):
            # Boxes grow from here on: once the smaller cannot cover its share of the larger, no later one will do.
            if areas[a] * 100 < areas[b] * percent:
                break
            wide = min(boxes[a, 2], boxes[b, 2]) - max(boxes[a, 0], boxes[b, 0])
            if wide <= 0:
                continue
            high = min(boxes[a, 3], boxes[b, 3]) - max(boxes[a, 1], boxes[b, 1])
            if high <= 0:
                continue
            shared = np.int64(wide) * high
            if shared * 100 >= (areas[a] + areas[b] - shared) * percent:
                near[a] |= sets[b]
                near[b] |= sets[a]
    votes = np.empty(count, np.int64)
    for at in range(count):
        bits, total = near[at], 0
        while bits:
            bits &= bits - 1
            total += 1
        votes[at] = total
    return votes
