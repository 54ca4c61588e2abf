"""Rank boxes: by agreement, since a box that many different hierarchies find is probably an object; and by what they add to others.

Shape letter: N boxes.
"""

from collections.abc import Callable

import numpy as np

from univip_stream.proposals.graph import DIGIT, sorted_keys
from univip_stream.proposals.jit import copy_into, entry, part
from univip_stream.proposals.prominence import FULL, prominence

LONGEST = 3
"""Longest side over shortest of a box that keeps all its votes; it is the paper's own limit."""
MIN_SCALE = 64
"""Shortest side, in pixels of the image, that the paper's filter keeps."""
AGREE = 70
"""Percent of IoU at which two boxes agree."""
SHARES = ((AGREE, 3), (80, 4), (90, 6))
"""What a box is worth that an earlier one overlaps: from an IoU of so many hundredths on, its votes halved so many times."""
_HALVINGS = SHARES[-1][1]
"""Bits below the worth of a box, so that no halving loses any."""
_MOST = (1 << 2 * DIGIT) - 1
"""The greatest worth that `sorted_keys` sorts."""


def unique_boxes(boxes: np.ndarray) -> np.ndarray:
    """Return each of the boxes once, int32 N x 4, by rising area, equal areas by coordinates.

    Args:
        boxes: int32, left, top, right, bottom, none negative.

    """
    bits = int(boxes.max(initial=0)).bit_length()
    if 6 * bits <= 63:  # an area and four coordinates in one number; np.unique takes twice as long
        return _unpacked(np.sort(_packed(boxes, bits)), bits)
    wide = boxes.astype(np.int64)
    areas = (wide[:, 2] - wide[:, 0]) * (wide[:, 3] - wide[:, 1])
    return np.unique(np.column_stack([areas, wide]), axis=0)[:, 1:].astype(np.int32)


@entry
def _packed(boxes: np.ndarray, bits: int) -> np.ndarray:
    """Return boxes as numbers that sort by area and then by coordinates, which have so many bits each: int64 N."""
    keys = np.empty(len(boxes), np.int64)
    for at in range(len(boxes)):
        left, top, right, bottom = (
            np.int64(boxes[at, 0]),
            np.int64(boxes[at, 1]),
            np.int64(boxes[at, 2]),
            np.int64(boxes[at, 3]),
        )
        area = (right - left) * (bottom - top)
        keys[at] = (((area << bits | left) << bits | top) << bits | right) << bits | bottom
    return keys


@entry
def _unpacked(keys: np.ndarray, bits: int) -> np.ndarray:
    """Return the boxes of sorted numbers, each once."""
    boxes = np.empty((len(keys), 4), np.int32)
    found, before, mask = 0, np.int64(-1), (1 << bits) - 1
    for key in keys:
        for side in range(4):
            boxes[found, side] = key >> bits * (3 - side) & mask
        found += key != before
        before = key
    return boxes[:found].copy()


def neighbours(boxes: np.ndarray, percent: int) -> np.ndarray:
    """Return, for each box, the number of boxes with an IoU of at least `percent`, including itself: int64 N.

    Args:
        boxes: int32 N x 4 left, top, right, bottom, in rising area.
        percent: least IoU, in hundredths.

    """
    return 1 + np.bincount(agreements(boxes, percent).ravel(), minlength=len(boxes))


