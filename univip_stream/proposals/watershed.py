"""Boxes of hierarchical watersheds (Cousty and Najman, ISMM 2011), by the library higra.

A watershed of the copy's edges floods from every minimum; the hierarchy says in which order basins become one, by area, by
volume or by depth (dynamics). The boxes of all regions of the three hierarchies are ranked as the default engine ranks its
own, so that the two differ in their regions alone. Edges are those of Lab, in whole numbers.
"""

from importlib.metadata import version as version_of

import cv2
import numpy as np

from univip_stream.proposals import ranking
from univip_stream.proposals.fast import full_size, working_copy
from univip_stream.proposals.options import require_whole

_SMALLEST = 64
"""Smallest region, in pixels of the copy: most of the smaller ones are noise, and there are thousands."""
_SIGMA = 1.0
"""Standard deviation of the smoothing before, pixels of the copy."""


def watershed(image: np.ndarray, *, seed: int = 0, working_resolution: int = 256) -> np.ndarray:
    """Propose the boxes of the regions of three watershed hierarchies.

    Args:
        image: uint8, height x width x 3, RGB.
        seed: not used: nothing here is random.
        working_resolution: longer side of the copy that is segmented, pixels; a smaller image is taken as it is.

    Returns:
        int32, N x 4 x, y, w, h, best first.

    Raises:
        UsageError: `working_resolution` is no such number.
        ModuleNotFoundError: higra is not installed.

    """
    import higra as hg

    require_whole("working_resolution", working_resolution, 16, (1 << 15) - 1, "whole pixels")
    height, width = image.shape[:2]
    copy = working_copy(image, working_resolution)
    rows, columns = copy.shape[:2]
    whole = np.array([[0, 0, columns, rows]], np.int32)
    found = [whole]
    lab = np.asarray(cv2.cvtColor(copy, cv2.COLOR_RGB2Lab), np.uint8)
    if rows * columns > 1:
        smooth = cv2.GaussianBlur(lab, (0, 0), _SIGMA)
        graph = hg.get_4_adjacency_graph((rows, columns))
        one, other = graph.edge_list()
        steps = smooth.reshape(-1, 3).astype(np.int64)
        # Squares of whole numbers: the same order of edges on every machine.
        weights = ((steps[one] - steps[other]) ** 2).sum(axis=1).astype(np.float64)
        y, x = (place.ravel().astype(np.float64) for place in np.indices((rows, columns)))
        for hierarchy in (
            hg.watershed_hierarchy_by_area,
            hg.watershed_hierarchy_by_volume,
            hg.watershed_hierarchy_by_dynamics,
        ):
            tree, _ = hierarchy(graph, weights)
            low = [hg.accumulate_sequential(tree, place, hg.Accumulators.min) for place in (x, y)]
            high = [hg.accumulate_sequential(tree, place, hg.Accumulators.max) + 1 for place in (x, y)]
            boxes = np.stack([*low, *high], axis=1)[hg.attribute_area(tree) >= _SMALLEST]
            found.append(boxes.astype(np.int32))

    def in_image(boxes: np.ndarray) -> np.ndarray:
        return full_size(boxes, columns, rows, width, height)

    return ranking.ranked(np.concatenate(found), lab, in_image)


def version() -> str:
    """Return a version that changes when the same image can get other boxes.

    Raises:
        ModuleNotFoundError: higra is not installed.

    """
    import higra  # noqa: F401 - its absence has a message of its own; its version has none

    return f"2, higra {version_of('higra')}, opencv {cv2.__version__}"
