"""OpenCV Fast's algorithm at full resolution, each thing done once: for parity with boxes that the field has published.

The same segmentations and groupings as OpenCV's; smoothing, edges and their order are shared by the three segmentations of
a colour space, and histograms are counted in one pass. OpenCV's order of boxes is random; this one ranks by agreement.
"""

import cv2
import numpy as np

from univip_stream.proposals import features, graph, grouping, ranking
from univip_stream.proposals.fast import AGREE, SIGMA, taps

SCALES = (150, 300, 450)
"""k of OpenCV Fast."""
MIN_SIZE = 100
"""Pixels a region has at least, in OpenCV at any resolution."""


def selective_search_exact(image: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Propose OpenCV Fast's boxes.

    Args:
        image: uint8, height x width x 3, RGB.
        seed: not used: nothing here is random.

    Returns:
        int32, N x 4 x, y, w, h in pixels: those that most others agree with first, larger first among equals.

    """
    height, width = image.shape[:2]
    found = []
    for conversion in (cv2.COLOR_RGB2HSV, cv2.COLOR_RGB2Lab):
        colours = cv2.cvtColor(image, conversion)
        order, weights = graph.sorted_edges(graph.weigh_edges(graph.smooth(colours, taps(SIGMA))))
        for k in SCALES:
            labels, sizes, _, pairs, pair_weights = graph.segment_pixels(
                order, weights, height, width, k * graph.UNIT, MIN_SIZE
            )
            pairs, _ = graph.first_of_each_pair(pairs, pair_weights, len(sizes))
            colour, texture = features.atom_histograms(colours, labels, len(sizes), 1)
            boxes = features.atom_boxes(labels, len(sizes))
            region = np.arange(len(sizes), dtype=np.int32)
            for with_colour in (True, False):
                found.append(
                    grouping.group(
                        region, len(sizes), pairs, colour, texture, boxes, sizes.astype(np.int64), height * width, with_colour
                    )
                )
    boxes = ranking.ranked(np.concatenate(found), AGREE)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def version() -> str:
    """Changes when the same image can get other boxes."""
    return f"1, opencv {cv2.__version__}"
