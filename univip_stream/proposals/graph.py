"""Felzenszwalb and Huttenlocher's graph-based segmentation (IJCV 2004), in integers.

Edges are taken lightest first; two components merge when the edge weighs no more than both components' own limits: the
heaviest edge inside plus k / size. What all k have in common is found once (`contract`), and each k goes on from there.

Shape letters: N nodes, E edges. Node numbers are unsigned: the compiler then needs no check for negative indices.
"""

import numpy as np

from univip_stream.proposals.jit import part

DIGIT = 11
"""Bits that one pass of the sort uses; two passes cover the 22 bits of a weight."""

_CLOSED = 1 << 30


@part
def sorted_keys(keys: np.ndarray) -> np.ndarray:
    """Sort keys (weight * 2 ** 32 + edge) by rising weight; equal weights keep their order.

    A least-significant-digit radix sort in two passes over the weight's 22 bits.
    """
    bins = 1 << DIGIT
    low, high = np.zeros(bins + 1, np.int64), np.zeros(bins + 1, np.int64)
    for at in range(len(keys)):
        low[((keys[at] >> 32) & (bins - 1)) + 1] += 1
        high[(keys[at] >> (32 + DIGIT)) + 1] += 1
    for digit in range(bins):
        low[digit + 1] += low[digit]
        high[digit + 1] += high[digit]
    half, out = np.empty_like(keys), np.empty_like(keys)
    for at in range(len(keys)):
        digit = (keys[at] >> 32) & (bins - 1)
        half[low[digit]] = keys[at]
        low[digit] += 1
    for at in range(len(keys)):
        digit = half[at] >> (32 + DIGIT)
        out[high[digit]] = half[at]
        high[digit] += 1
    return out


@part
def _root(parent: np.ndarray, node: int) -> int:
    above = parent[node]
    while above != node:
        parent[node] = parent[above]  # path halving: the next walk is half as long
        node = parent[node]
        above = parent[node]
    return node


@part
def _may_join(weight: int, k: int, inner_size: np.ndarray) -> bool:
    """Whether weight <= inner + k / size (the paper's MInt, equation 4), computed without the division."""
    return np.int64(weight - inner_size[0]) * inner_size[1] <= k


