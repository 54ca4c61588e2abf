"""OpenCV Fast's algorithm at full resolution, each thing done once: for parity with boxes that the field has published.

The same segmentations and groupings as OpenCV's; smoothing, edges and their order are shared by the three segmentations of
a colour space, and histograms are counted in one pass. OpenCV's order of boxes is random; this one ranks by agreement.
"""

import cv2
import numpy as np

from univip_stream.proposals import ranking
from univip_stream.proposals.fast import AGREE, COLOURS, Segmentation
from univip_stream.proposals.features import texture_codes

OPENCV_FAST = Segmentation(sigma=0.8, scales=(150, 300, 450), min_size=100, thin=False, corners=True)
"""The settings of OpenCV's Fast mode, the same at any resolution."""


def selective_search_exact(image: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Propose OpenCV Fast's boxes.

    Args:
        image: uint8, height x width x 3, RGB.
        seed: not used: nothing here is random.

    Returns:
        int32, N x 4 x, y, w, h in pixels: those that most others agree with first, larger first among equals.

    """
    found = []
    for conversion in COLOURS:
        colours = np.asarray(cv2.cvtColor(image, conversion), np.uint8)
        found.append(OPENCV_FAST.boxes(colours, texture_codes(colours)))
    boxes = ranking.ranked(np.concatenate(found), AGREE)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def version() -> str:
    """Changes when the same image can get other boxes."""
    return f"2, opencv {cv2.__version__}"
