"""Hierarchical grouping (Uijlings et al., IJCV 2013, algorithm 1): merge the two most alike neighbours until one is left.

Every region that ever was is a box. Similarities are integers of a fixed scale, so equal inputs give equal hierarchies on
every machine.

Shape letters: A atoms, n regions to begin with.
"""

import numpy as np

from univip_stream.proposals.jit import kernel

SCALE = 1 << 24
"""A similarity of one."""


@kernel
def _shares(counts: np.ndarray, out: np.ndarray) -> None:
    """Counts as shares of their sum, times SCALE."""
    total = np.int64(0)
    for at in range(len(counts)):
        total += counts[at]
    factor = np.float64(SCALE) / max(total, 1)
    for at in range(len(counts)):
        out[at] = np.int32(counts[at] * factor)


@kernel
def _shared(a: np.ndarray, b: np.ndarray) -> int:
    """Histogram intersection."""
    total = np.int32(0)
    for at in range(len(a)):
        total += min(a[at], b[at])
    return np.int64(total)


@kernel
def pool(
    region: np.ndarray, regions: int, colour: np.ndarray, texture: np.ndarray, boxes: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Histograms, boxes and sizes of regions from those of their atoms; no pixel is touched again."""
    region_colour = np.zeros((regions, colour.shape[1]), np.int32)
    region_texture = np.zeros((regions, texture.shape[1]), np.int32)
    region_boxes = np.empty((regions, 4), np.int32)
    region_boxes[:, :2] = np.int32(2**30)
    region_boxes[:, 2:] = 0
    region_sizes = np.zeros(regions, np.int64)
    for atom in range(len(region)):
        r = region[atom]
        region_colour[r] += colour[atom]
        region_texture[r] += texture[atom]
        region_sizes[r] += sizes[atom]
        for axis in range(2):
            region_boxes[r, axis] = min(region_boxes[r, axis], boxes[atom, axis])
            region_boxes[r, axis + 2] = max(region_boxes[r, axis + 2], boxes[atom, axis + 2])
    return region_colour, region_texture, region_boxes, region_sizes


@kernel
def group(
    region: np.ndarray,
    regions: int,
    pairs: np.ndarray,
    colour: np.ndarray,
    texture: np.ndarray,
    boxes: np.ndarray,
    sizes: np.ndarray,
    pixels: int,
    with_colour: bool,
) -> np.ndarray:
    """The boxes of one hierarchy: int32 (2 n - 1) x 4 left, top, right, bottom; the regions first, then as they merge.

    Args:
        region: int32 A, which region each atom is in.
        regions: n.
        pairs: int32, neighbouring atoms.
        colour: int32 n x C counts.
        texture: int32 n x T counts.
        boxes: int32 n x 4.
        sizes: int64 n, pixels.
        pixels: of the whole image.
        with_colour: colour + texture + size + fill, or without colour.

    """
    colour, texture = colour.copy(), texture.copy()
    boxes, sizes = boxes.copy(), sizes.copy()
    found = np.empty((2 * regions - 1, 4), np.int32)
    found[:regions] = boxes
    colour_share = np.empty((regions, colour.shape[1]), np.int32)
    texture_share = np.empty((regions, texture.shape[1]), np.int32)
    for r in range(regions):
        _shares(colour[r], colour_share[r])
        _shares(texture[r], texture_share[r])
    likeness = np.full((regions, regions), -1, np.int64)
    for at in range(len(pairs)):
        a, b = region[pairs[at, 0]], region[pairs[at, 1]]
        if a != b and likeness[a, b] < 0:
            value = _similarity(a, b, colour_share, texture_share, boxes, sizes, pixels, with_colour)
            likeness[a, b] = value
            likeness[b, a] = value
    alive = np.ones(regions, np.bool_)
    best = np.empty(regions, np.int64)
    mate = np.empty(regions, np.int64)
    for r in range(regions):
        _find_mate(r, likeness, alive, best, mate)
    for merged in range(regions, 2 * regions - 1):
        a, top = -1, np.int64(-1)
        for r in range(regions):
            if alive[r] and best[r] > top:
                a, top = r, best[r]
        if a < 0:
            return found[:merged]  # what is left does not touch
        b = mate[a]
        alive[b] = False
        best[b] = -1
        colour[a] += colour[b]
        texture[a] += texture[b]
        sizes[a] += sizes[b]
        for axis in range(2):
            boxes[a, axis] = min(boxes[a, axis], boxes[b, axis])
            boxes[a, axis + 2] = max(boxes[a, axis + 2], boxes[b, axis + 2])
        found[merged] = boxes[a]
        _shares(colour[a], colour_share[a])
        _shares(texture[a], texture_share[a])
        for r in range(regions):
            if not alive[r] or r == a:
                continue
            if likeness[a, r] >= 0 or likeness[b, r] >= 0:
                value = _similarity(a, r, colour_share, texture_share, boxes, sizes, pixels, with_colour)
                likeness[a, r] = value
                likeness[r, a] = value
                likeness[r, b] = -1
                if mate[r] == a or mate[r] == b:
                    _find_mate(r, likeness, alive, best, mate)
                elif value > best[r]:
                    best[r], mate[r] = value, a
        likeness[a, b] = -1
        _find_mate(a, likeness, alive, best, mate)
    return found


@kernel
def _find_mate(r: int, likeness: np.ndarray, alive: np.ndarray, best: np.ndarray, mate: np.ndarray) -> None:
    """The neighbour most like r, the first of equals; -1 where it has none."""
    value, which = np.int64(-1), -1
    row = likeness[r]
    for other in range(len(row)):
        if row[other] > value and alive[other]:
            value, which = row[other], other
    best[r], mate[r] = value, which


@kernel
def _similarity(
    a: int,
    b: int,
    colour: np.ndarray,
    texture: np.ndarray,
    boxes: np.ndarray,
    sizes: np.ndarray,
    pixels: int,
    with_colour: bool,
) -> int:
    """The sum of the parts' similarities, each 0 to SCALE (Uijlings et al., equations 1 to 6)."""
    together = sizes[a] + sizes[b]
    value = _shared(texture[a], texture[b])
    if with_colour:
        value += _shared(colour[a], colour[b])
    value += SCALE - SCALE * together // pixels
    wide = np.int64(max(boxes[a, 2], boxes[b, 2]) - min(boxes[a, 0], boxes[b, 0]))
    high = np.int64(max(boxes[a, 3], boxes[b, 3]) - min(boxes[a, 1], boxes[b, 1]))
    return value + SCALE - SCALE * (wide * high - together) // pixels
