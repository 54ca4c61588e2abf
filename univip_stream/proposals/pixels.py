"""From pixels to a graph: a smaller copy, smoothing, and edges between neighbours.

A pixel is a node; its right and lower neighbours are joined to it by edges that weigh how far their colours lie apart
(Felzenszwalb and Huttenlocher, IJCV 2004, section 5.1, with four neighbours in place of eight).

Inner loops run over neighbours in memory and over slices, which the compiler turns into vector instructions.
"""

import numpy as np

from univip_stream.proposals.jit import copy_into, entry, part

UNIT = 1 << 13
"""An edge's weight of one grey level. The greatest weight, sqrt(3) * 255 levels, takes 22 bits."""

_NO_SQUARE = 4


@entry
def shrink(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a smaller copy in which every pixel is the mean of the area that it covers.

    Areas are exact: a source pixel's share is a whole number of (1 / height) x (1 / width) parts, and the sum is divided once.

    Args:
        image: uint8, rows x columns x 3.
        height: height of the copy, at most `rows`.
        width: width of the copy, at most `columns`.

    Returns:
        uint8, height x width x 3.

    """
    rows, columns, _ = image.shape
    out = np.empty((height, width, 3), np.uint8)
    sums = np.empty(3 * columns, np.int32)  # at most 255 * rows
    factor = 1.0 / (np.float64(rows) * np.float64(columns))
    first, last = np.empty(width, np.int64), np.empty(width, np.int64)
    first_share, last_share = np.empty(width, np.int64), np.empty(width, np.int64)
    for x in range(width):
        # In units of 1 / width of a source pixel, the copy's pixel x covers [x * columns, (x + 1) * columns).
        first[x] = x * columns // width
        last[x] = ((x + 1) * columns - 1) // width
        first_share[x] = min((first[x] + 1) * width, (x + 1) * columns) - x * columns
        last_share[x] = (x + 1) * columns - last[x] * width
    for y in range(height):
        sums[:] = 0
        begin, end = y * rows, (y + 1) * rows
        for row in range(begin // height, (end - 1) // height + 1):
            share = np.int32(min((row + 1) * height, end) - max(row * height, begin))
            line = image[row].ravel()
            for at in range(len(sums)):
                sums[at] += share * np.int32(line[at])
        for x in range(width):
            left, right = first[x], last[x]
            for c in range(3):
                total = np.int64(sums[3 * left + c]) * first_share[x]
                if right > left:
                    for at in range(left + 1, right):
                        total += sums[3 * at + c] * width
                    total += sums[3 * right + c] * last_share[x]
                out[y, x, c] = np.uint8(np.float64(total) * factor + 0.5)
    return out


@part
def smooth(image: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """Smooth with a Gaussian kernel; the image is mirrored at the border.

    Sums are taken in one written order and never contracted, so that IEEE 754 gives the same bits on every machine.

    Args:
        image: uint8, height x width x 3.
        taps: float32, half a kernel from its centre on, summing (with its mirror) to 1.

    Returns:
        float32, 3 x height x width.

    """
    height, width, _ = image.shape
    radius = len(taps) - 1
    line = np.empty(width + 2 * radius, np.float32)
    rows = np.empty((height + 2 * radius, width), np.float32)
    out = np.empty((3, height, width), np.float32)
    for c in range(3):
        for y in range(height):
            for x in range(width):
                line[x + radius] = image[y, x, c]
            for x in range(1, radius + 1):
                line[radius - x] = line[radius + _mirrored(-x, width)]
                line[radius + width - 1 + x] = line[radius + _mirrored(width - 1 + x, width)]
            sums, centre = rows[y + radius], line[radius : radius + width]
            for x in range(width):
                sums[x] = taps[0] * centre[x]
            for t in range(1, radius + 1):
                _add_both(sums, taps[t], line[radius - t : radius - t + width], line[radius + t : radius + t + width])
        for y in range(1, radius + 1):
            copy_into(rows[radius - y], rows[radius + _mirrored(-y, height)])
            copy_into(rows[radius + height - 1 + y], rows[radius + _mirrored(height - 1 + y, height)])
        for y in range(height):
            sums, centre = out[c, y], rows[y + radius]
            for x in range(width):
                sums[x] = taps[0] * centre[x]
            for t in range(1, radius + 1):
                _add_both(sums, taps[t], rows[y + radius - t], rows[y + radius + t])
    return out


@part
def _add_both(sums: np.ndarray, tap: float, before: np.ndarray, after: np.ndarray) -> None:
    for x in range(len(sums)):
        sums[x] += tap * (before[x] + after[x])


@part
def _mirrored(place: int, length: int) -> int:
    """Return where a position outside 0 to length - 1 is mirrored to, without repeating the border pixel; always inside."""
    if place < 0:
        place = -place
    if place >= length:
        place = 2 * length - 2 - place
    return min(max(place, 0), length - 1)


@part
def weigh_edges(colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the Euclidean colour distance of each pixel to its right and to its lower neighbour.

    Args:
        colours: float32, 3 x height x width, as `smooth` gives them.

    Returns:
        Two int32 arrays, height x (width - 1) and (height - 1) x width, in 1 / UNIT of a grey level.

    """
    _, height, width = colours.shape
    right = np.empty((height, width - 1), np.int32)
    down = np.empty((height - 1, width), np.int32)
    for y in range(height):
        _distances(colours[0, y, :-1], colours[1, y, :-1], colours[2, y, :-1],
                   colours[0, y, 1:], colours[1, y, 1:], colours[2, y, 1:], right[y])  # fmt: skip
        if y < height - 1:
            _distances(colours[0, y], colours[1, y], colours[2, y],
                       colours[0, y + 1], colours[1, y + 1], colours[2, y + 1], down[y])  # fmt: skip
    return right, down


@part
def _distances(
    a0: np.ndarray, a1: np.ndarray, a2: np.ndarray, b0: np.ndarray, b1: np.ndarray, b2: np.ndarray, out: np.ndarray
) -> None:
    for x in range(len(out)):
        d0, d1, d2 = a0[x] - b0[x], a1[x] - b1[x], a2[x] - b2[x]
        out[x] = np.int32(np.sqrt(d0 * d0 + d1 * d1 + d2 * d2) * np.float32(UNIT))


@part
def edge_keys(right: np.ndarray, down: np.ndarray, thin: bool) -> np.ndarray:
    """Return the edges as numbers that sort by weight.

    Edges come row by row, first those to the right, then those down; of equals, the earlier counts as lighter, here and in
    `graph.sorted_keys`. Thinned, the heaviest of the four edges around every square of pixels is left out. The heaviest edge
    of a cycle is in no minimum spanning tree, so this leaves the tree as it is with about half the edges. (The segmentation
    is not a function of the tree alone: it can differ where an edge of the tree was refused.)

    Args:
        right: int32, height x (width - 1) weights.
        down: int32, (height - 1) x width.
        thin: whether to leave out the heaviest edges.

    Returns:
        int64 E: weight * 2 ** 32 + edge number, which is 2 * pixel, and 1 more for an edge down.

    """
    height, width = right.shape[0], down.shape[1]
    keys = np.empty(right.size + down.size, np.int64)
    count = np.uint64(0)
    # Which edge each square loses: 0 top, 1 left, 2 right, 3 bottom; square x at place x + 1, between two of none.
    above, lost = np.full(width + 1, _NO_SQUARE, np.uint8), np.full(width + 1, _NO_SQUARE, np.uint8)
    for y in range(height):
        if thin and y < height - 1:
            _heaviest_of_squares(right[y], down[y, :-1], down[y, 1:], right[y + 1], lost[1:width])
        else:
            lost[:] = _NO_SQUARE
        number = np.int64(2 * y * width)
        row, here, before, over = right[y], lost[1:], lost[:width], above[1:]
        # Written always, counted if kept: no branch to mispredict.
        for x in range(width - 1):
            keys[count] = (np.int64(row[x]) << 32) | (number + 2 * x)
            count += np.uint64((here[x] != 0) & (over[x] != 3))
        if y < height - 1:
            row = down[y]
            for x in range(width):
                keys[count] = (np.int64(row[x]) << 32) | (number + 2 * x + 1)
                count += np.uint64((here[x] != 1) & (before[x] != 2))
        above, lost = lost, above
    return keys[:count]


@part
def _heaviest_of_squares(top: np.ndarray, left: np.ndarray, right: np.ndarray, bottom: np.ndarray, lost: np.ndarray) -> None:
    for x in range(len(lost)):
        # Two bits of place under the weight make all four differ, and say in the end which it was; of equals, the last.
        heaviest = max(max(4 * top[x], 4 * left[x] + 1), max(4 * right[x] + 2, 4 * bottom[x] + 3))
        lost[x] = np.uint8(heaviest & 3)
