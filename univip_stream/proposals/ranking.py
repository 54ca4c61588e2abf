"""Rank boxes: by agreement, since a box that many different hierarchies find is probably an object; and by what they add to others.

Shape letter: N boxes.
"""

from collections.abc import Callable

import numpy as np

from univip_stream.proposals.jit import entry, part

LONGEST = 3
"""Longest side over shortest of a box that keeps all its votes; it is the paper's own limit."""
MIN_SCALE = 64
"""Shortest side, in pixels of the image, that the paper's filter keeps."""
SHARES = ((70, 3), (80, 4), (90, 6))
"""What a box is worth that an earlier one overlaps: from an IoU of so many hundredths on, its votes halved so many times."""
_WHOLE = 8
"""Bits below a vote, so that no halving loses any."""


def unique_boxes(boxes: np.ndarray) -> np.ndarray:
    """Return each of the boxes once, int32 N x 4, by rising area, equal areas by coordinates.

    Args:
        boxes: int32, left, top, right, bottom, none negative.

    """
    stride = int(boxes.max(initial=0)) + 1
    if stride <= 1 << 15:
        wide = boxes.astype(np.int64)
        keys = np.sort(((wide[:, 0] * stride + wide[:, 1]) * stride + wide[:, 2]) * stride + wide[:, 3])
        keys = keys[np.diff(keys, prepend=-1) > 0]  # np.unique takes twice as long
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


