"""Hierarchical grouping (Uijlings et al., IJCV 2013, algorithm 1): merge the two most similar neighbours until one is left.

Every region that occurs on the way gives a box. Similarities are integers of a fixed scale, so equal inputs give equal
hierarchies on every machine.

Shape letters: A cells, n regions to begin with, P pairs of neighbours.
"""

import numpy as np

from univip_stream.proposals.jit import copy_into, part

SCALE = 1 << 24
"""Integer that represents a similarity of one."""
_NONE = -1


@part
def pool(
    region: np.ndarray, regions: int, colour: np.ndarray, texture: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute histograms and boxes of regions from those of their cells, without reading pixels again.

    Args:
        region: uint32 A.
        regions: n.
        colour: int32 A x C.
        texture: int32 A x T.
        boxes: int32 A x 4.

    """
    region_colour = np.zeros((regions, colour.shape[1]), np.int32)
    region_texture = np.zeros((regions, texture.shape[1]), np.int32)
    region_boxes = np.empty((regions, 4), np.int32)
    region_boxes[:, :2] = np.int32(2**30)
    region_boxes[:, 2:] = 0
    for cell in range(len(region)):
        r = region[cell]
        _add(region_colour[r], colour[cell])
        _add(region_texture[r], texture[cell])
        _join(region_boxes[r], boxes[cell])
    return region_colour, region_texture, region_boxes


@part
def _add(counts: np.ndarray, more: np.ndarray) -> None:
    for at in range(len(counts)):
        counts[at] += more[at]


@part
def _join(box: np.ndarray, other: np.ndarray) -> None:
    box[0], box[1] = min(box[0], other[0]), min(box[1], other[1])
    box[2], box[3] = max(box[2], other[2]), max(box[3], other[3])


@part
def _shares(counts: np.ndarray, out: np.ndarray) -> None:
    """Write counts as shares of their sum, times SCALE."""
    total = np.int64(0)  # texture counts a pixel 24 times: an image of 100 million is too much for 32 bits
    for at in range(len(counts)):
        total += counts[at]
    factor = np.float32(np.float64(SCALE) / max(total, 1))
    for at in range(len(counts)):
        out[at] = np.int32(np.float32(counts[at]) * factor)


@part
def _shared(a: np.ndarray, b: np.ndarray) -> int:
    """Return the intersection of two histograms."""
    total = np.int32(0)
    for at in range(len(a)):
        total = np.int32(total + min(a[at], b[at]))
    return total


@part
def _similarity(
    a: int, b: int, colour: np.ndarray, texture: np.ndarray, boxes: np.ndarray, share: float, with_colour: bool
) -> int:
    """Return the similarity of two regions, a sum of parts of 0 to SCALE each (Uijlings et al., equations 1 to 6).

    Size is 1 - (a + b) / pixels and fill 1 - (box - a - b) / pixels: together 2 - box / pixels, whatever a and b are.
    """
    value = _shared(texture[a], texture[b])
    if with_colour:
        value += _shared(colour[a], colour[b])
    wide = np.int32(max(boxes[a, 2], boxes[b, 2]) - min(boxes[a, 0], boxes[b, 0]))
    high = np.int32(max(boxes[a, 3], boxes[b, 3]) - min(boxes[a, 1], boxes[b, 1]))
    return np.int32(value + 2 * SCALE - np.int32(np.float64(wide) * np.float64(high) * share))


@part
def group(
    pairs: np.ndarray,
    colour: np.ndarray,
    texture: np.ndarray,
    boxes: np.ndarray,
    pixels: int,
    with_colour: bool,
) -> np.ndarray:
    """Return the boxes of one hierarchy, int32 (2 n - 1) x 4 left, top, right, bottom: the regions first, then in order of merging.

    A region's neighbours are a linked list of links. Link l of pair l // 2 leads from one region to the other, link l ^ 1
    back. Of equally similar neighbours, the pair with the smallest numbers merges first.

    Args:
        pairs: uint32 P x 2, neighbouring regions, each two once.
        colour: int32 n x C counts.
        texture: int32 n x T counts.
        boxes: int32 n x 4.
        pixels: of the whole image.
        with_colour: whether to compare by colour + texture + size + fill, or without colour.

    """
    regions = len(boxes)
    colour, texture, boxes = colour.copy(), texture.copy(), boxes.copy()
    share = np.float64(SCALE) / np.float64(pixels)  # of one pixel of the image
    found = np.empty((2 * regions - 1, 4), np.int32)
    for r in range(regions):
        copy_into(found[r], boxes[r])
    colour_share, texture_share = np.empty_like(colour), np.empty_like(texture)
    for r in range(regions):
        _shares(colour[r], colour_share[r])
        _shares(texture[r], texture_share[r])

    target = np.empty(2 * len(pairs), np.int32)
    after, before = np.empty(2 * len(pairs), np.int32), np.full(2 * len(pairs), _NONE, np.int32)
    first = np.full(regions, _NONE, np.int32)
    alike = np.empty(len(pairs), np.int32)
    for pair in range(len(pairs)):
        a, b = np.int64(pairs[pair, 0]), np.int64(pairs[pair, 1])
        alike[pair] = _similarity(a, b, colour_share, texture_share, boxes, share, with_colour)
        _link(2 * pair, a, b, target, after, before, first)
        _link(2 * pair + 1, b, a, target, after, before, first)
    best, mate = np.empty(regions, np.int32), np.empty(regions, np.int32)
    for r in range(regions):
        _find_mate(r, alike, target, after, first, best, mate)
    link_to = np.full(regions, _NONE, np.int32)  # of the region in work, its link to each other one

    for merged in range(regions, 2 * regions - 1):
        top = np.int32(-1)
        for r in range(regions):
            top = max(top, best[r])
        if top < 0:
            return found[:merged]  # what is left does not touch
        a = np.int64(0)
        while best[a] != top:
            a += 1
        b = np.int64(mate[a])
        best[b] = -1
        _add(colour[a], colour[b])
        _add(texture[a], texture[b])
        _join(boxes[a], boxes[b])
        copy_into(found[merged], boxes[a])
        _shares(colour[a], colour_share[a])
        _shares(texture[a], texture_share[a])
        _take_over(a, b, target, after, before, first, link_to)
        link = first[a]
        while link != _NONE:
            r = np.int64(target[link])
            value = _similarity(min(a, r), max(a, r), colour_share, texture_share, boxes, share, with_colour)
            alike[link >> 1] = value
            if mate[r] == a or mate[r] == b:
                _find_mate(r, alike, target, after, first, best, mate)
            elif value > best[r] or (value == best[r] and a < mate[r]):
                best[r], mate[r] = value, a
            link = after[link]
        _find_mate(a, alike, target, after, first, best, mate)
    return found


@part
def _link(
    link: int, here: int, there: int, target: np.ndarray, after: np.ndarray, before: np.ndarray, first: np.ndarray
) -> None:
    """Put a link from `here` to `there` at the head of the list of `here`."""
    target[link] = there
    before[link] = _NONE
    after[link] = first[here]
    if first[here] != _NONE:
        before[first[here]] = link
    first[here] = link


@part
def _unlink(link: int, here: int, after: np.ndarray, before: np.ndarray, first: np.ndarray) -> None:
    if before[link] == _NONE:
        first[here] = after[link]
    else:
        after[before[link]] = after[link]
    if after[link] != _NONE:
        before[after[link]] = before[link]


@part
def _take_over(
    a: int, b: int, target: np.ndarray, after: np.ndarray, before: np.ndarray, first: np.ndarray, link_to: np.ndarray
) -> None:
    """Move the neighbours of b to a, each once, and remove the link between the two."""
    link = np.int64(first[a])
    while link != _NONE:
        link_to[target[link]] = link
        link = after[link]
    _unlink(np.int64(link_to[b]), a, after, before, first)
    link_to[b] = _NONE
    link = np.int64(first[b])
    while link != _NONE:
        r, following = np.int64(target[link]), np.int64(after[link])
        if r != a:
            if link_to[r] != _NONE:
                _unlink(link ^ 1, r, after, before, first)
            else:
                target[link ^ 1] = a
                _link(link, a, r, target, after, before, first)
        link = following
    link = first[a]
    while link != _NONE:
        link_to[target[link]] = _NONE
        link = after[link]


@part
def _find_mate(
    r: int, alike: np.ndarray, target: np.ndarray, after: np.ndarray, first: np.ndarray, best: np.ndarray, mate: np.ndarray
) -> None:
    """Find the neighbour most similar to r, of equals the one with the smallest number; -1 if it has none."""
    value, which = np.int32(-1), np.int32(-1)
    link = first[r]
    while link != _NONE:
        if alike[link >> 1] > value or (alike[link >> 1] == value and target[link] < which):
            value, which = alike[link >> 1], target[link]
        link = after[link]
    best[r], mate[r] = value, which