@part
def contract(
    keys: np.ndarray, height: int, width: int, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Compute the common part of all segmentations with at least this k, as the nodes of a smaller graph.

    Larger k accept every edge that a smaller k accepts, between the same components. So edges are taken as in `segment`, but
    where one is refused, its two components are closed: from here on they may differ from k to k, and so may everything that
    they would meet, which is closed in turn. An open component is the same for all k; what a closed one met is left. Going
    on from here gives, for every k at least this one, exactly the segments that starting from pixels would give.

    Args:
        keys: of edges between pixels, as `sorted_keys` gives them.
        height: of the image.
        width: of the image.
        k: the smallest scale of observation, in units of weight times pixels; below 2 ** 30.

    Returns:
        uint32 height x width, the node of each pixel, numbered by first pixel; int32 N sizes in pixels; int32 N internal
        differences (the heaviest edge inside); the edges that are left: uint32 E and uint32 E their nodes, int32 E weights.

    """
    count = height * width
    parent = np.arange(count).astype(np.uint32)
    inner_size = np.empty((count, 2), np.int32)  # side by side: one look at memory brings both
    inner_size[:, 0] = 0
    inner_size[:, 1] = 1
    left = np.empty(len(keys), np.int64)
    rejected = 0
    steps = np.array([1, width], np.uint32)
    for at in range(len(keys)):
        key = keys[at]
        weight, edge = np.int32(key >> 32), np.uint32(key)
        pixel = np.uint32(edge >> np.uint32(1))
        a = _root(parent, pixel)
        b = _root(parent, np.uint32(pixel + steps[edge & np.uint32(1)]))
        if a == b:
            continue
        # One branch and not two: which way it goes is hard to foresee.
        if _may_join(weight, k, inner_size[a]) & _may_join(weight, k, inner_size[b]):
            if inner_size[a, 1] < inner_size[b, 1]:
                a, b = b, a
            parent[b] = a
            inner_size[a, 1] += inner_size[b, 1]
            inner_size[a, 0] = weight
        else:
            # An internal difference so far below zero refuses every edge.
            for end in (a, b):
                if inner_size[end, 0] >= 0:
                    inner_size[end, 0] -= _CLOSED
            left[rejected] = key
            rejected += 1
    node = np.empty(count, np.uint32)
    name = np.empty(count, np.uint32)
    sizes, inners = np.empty(count, np.int32), np.empty(count, np.int32)
    nodes = 0
    unnamed = np.uint32(0xFFFFFFFF)
    name[:] = unnamed
    for pixel in range(count):
        root = _root(parent, np.uint32(pixel))
        if name[root] == unnamed:
            name[root] = nodes
            inners[nodes], sizes[nodes] = inner_size[root, 0] % _CLOSED, inner_size[root, 1]
            nodes += 1
        node[pixel] = name[root]
    a_nodes, b_nodes, weights = np.empty(rejected, np.uint32), np.empty(rejected, np.uint32), np.empty(rejected, np.int32)
    kept = 0
    for at in range(rejected):
        edge = np.uint32(left[at])
        pixel = np.uint32(edge >> np.uint32(1))
        a_nodes[kept] = node[pixel]
        b_nodes[kept] = node[np.uint32(pixel + steps[edge & np.uint32(1)])]
        weights[kept] = np.int32(left[at] >> 32)
        kept += a_nodes[kept] != b_nodes[kept]
    return (
        node.reshape(height, width),
        sizes[:nodes].copy(),
        inners[:nodes].copy(),
        a_nodes[:kept],
        b_nodes[:kept],
        weights[:kept],
    )


@part
def segment(
    a_nodes: np.ndarray,
    b_nodes: np.ndarray,
    weights: np.ndarray,
    sizes: np.ndarray,
    inners: np.ndarray,
    k: int,
    min_size: int,
) -> tuple[np.ndarray, int, np.ndarray]:
    """Segment a graph: one pass over the edges, then small components are merged into their nearest neighbour.

    Args:
        a_nodes: uint32 E, of each edge, lightest first.
        b_nodes: uint32 E, the other end.
        weights: int32 E.
        sizes: int32 N, pixels of each node.
        inners: int32 N, heaviest edge inside each node.
        k: scale of observation, in units of weight times pixels.
        min_size: smallest component, in pixels.

    Returns:
        uint32 N, region of each node, numbered by first node; the number of regions; uint32 P x 2, every two neighbouring
        regions once, the smaller number first.

    """
    nodes = len(sizes)
    # Each node knows its component's name, and the nodes of a component form a ring. Finding is then one look where it would be
    # a walk, whose length no processor foresees; joining renames the nodes of the smaller one.
    name = np.arange(nodes).astype(np.uint32)
    ring = name.copy()
    inner_size = np.empty((nodes, 2), np.int32)
    for node in range(nodes):
        inner_size[node, 0], inner_size[node, 1] = inners[node], sizes[node]
    left = np.empty(len(weights), np.int64)
    rejected = 0
    for at in range(len(weights)):
        a, b = name[a_nodes[at]], name[b_nodes[at]]
        if a == b:
            continue
        if _may_join(weights[at], k, inner_size[a]) & _may_join(weights[at], k, inner_size[b]):
            if inner_size[a, 1] < inner_size[b, 1]:
                a, b = b, a
            _rename(b, a, name, ring)
            inner_size[a, 1] += inner_size[b, 1]
            inner_size[a, 0] = weights[at]
        else:
            left[rejected] = at
            rejected += 1
    # Lightest edges first: a small component goes to the neighbour it differs least from.
    for number in range(rejected):
        at = left[number]
        a, b = name[a_nodes[at]], name[b_nodes[at]]
        if a != b and min(inner_size[a, 1], inner_size[b, 1]) < min_size:
            if inner_size[a, 1] < inner_size[b, 1]:
                a, b = b, a
            _rename(b, a, name, ring)
            inner_size[a, 1] += inner_size[b, 1]
    region = np.empty(nodes, np.uint32)
    unnamed = np.uint32(0xFFFFFFFF)
    number_of = np.full(nodes, unnamed, np.uint32)
    regions = np.int64(0)
    for node in range(nodes):
        if number_of[name[node]] == unnamed:
            number_of[name[node]] = regions
            regions += 1
        region[node] = number_of[name[node]]
    pairs = np.empty((rejected, 2), np.uint32)
    for number in range(rejected):
        pairs[number, 0], pairs[number, 1] = region[a_nodes[left[number]]], region[b_nodes[left[number]]]
    return region, regions, each_pair_once(pairs, regions)


@part
def _rename(old: int, new: int, name: np.ndarray, ring: np.ndarray) -> None:
    """Give the nodes of component `old` the name of `new`, and make one ring of both; a name is the number of one of its nodes."""
    last = old
    while ring[last] != old:
        name[last] = new
        last = ring[last]
    name[last] = new
    ring[last] = ring[new]
    ring[new] = old


@part
def each_pair_once(pairs: np.ndarray, regions: int) -> np.ndarray:
    """Return each pair of different regions once, the smaller number first, sorted by it; in linear time and memory."""
    begin = np.zeros(regions + 1, np.int64)
    for at in range(len(pairs)):
        begin[min(pairs[at, 0], pairs[at, 1]) + 1] += pairs[at, 0] != pairs[at, 1]
    for region in range(regions):
        begin[region + 1] += begin[region]
    larger = np.empty(begin[regions], np.uint32)
    place = begin.copy()
    for at in range(len(pairs)):
        if pairs[at, 0] != pairs[at, 1]:
            smaller = min(pairs[at, 0], pairs[at, 1])
            larger[place[smaller]] = max(pairs[at, 0], pairs[at, 1])
            place[smaller] += 1
    once = np.empty((len(larger), 2), np.uint32)
    seen_by = np.full(regions, -1, np.int64)
    count = 0
    for region in range(regions):
        for at in range(begin[region], begin[region + 1]):
            if seen_by[larger[at]] != region:
                seen_by[larger[at]] = region
                once[count, 0], once[count, 1] = region, larger[at]
                count += 1
    return once[:count].copy()


@part
def touching(node: np.ndarray, region: np.ndarray, regions: int) -> np.ndarray:
    """Return regions that touch by OpenCV's rule: also across one of the two diagonals, but not along the first row and column.

    Args:
        node: uint32 height x width.
        region: uint32 N.
        regions: how many.

    Returns:
        As the pairs of `segment`.

    """
    height, width = node.shape
    pairs = np.empty((3 * height * width, 2), np.uint32)
    count = 0
    for y in range(1, height):
        for x in range(1, width):
            here = region[node[y, x]]
            for other in (node[y, x - 1], node[y - 1, x], node[y - 1, x - 1]):
                pairs[count, 0], pairs[count, 1] = here, region[other]
                count += here != region[other]
    return each_pair_once(pairs[:count], regions)


@part
def common_cells(cells: np.ndarray, count: int, region: np.ndarray, regions: int) -> tuple[np.ndarray, int]:
    """Divide the cells by another segmentation; return the new cells, uint32 N, numbered from 0, and their number.

    Nodes share a new cell if they share both the old cell and the region. Linear time and memory.
    """
    begin = np.zeros(count + 1, np.int64)
    for node in range(len(cells)):
        begin[cells[node] + 1] += 1
    for cell in range(count):
        begin[cell + 1] += begin[cell]
    order = np.empty(len(cells), np.uint32)
    for node in range(len(cells)):
        order[begin[cells[node]]] = node
        begin[cells[node]] += 1
    out = np.empty(len(cells), np.uint32)
    name, named_by = np.empty(regions, np.uint32), np.full(regions, -1, np.int64)
    found = 0
    for at in range(len(order)):
        node = order[at]
        if named_by[region[node]] != cells[node]:
            named_by[region[node]] = cells[node]
            name[region[node]] = found
            found += 1
        out[node] = name[region[node]]
    return out, found
