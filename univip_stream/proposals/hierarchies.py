"""Steps 3 to 10 of selective search in one colour space (docs/selective-search.md): from pixels to the boxes of all hierarchies.

This is one compiled function, so that Python and its global lock are left only once per image and colour space.
"""

import numpy as np

from univip_stream.proposals import features, graph, grouping, pixels
from univip_stream.proposals.jit import copy_into, entry


@entry
def hierarchies(
    image: np.ndarray,
    codes: np.ndarray,
    taps: np.ndarray,
    scales: np.ndarray,
    min_size: int,
    fine: int,
    fine_size: int,
    fine_side: int,
    thin: bool,
    corners: bool,
) -> np.ndarray:
    """Return the boxes of every hierarchy: the image is segmented at each scale, and each segmentation grouped in two ways.

    A finer segmentation finds what is smaller than the smallest region of the others. It is grouped by all features alone, and
    only its small boxes are taken: of larger ones there are enough.

    Args:
        image: uint8, height x width x 3, of one colour space.
        codes: uint8, 3 x 4 x height x width, its texture (`features.texture_codes`).
        taps: float32, of the smoothing (`pixels.smooth`).
        scales: int64, k of each segmentation, in grey levels times pixels.
        min_size: smallest region, in pixels.
        fine: k of the finer segmentation, less than the others; 0 for none.
        fine_size: its smallest region, in pixels.
        fine_side: the longest side of a box from it, in pixels.
        thin: whether to leave out the heaviest edge of every square of pixels.
        corners: whether regions that touch at a corner are neighbours too, as in OpenCV.

    Returns:
        int32 N x 4 left, top, right, bottom, including equal ones.

    """
    height, width, _ = image.shape
    right, down = pixels.weigh_edges(pixels.smooth(image, taps))
    keys = graph.sorted_keys(pixels.edge_keys(right, down, thin))
    finest = fine if fine > 0 else scales[0]
    for k in scales:
        finest = min(finest, k)
    node, sizes, inners, a_nodes, b_nodes, weights = graph.contract(keys, height, width, finest * pixels.UNIT)

    # All segmentations first: where they agree, pixels are counted together.
    nodes, count = len(sizes), len(scales) + (fine > 0)
    cell, cells = np.zeros(nodes, np.uint32), min(1, nodes)
    regions_of = np.empty((count, nodes), np.uint32)
    counts_of = np.empty(count, np.int64)
    pairs_of = []
    for at in range(count):
        k, smallest = (scales[at], min_size) if at < len(scales) else (fine, fine_size)
        region, regions, pairs = graph.segment(a_nodes, b_nodes, weights, sizes, inners, k * pixels.UNIT, smallest)
        if corners:
            pairs = graph.touching(node, region, regions)
        cell, cells = graph.common_cells(cell, cells, region, regions)
        copy_into(regions_of[at], region)
        counts_of[at] = regions
        pairs_of.append(pairs)
    colour, texture, boxes = features.cell_histograms(image, codes, node, cell, cells)

    found = np.empty((4 * counts_of.sum(), 4), np.int32)
    total = 0
    region_of_cell = np.empty(cells, np.uint32)
    for at in range(count):
        for n in range(nodes):
            region_of_cell[cell[n]] = regions_of[at, n]
        parts = grouping.pool(region_of_cell, counts_of[at], colour, texture, boxes)
        finer = at == len(scales)
        for with_colour in (True, False):
            if finer and not with_colour:
                continue
            for box in grouping.group(pairs_of[at], parts[0], parts[1], parts[2], height * width, with_colour):
                copy_into(found[total], box)
                total += not finer or max(box[2] - box[0], box[3] - box[1]) <= fine_side
    return found[:total].copy()
