"""Felzenszwalb and Huttenlocher's graph-based segmentation (IJCV 2004), in integers.

A pixel is a node, its right and lower neighbours are joined to it by edges weighing how far their colours lie apart. Edges
are taken lightest first; two components merge when the edge weighs no more than both components' own limits.

Shape letters: N pixels (row after row), E edges, A atoms.
"""

import numpy as np

from univip_stream.proposals.jit import kernel

FRACTION_BITS = 6
"""Smoothed colours are integers with so many bits after the point."""
WEIGHT_BITS = 22
"""An edge's weight fits in: sqrt(3) * 255 with eight bits of fraction takes 17, the sort's two passes of 11 have room."""
_WEIGHT_SCALE = 4.0
"""Fixed point of weights over that of colours: a weight has FRACTION_BITS + 2 = 8 bits after the point."""
UNIT = 1 << (FRACTION_BITS + 2)
"""A weight of one grey level."""


@kernel
def smooth(image: np.ndarray, taps: np.ndarray, out: np.ndarray) -> None:
    """Gaussian smoothing in fixed point, mirrored at the border.

    Args:
        image: uint8, height x width x 3.
        taps: int64, half a kernel from its centre on, summing (with its mirror) to 2 ** 14.
        out: int32, height x width x 3; colours with FRACTION_BITS.

    """
    height, width, _ = image.shape
    radius = len(taps) - 1
    rows = np.empty((height, width, 3), np.int32)
    half = 1 << 7
    for y in range(height):
        for x in range(width):
            for c in range(3):
                total = taps[0] * image[y, x, c]
                for t in range(1, radius + 1):
                    left, right = x - t, x + t
                    if left < 0:
                        left = min(-left, width - 1)
                    if right >= width:
                        right = max(2 * width - 2 - right, 0)
                    total += taps[t] * (np.int64(image[y, left, c]) + image[y, right, c])
                rows[y, x, c] = (total + half) >> 8  # 6 bits of fraction left
    full = 1 << 13
    for y in range(height):
        for x in range(width):
            for c in range(3):
                total = taps[0] * rows[y, x, c]
                for t in range(1, radius + 1):
                    up, down = y - t, y + t
                    if up < 0:
                        up = min(-up, height - 1)
                    if down >= height:
                        down = max(2 * height - 2 - down, 0)
                    total += taps[t] * (np.int64(rows[up, x, c]) + rows[down, x, c])
                out[y, x, c] = (total + full) >> 14


@kernel
def weigh_edges(colours: np.ndarray, weights: np.ndarray) -> None:
    """Euclidean colour distance of each pixel to its right (column 0) and lower (column 1) neighbour.

    Args:
        colours: int32, height x width x 3, as `smooth` gives them.
        weights: int32, height x width x 2, written; -1 where there is no neighbour.

    """
    height, width, _ = colours.shape
    for y in range(height):
        for x in range(width):
            for axis in range(2):
                v, u = y + axis, x + 1 - axis
                if v >= height or u >= width:
                    weights[y, x, axis] = -1
                    continue
                squared = np.int64(0)
                for c in range(3):
                    difference = np.int64(colours[y, x, c]) - colours[v, u, c]
                    squared += difference * difference
                # The root of an exact integer, rounded once by IEEE 754: the same on every machine.
                weights[y, x, axis] = np.int32(np.sqrt(np.float64(squared)) * 4.0)


@kernel
def drop_heaviest_of_squares(weights: np.ndarray) -> None:
    """Mark (-1) the heaviest of the four edges around every square of pixels, ties by edge number.

    The heaviest edge of a cycle is in no minimum spanning tree, so this leaves the tree as it is with about half the edges.
    """
    height, width, _ = weights.shape
    dropped = np.zeros((height, width, 2), np.bool_)
    for y in range(height - 1):
        for x in range(width - 1):
            # In rising edge number, so that the last of equals is the one with the greatest number.
            best = weights[y, x, 0]
            which = 0
            if weights[y, x, 1] >= best:
                best, which = weights[y, x, 1], 1
            if weights[y, x + 1, 1] >= best:
                best, which = weights[y, x + 1, 1], 2
            if weights[y + 1, x, 0] >= best:
                which = 3
            if which == 0:
                dropped[y, x, 0] = True
            elif which == 1:
                dropped[y, x, 1] = True
            elif which == 2:
                dropped[y, x + 1, 1] = True
            else:
                dropped[y + 1, x, 0] = True
    for y in range(height):
        for x in range(width):
            for axis in range(2):
                if dropped[y, x, axis]:
                    weights[y, x, axis] = -1


