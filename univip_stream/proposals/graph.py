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
UNIT = 1 << (FRACTION_BITS + 2)
"""A weight of one grey level."""


@kernel
def smooth(image: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """Gaussian smoothing in fixed point, mirrored at the border.

    Args:
        image: uint8, height x width x 3.
        taps: int32, half a kernel from its centre on, summing (with its mirror) to 2 ** 14.

    Returns:
        int32, height x width x 3; colours with FRACTION_BITS.

    """
    height, width, _ = image.shape
    radius = len(taps) - 1
    length = 3 * width
    padded = np.empty(length + 6 * radius, np.int32)
    rows = np.empty((height + 2 * radius, length), np.int32)
    sums = np.empty(length, np.int32)
    for y in range(height):
        for x in range(-radius, width + radius):
            source = _mirrored(x, width)
            for c in range(3):
                padded[3 * (x + radius) + c] = image[y, source, c]
        # Taps outside, pixels inside: the inner loops run over neighbours in memory, which the compiler vectorises.
        for at in range(length):
            sums[at] = taps[0] * padded[at + 3 * radius]
        for t in range(1, radius + 1):
            for at in range(length):
                sums[at] += taps[t] * (padded[at + 3 * (radius - t)] + padded[at + 3 * (radius + t)])
        for at in range(length):
            rows[y + radius, at] = (sums[at] + (1 << 7)) >> 8  # of 14 bits of fraction, FRACTION_BITS are left
    for y in range(1, radius + 1):
        rows[radius - y] = rows[radius + _mirrored(-y, height)]
        rows[radius + height - 1 + y] = rows[radius + _mirrored(height - 1 + y, height)]
    out = np.empty((height, length), np.int32)
    for y in range(height):
        for at in range(length):
            sums[at] = taps[0] * rows[y + radius, at]
        for t in range(1, radius + 1):
            for at in range(length):
                sums[at] += taps[t] * (rows[y + radius - t, at] + rows[y + radius + t, at])
        for at in range(length):
            out[y, at] = (sums[at] + (1 << 13)) >> 14
    return out.reshape(height, width, 3)


@kernel
def _mirrored(place: int, length: int) -> int:
    """Where a place outside 0 to length - 1 is mirrored to, the border pixel not repeated; stays inside whatever the length."""
    if place < 0:
        place = -place
    if place >= length:
        place = 2 * length - 2 - place
    return min(max(place, 0), length - 1)


@kernel
def weigh_edges(colours: np.ndarray) -> np.ndarray:
    """Euclidean colour distance of each pixel to its right (axis 0) and lower (axis 1) neighbour.

    Args:
        colours: int32, height x width x 3, as `smooth` gives them.

    Returns:
        int32, height x width x 2; -1 where there is no neighbour.

    """
    height, width, _ = colours.shape
    flat = colours.reshape(height, 3 * width)
    weights = np.full((height, width, 2), -1, np.int32)
    for y in range(height):
        for x in range(width):
            for axis in range(2):
                if (x == width - 1 and axis == 0) or (y == height - 1 and axis == 1):
                    continue
                squared = np.int64(0)
                for c in range(3):
                    there = flat[y + axis, 3 * (x + 1 - axis) + c]
                    difference = np.int64(flat[y, 3 * x + c] - there)
                    squared += difference * difference
                # The root of an exact integer, rounded once by IEEE 754: the same on every machine.
                weights[y, x, axis] = np.int32(np.sqrt(np.float64(squared)) * 4.0)
    return weights


@kernel
def drop_heaviest_of_squares(weights: np.ndarray) -> np.ndarray:
    """Without (-1) the heaviest of the four edges around every square of pixels, ties by edge number.

    The heaviest edge of a cycle is in no minimum spanning tree, so this leaves the tree as it is with about half the edges.
    """
    height, width, _ = weights.shape
    left = weights.copy()
    for y in range(height - 1):
        for x in range(width - 1):
            # Top, left, right, bottom: rising edge numbers, so the last of equals has the greatest number.
            top, side = weights[y, x, 0], weights[y, x, 1]
            other, bottom = weights[y, x + 1, 1], weights[y + 1, x, 0]
            most = max(max(top, side), max(other, bottom))
            if bottom == most:
                left[y + 1, x, 0] = -1
            elif other == most:
                left[y, x + 1, 1] = -1
            elif side == most:
                left[y, x, 1] = -1
            else:
                left[y, x, 0] = -1
    return left


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
