"""OpenCV Fast's algorithm at full resolution, without repeated work: for parity with published boxes.

Segmentations and groupings are those of OpenCV, including its quirks: textures along the diagonals are computed on a rotated
copy of the image, including its black corners, and regions are neighbours across one of the two diagonals. OpenCV's order of
boxes is random (a random number times the level of the region); this one ranks by agreement, by colours and by what is already
covered, which is better and always the same.

Rotation is OpenCV's own, in floats: boxes are the same in every process and with any number of threads, but a few can differ
between processors for which OpenCV has different instructions. The default engine does not depend on this.
"""

import math

import cv2
import numpy as np

from univip_stream.proposals import features, ranking
from univip_stream.proposals.fast import COLOURS, Segmentation
from univip_stream.proposals.jit import entry

OPENCV_FAST = Segmentation(sigma=0.8, scales=(150, 300, 450), min_size=100, thin=False, corners=True)
"""The settings of OpenCV's Fast mode, the same at any resolution."""
_SMALLEST_SIDE = 8
"""Shortest side, in pixels, for which OpenCV's filters are defined and useful."""
_LARGEST_ROTATED = 1 << 26
"""Maximal pixels of the rotated copy, whose sides are (width + height) / sqrt(2): a long thin image would need too much memory."""


def selective_search_exact(image: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Propose OpenCV Fast's boxes.

    Args:
        image: uint8, height x width x 3, RGB.
        seed: not used: nothing here is random.

    Returns:
        int32, N x 4 x, y, w, h in pixels: each next one the one that adds most to those before it (`ranking.ranked`).

    """
    found = []
    for conversion in COLOURS:
        colours = np.asarray(cv2.cvtColor(image, conversion), np.uint8)
        found.append(OPENCV_FAST.boxes(colours, texture_codes(colours)))
    return ranking.ranked(np.concatenate(found), colours, _xywh)


def _xywh(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def texture_codes(image: np.ndarray) -> np.ndarray:
    """Compute `features.texture_codes` with the diagonals and the rounding of OpenCV.

    Images that do not suit OpenCV's method get the default's: less than 8 pixels on a side, more than some 5,800 on both, or
    more than about 2.4 times as long as wide, where the rotated copy is narrower than the image.
    """
    height, width = image.shape[:2]
    centre = (width / 2, height / 2)
    reach = (width + height) * math.sqrt(0.5) / 2
    # OpenCV's bounding rectangle of the rotated image.
    across, along = (math.ceil(middle + reach) - math.floor(middle - reach) + 1 for middle in centre)
    fits = across >= width and along >= height and across * along <= _LARGEST_ROTATED
    if min(height, width) < _SMALLEST_SIDE or not fits:
        return np.asarray(features.texture_codes(image))
    there = cv2.getRotationMatrix2D(centre, 45.0, 1.0)
    there[:, 2] += (across / 2 - centre[0], along / 2 - centre[1])
    back = cv2.getRotationMatrix2D((across // 2, along // 2), -45.0, 1.0)
    x, y = (across - width) // 2, (along - height) // 2
    codes = np.empty((3, 4, height, width), np.uint8)
    for c in range(3):
        plane = np.ascontiguousarray(image[..., c])
        rotated = cv2.warpAffine(plane, there, (across, along))
        for line, (dx, dy) in enumerate(((1, 0), (0, 1))):
            _opencv_bins(np.asarray(cv2.Scharr(plane, cv2.CV_32F, dx, dy), np.float32), codes[c, line])
            diagonal = cv2.warpAffine(cv2.Scharr(rotated, cv2.CV_32F, dx, dy), back, (across, along))
            _opencv_bins(np.ascontiguousarray(diagonal[y : y + height, x : x + width], np.float32), codes[c, 2 + line])
    return codes


@entry
def _opencv_bins(slopes: np.ndarray, codes: np.ndarray) -> None:
    """Stretch rising and falling slopes to 0 to 255 each, round them, and divide each into ten bins; 0 is the steepest fall."""
    height, width = slopes.shape
    most, least = np.float32(0), np.float32(0)
    for y in range(height):
        for x in range(width):
            most, least = max(most, slopes[y, x]), min(least, slopes[y, x])
    rise = 255.0 / max(np.float64(most), 1e-9)
    fall = 255.0 / max(-np.float64(least), 1e-9)
    for y in range(height):
        for x in range(width):
            slope = np.float64(slopes[y, x])
            if slope > 0:
                value = np.int64(np.rint(slope * rise)) * features.TEXTURE_BINS // 256 + features.TEXTURE_BINS - 1
            else:
                value = np.int64(np.rint((slope - least) * fall)) * features.TEXTURE_BINS // 256
            codes[y, x] = value


def version() -> str:
    """Return a version that changes when the same image can get other boxes."""
    return f"5, opencv {cv2.__version__}"