@kernel
def sorted_edges(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The edges that are there, lightest first, ties by number: (int32 E numbers, int32 E weights).

    Edge 2 * pixel + axis. A least-significant-digit radix sort in two passes of 11 bits, which keeps the order of equals.
    """
    flat = weights.ravel()
    count = 0
    low, high = np.zeros(2049, np.int64), np.zeros(2049, np.int64)
    for edge in range(len(flat)):
        weight = flat[edge]
        if weight >= 0:
            count += 1
            low[(weight & 2047) + 1] += 1
            high[(weight >> 11) + 1] += 1
    for digit in range(2048):
        low[digit + 1] += low[digit]
        high[digit + 1] += high[digit]
    half = np.empty(count, np.int32)
    for edge in range(len(flat)):
        weight = flat[edge]
        if weight >= 0:
            half[low[weight & 2047]] = edge
            low[weight & 2047] += 1
    order, sorted_weights = np.empty(count, np.int32), np.empty(count, np.int32)
    for at in range(count):
        weight = flat[half[at]]
        place = high[weight >> 11]
        order[place] = half[at]
        sorted_weights[place] = weight
        high[weight >> 11] += 1
    return order, sorted_weights


@kernel
def _root(parent: np.ndarray, node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]  # path halving: the next walk is half as long
        node = parent[node]
    return node


@kernel
def segment_pixels(
    order: np.ndarray, weights: np.ndarray, height: int, width: int, k: int, min_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One pass over the sorted edges, then small components are given to their nearest neighbour.

    Args:
        order: edge numbers, lightest first.
        weights: of those edges.
        height: of the image.
        width: of the image.
        k: scale of observation, in units of weight (grey levels times UNIT) times pixels.
        min_size: pixels a component has at least.

    Returns:
        int32 height x width labels 0 to A - 1 in order of first pixel; int32 A sizes; int32 A internal differences (the
        heaviest edge inside); and the pairs of edges that joined nothing: int32 R x 2 labels, int32 R weights, lightest first.

    """
    count = height * width
    parent = np.arange(count).astype(np.int32)
    size = np.ones(count, np.int32)
    inner = np.zeros(count, np.int32)
    limit = np.full(count, k, np.int64)
    left = np.empty(len(order), np.int32)
    rejected = 0
    for at in range(len(order)):
        edge, weight = order[at], weights[at]
        pixel = edge >> 1
        a = _root(parent, pixel)
        b = _root(parent, pixel + (width if edge & 1 else 1))
        if a == b:
            continue
        if weight <= limit[a] and weight <= limit[b]:
            if size[a] < size[b]:
                a, b = b, a
            parent[b] = a
            size[a] += size[b]
            inner[a] = weight
            limit[a] = weight + k // size[a]
        else:
            left[rejected] = at
            rejected += 1
    # Lightest edges first: a small component goes to the neighbour it differs least from.
    for number in range(rejected):
        at = left[number]
        pixel = order[at] >> 1
        a = _root(parent, pixel)
        b = _root(parent, pixel + (width if order[at] & 1 else 1))
        if a != b and (size[a] < min_size or size[b] < min_size):
            if size[a] < size[b]:
                a, b = b, a
            parent[b] = a
            size[a] += size[b]
            inner[a] = max(inner[a], inner[b], weights[at])
    labels = np.empty(count, np.int32)
    name = np.full(count, -1, np.int32)
    atoms = 0
    for pixel in range(count):
        root = _root(parent, pixel)
        if name[root] < 0:
            name[root] = atoms
            atoms += 1
        labels[pixel] = name[root]
    sizes, inners = np.empty(atoms, np.int32), np.empty(atoms, np.int32)
    for pixel in range(count):
        if name[pixel] >= 0:
            sizes[name[pixel]] = size[pixel]
            inners[name[pixel]] = inner[pixel]
    pairs, pair_weights = np.empty((rejected, 2), np.int32), np.empty(rejected, np.int32)
    kept = 0
    for number in range(rejected):
        at = left[number]
        pixel = order[at] >> 1
        a, b = labels[pixel], labels[pixel + (width if order[at] & 1 else 1)]
        if a != b:
            pairs[kept, 0], pairs[kept, 1] = min(a, b), max(a, b)
            pair_weights[kept] = weights[at]
            kept += 1
    return labels.reshape(height, width), sizes, inners, pairs[:kept], pair_weights[:kept]


@kernel
def first_of_each_pair(pairs: np.ndarray, weights: np.ndarray, atoms: int) -> tuple[np.ndarray, np.ndarray]:
    """The lightest edge between each two neighbouring atoms, order kept: the region graph."""
    seen = np.zeros((atoms, atoms), np.bool_)
    kept_pairs, kept_weights = np.empty_like(pairs), np.empty_like(weights)
    kept = 0
    for at in range(len(pairs)):
        a, b = pairs[at, 0], pairs[at, 1]
        if not seen[a, b]:
            seen[a, b] = True
            kept_pairs[kept, 0], kept_pairs[kept, 1] = a, b
            kept_weights[kept] = weights[at]
            kept += 1
    return kept_pairs[:kept].copy(), kept_weights[:kept].copy()


@kernel
def segment_atoms(
    pairs: np.ndarray, weights: np.ndarray, sizes: np.ndarray, inners: np.ndarray, k: int, min_size: int
) -> tuple[np.ndarray, int]:
    """Go on with the segmentation from atoms, for a larger k: (int32 A region of each atom, number of regions)."""
    atoms = len(sizes)
    parent = np.arange(atoms).astype(np.int32)
    size = sizes.copy()
    limit = np.empty(atoms, np.int64)
    for atom in range(atoms):
        limit[atom] = inners[atom] + k // sizes[atom]
    for at in range(len(pairs)):
        a, b = _root(parent, pairs[at, 0]), _root(parent, pairs[at, 1])
        if a != b and weights[at] <= limit[a] and weights[at] <= limit[b]:
            parent[b] = a
            size[a] += size[b]
            limit[a] = weights[at] + k // size[a]
    for at in range(len(pairs)):
        a, b = _root(parent, pairs[at, 0]), _root(parent, pairs[at, 1])
        if a != b and (size[a] < min_size or size[b] < min_size):
            parent[b] = a
            size[a] += size[b]
    region = np.full(atoms, -1, np.int32)
    name = np.full(atoms, -1, np.int32)
    regions = 0
    for atom in range(atoms):
        root = _root(parent, atom)
        if name[root] < 0:
            name[root] = regions
            regions += 1
        region[atom] = name[root]
    return region, regions