@part
def agreements(boxes: np.ndarray, percent: int) -> np.ndarray:
    """Return every two boxes with an IoU of at least `percent`: int32 2 x P, the earlier ones and the later ones.

    Args:
        boxes: int32 N x 4 left, top, right, bottom, in rising area.
        percent: least IoU, in hundredths.

    """
    # Whole numbers far below 2 ** 53: floats hold them exactly, and the compiler has vector instructions for them.
    count, share = len(boxes), np.float64(percent)
    edges = np.empty((4, count), np.float64)
    for side in range(4):
        for at in range(count):
            edges[side, at] = boxes[at, side]
    left, top, right, bottom = edges[0], edges[1], edges[2], edges[3]
    areas = (right - left) * (bottom - top)
    found, pairs = np.int64(0), np.empty((2, 4 * count + 8), np.int32)
    flags = np.zeros(count // 8 * 8 + 16, np.uint8)
    words = flags.view(np.uint64)
    end = 0
    for a in range(count):
        # Boxes grow from here on: once the smaller cannot cover its share of the larger, no later one will do.
        while end < count and areas[end] * share <= areas[a] * 100:
            end += 1
        begin, length = a + 1, end - a - 1
        _agree(left[a], top[a], right[a], bottom[a], areas[a], left[begin:end], top[begin:end], right[begin:end],
               bottom[begin:end], areas[begin:end], share, flags[:length])  # fmt: skip
        flags[length : length + 8] = 0
        if found + length + 8 > pairs.shape[1]:
            more = np.empty((2, 2 * pairs.shape[1] + length + 8), np.int32)
            copy_into(more[0], pairs[0, :found])
            copy_into(more[1], pairs[1, :found])
            pairs = more
        found = _list(flags, words, a, length, pairs[0], pairs[1], found)
    return pairs[:, :found].copy()


@part
def _agree(
    a_left: float,
    a_top: float,
    a_right: float,
    a_bottom: float,
    area: float,
    left: np.ndarray,
    top: np.ndarray,
    right: np.ndarray,
    bottom: np.ndarray,
    areas: np.ndarray,
    percent: float,
    flags: np.ndarray,
) -> None:
    """Note which boxes agree with this one. IoU is shared / (areas - shared), so that no division is needed."""
    for b in range(len(flags)):
        wide = max(min(a_right, right[b]) - max(a_left, left[b]), 0.0)
        high = max(min(a_bottom, bottom[b]) - max(a_top, top[b]), 0.0)
        flags[b] = np.uint8(wide * high * (100 + percent) >= (area + areas[b]) * percent)


@part
def _list(
    flags: np.ndarray, words: np.ndarray, a: int, length: int, earlier: np.ndarray, later: np.ndarray, found: int
) -> int:
    """List the boxes after `a` that are flagged, and return how many pairs there are now. Few are: eight flags are seen at once."""
    for word in range((length + 7) // 8):
        if words[word]:
            # Written always, counted if flagged: no branch to mispredict.
            for at in range(8 * word, 8 * word + 8):
                earlier[found], later[found] = a, a + 1 + at
                found += np.int64(flags[at])
    return found


def ranked(boxes: np.ndarray, lab: np.ndarray, full_size: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return each box once, in an order in which each next one adds most: int32 N x 4 x, y, w, h of the image.

    A box is worth as many votes as boxes agree with it, times how much it stands out by its colours (`prominence`), a quarter of
    that if it is longer than `LONGEST` to one, and of what is left only a share if one before it overlaps it (`SHARES`). The next
    box is always the one worth most; larger first among equals. So the first boxes lie in different places, and what refines
    them comes later, between the less certain ones. Worth is counted in whole numbers: the order is the same on every machine.

    What the paper's filter keeps of the boxes by votes alone is always worth all its votes, so that the filter keeps exactly
    these here too: any other box of its size and aspect comes after the one that the filter drops it for.

    Args:
        boxes: int32, left, top, right, bottom, inside `lab`.
        lab: uint8 height x width x 3, the colours that the boxes were found in, as OpenCV's 8-bit Lab.
        full_size: gives boxes as x, y, w, h of the image, which the filter sees; different ones must stay different.

    """
    unique = unique_boxes(boxes)
    full = np.ascontiguousarray(full_size(unique), np.int32)
    return full[_order(unique, prominence(unique, lab), full)]


@entry
def _order(boxes: np.ndarray, stands_out: np.ndarray, full: np.ndarray) -> np.ndarray:
    """Return the order of boxes: int64 N.

    Args:
        boxes: int32 N x 4 left, top, right, bottom, in rising area.
        stands_out: int64 N, their prominence.
        full: int32 N x 4 x, y, w, h of the same as the filter sees them.

    """
    count = len(boxes)
    pairs = agreements(boxes, AGREE)
    votes = np.ones(count, np.int64)
    for at in range(pairs.shape[1]):
        votes[pairs[0, at]] += 1
        votes[pairs[1, at]] += 1
    kept = kept_by_filter(full, _falling(votes))
    worth = np.empty(count, np.int64)
    for at in range(count):
        wide, high = np.int64(boxes[at, 2] - boxes[at, 0]), np.int64(boxes[at, 3] - boxes[at, 1])
        long = max(wide, high) > LONGEST * min(wide, high)
        # Limits that no photograph comes near: 16,384 boxes that agree.
        if kept[at]:
            worth[at] = min(4 * votes[at] * FULL, _MOST)
        else:
            worth[at] = min(votes[at] * stands_out[at] * (1 if long else 4), _MOST - 1)
    return each_adds_most(boxes, pairs, worth << _HALVINGS, _falling(worth), kept)


@part
def _falling(values: np.ndarray) -> np.ndarray:
    """Return the order of falling values, all from 0 to _MOST, the later first among equals; in linear time."""
    keys = np.empty(len(values), np.int64)
    for at in range(len(values)):
        keys[at] = values[at] << 32 | at
    keys = sorted_keys(keys)
    order = np.empty(len(values), np.int64)
    for at in range(len(values)):
        order[len(values) - 1 - at] = keys[at] & 0xFFFFFFFF
    return order


@part
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


@part
def each_adds_most(
    boxes: np.ndarray, pairs: np.ndarray, worth: np.ndarray, order: np.ndarray, kept: np.ndarray
) -> np.ndarray:
    """Return the order in which the next box is always the one whose worth, after what those before it overlap, is greatest.

    Boxes wait in queues by how much of them was covered when they entered, and by how much when they were last looked at: along
    each, worth falls, so that the best is at one of their heads.

    Args:
        boxes: int32 N x 4 left, top, right, bottom.
        pairs: int32 2 x P, every two that overlap by at least `AGREE`, as `agreements` gives them.
        worth: int64 N, with enough zero bits that no share of `SHARES` loses any.
        order: int64 N, the boxes by falling worth.
        kept: bool N, boxes that lose nothing if they are overlapped.

    Returns:
        int64 N.

    """
    count = len(boxes)
    begin, others, levels_of = _covers(boxes, pairs, kept)
    covered = np.zeros(count, np.uint8)
    place = np.empty(count, np.int64)
    for at in range(count):
        place[order[at]] = at
    levels = len(SHARES) + 1
    queue = np.empty((levels, levels, count), np.int64)
    head, tail = np.zeros((levels, levels), np.int64), np.zeros((levels, levels), np.int64)
    copy_into(queue[0, 0], order)
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
        for at in range(begin[box], begin[box + 1]):
            covered[others[at]] = max(covered[others[at]], levels_of[at])
    return out


@part
def _covers(boxes: np.ndarray, pairs: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return which boxes each box covers, and how much of them; boxes that are kept lose nothing, and are left out.

    Returns:
        int64 N + 1, where the list of each box begins; int32 the boxes that it covers; uint8 how many of `SHARES` it covers
        them by.

    """
    count = len(boxes)
    begin = np.zeros(count + 1, np.int64)
    for at in range(pairs.shape[1]):
        a, b = pairs[0, at], pairs[1, at]
        begin[a + 1] += not kept[b]
        begin[b + 1] += not kept[a]
    for box in range(count):
        begin[box + 1] += begin[box]
    place = begin.copy()
    others, levels = np.empty(begin[count], np.int32), np.empty(begin[count], np.uint8)
    for at in range(pairs.shape[1]):
        a, b = pairs[0, at], pairs[1, at]
        level = _level(boxes[a], boxes[b])
        for one, other in ((a, b), (b, a)):
            if not kept[other]:
                others[place[one]], levels[place[one]] = other, level
                place[one] += 1
    return begin, others, levels


@part
def _level(a: np.ndarray, b: np.ndarray) -> int:
    """Return how many of the IoUs of `SHARES` two boxes that touch reach."""
    wide = np.int64(min(a[2], b[2]) - max(a[0], b[0]))
    high = np.int64(min(a[3], b[3]) - max(a[1], b[1]))
    both = np.int64(a[2] - a[0]) * np.int64(a[3] - a[1]) + np.int64(b[2] - b[0]) * np.int64(b[3] - b[1])
    level = 0
    for at in range(len(SHARES)):
        level += wide * high * (100 + SHARES[at][0]) >= both * SHARES[at][0]
    return level


@part
def _shift(level: int) -> int:
    """Return how often the worth of a box is halved that is covered to this level."""
    return 0 if level == 0 else SHARES[level - 1][1]