def ranked(boxes: np.ndarray, percent: int, full_size: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return each box once, in an order in which each next one adds most: int32 N x 4 left, top, right, bottom.

    A box is worth as many votes as boxes agree with it, a quarter of that if it is longer than `LONGEST` to one, and of what is
    left only a share if one before it overlaps it (`SHARES`). The next box is always the one worth most; larger first among equals.
    So the first boxes lie in different places, and what refines them comes later, between the less certain ones. Worth is
    counted in whole numbers: the order is the same on every machine.

    What the paper's filter keeps of the boxes by votes alone is always worth all its votes, so that the filter keeps exactly
    these here too: any other box of its size and aspect comes after the one that the filter drops it for.

    Args:
        boxes: int32, left, top, right, bottom, none negative.
        percent: least IoU, in hundredths, at which two boxes agree.
        full_size: gives boxes as x, y, w, h of the image, which the filter sees; different ones must stay different.

    """
    unique = unique_boxes(boxes)
    votes = neighbours(unique, percent).astype(np.int64)
    # The input has rising area, so the reverse of a stable sort gives the larger first among equals.
    kept = kept_by_filter(np.ascontiguousarray(full_size(unique), np.int32), np.argsort(votes, kind="stable")[::-1].copy())
    wide, high = unique[:, 2] - unique[:, 0], unique[:, 3] - unique[:, 1]
    long = np.maximum(wide, high) > LONGEST * np.minimum(wide, high).astype(np.int64)
    worth = votes << np.where(long & ~kept, _WHOLE - 2, _WHOLE)
    return unique[each_adds_most(unique, worth, np.argsort(worth, kind="stable")[::-1].copy(), kept)]


@entry
def kept_by_filter(boxes: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return which boxes the paper's filter (`boxes.filter_boxes`) keeps of all in an order: bool N.

    Args:
        boxes: int32 N x 4 x, y, w, h, all different.
        order: int64 N, best first.

    """
    kept = np.zeros(len(boxes), np.bool_)
    chosen = np.empty((len(boxes), 5), np.int64)
    count = 0
    for box in order:
        x, y, w, h = np.int64(boxes[box, 0]), np.int64(boxes[box, 1]), np.int64(boxes[box, 2]), np.int64(boxes[box, 3])
        if min(w, h) < MIN_SCALE or max(w, h) > LONGEST * min(w, h):
            continue
        free = True
        for at in range(count):
            wide = min(x + w, chosen[at, 2]) - max(x, chosen[at, 0])
            high = min(y + h, chosen[at, 3]) - max(y, chosen[at, 1])
            # An IoU of more than a half, in whole numbers.
            if wide > 0 and high > 0 and 3 * wide * high > w * h + chosen[at, 4]:
                free = False
                break
        if free:
            kept[box] = True
            chosen[count, 0], chosen[count, 1], chosen[count, 2], chosen[count, 3], chosen[count, 4] = (
                x,
                y,
                x + w,
                y + h,
                w * h,
            )
            count += 1
    return kept


@entry
def each_adds_most(boxes: np.ndarray, worth: np.ndarray, order: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return the order in which the next box is always the one whose worth, after what those before it overlap, is greatest.

    Boxes wait in queues by how much of them was covered when they entered, and by how much when they were last looked at: along
    each, worth falls, so that the best is at one of their heads.

    Args:
        boxes: int32 N x 4 left, top, right, bottom, in rising area.
        worth: int64 N, with enough zero bits that no share of `SHARES` loses any.
        order: int64 N, the boxes by falling worth.
        kept: bool N, boxes that lose nothing if they are overlapped.

    Returns:
        int64 N.

    """
    count = len(boxes)
    left, top = boxes[:, 0].astype(np.float64), boxes[:, 1].astype(np.float64)
    right, bottom = boxes[:, 2].astype(np.float64), boxes[:, 3].astype(np.float64)
    areas = (right - left) * (bottom - top)
    like = _like_areas(areas, SHARES[0][0])
    covered = np.zeros(count, np.int32)
    place = np.empty(count, np.int64)
    for at in range(count):
        place[order[at]] = at
    levels = len(SHARES) + 1
    queue = np.empty((levels, levels, count), np.int64)
    head, tail = np.zeros((levels, levels), np.int64), np.zeros((levels, levels), np.int64)
    queue[0, 0] = order
    tail[0, 0] = count
    out = np.empty(count, np.int64)
    found = 0
    while found < count:
        box, most, came, level = np.int64(-1), np.int64(-1), 0, 0
        for at in range(levels):
            for before in range(at + 1):
                if head[before, at] < tail[before, at]:
                    candidate = queue[before, at, head[before, at]]
                    value = worth[candidate] >> _shift(at)
                    if value > most or (value == most and place[candidate] < place[box]):
                        box, most, came, level = candidate, value, before, at
        head[came, level] += 1
        now = covered[box]
        if now > level:
            queue[level, now, tail[level, now]] = box
            tail[level, now] += 1
            continue
        out[found] = box
        found += 1
        _cover(box, left, top, right, bottom, areas, like, kept, covered)
    return out


@part
def _like_areas(areas: np.ndarray, percent: int) -> np.ndarray:
    """Return, for each of the rising areas, the first and the end of those that are at least `percent` of it, or it of them."""
    like = np.empty((len(areas), 2), np.int64)
    begin, end = 0, 0
    for at in range(len(areas)):
        while areas[begin] * 100 < areas[at] * percent:
            begin += 1
        while end < len(areas) and areas[end] * percent <= areas[at] * 100:
            end += 1
        like[at, 0], like[at, 1] = begin, end
    return like


@part
def _shift(level: int) -> int:
    """Return how often the worth of a box is halved that is covered to this level."""
    return 0 if level == 0 else SHARES[level - 1][1]


@part
def _cover(
    box: int,
    left: np.ndarray,
    top: np.ndarray,
    right: np.ndarray,
    bottom: np.ndarray,
    areas: np.ndarray,
    like: np.ndarray,
    kept: np.ndarray,
    covered: np.ndarray,
) -> None:
    """Note for all boxes how much of them this one covers. Only those of a like area can be."""
    begin, end = like[box]
    b_left, b_top, b_right, b_bottom = left[begin:end], top[begin:end], right[begin:end], bottom[begin:end]
    b_areas, b_kept, b_covered = areas[begin:end], kept[begin:end], covered[begin:end]
    a_left, a_top, a_right, a_bottom, area = left[box], top[box], right[box], bottom[box], areas[box]
    for b in range(len(b_areas)):
        wide = max(min(a_right, b_right[b]) - max(a_left, b_left[b]), 0.0)
        high = max(min(a_bottom, b_bottom[b]) - max(a_top, b_top[b]), 0.0)
        shared, both = wide * high, area + b_areas[b]
        level = np.int32(0)
        for at in range(3):
            percent = SHARES[at][0]
            level = np.int32(level + np.int32(shared * (100 + percent) >= both * percent))
        b_covered[b] = max(b_covered[b], level * np.int32(not b_kept[b]))
