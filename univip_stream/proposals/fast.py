"""The default engine: selective search (Uijlings et al., IJCV 2013) without repeated work, ranked by agreement.

What OpenCV's Fast mode repeats for each of its six segmentations is shared here: pixels are smoothed, compared, sorted and
binned once a colour space; equal or nearly equal neighbours are contracted once; histograms are counted once, for the cells
that all segmentations have in common. Boxes are found on a copy of `working_resolution` pixels a side. See
docs/selective-search.md.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np

from univip_stream.proposals import pixels, ranking
from univip_stream.proposals.features import texture_codes
from univip_stream.proposals.hierarchies import hierarchies
from univip_stream.proposals.options import require_switch, require_whole

COLOURS = (cv2.COLOR_RGB2HSV, cv2.COLOR_RGB2Lab)
"""The two colour spaces of Fast mode, 8 bits; OpenCV converts to them in integers. The ranking looks at the last."""


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """Settings of the segmentations that grouping starts from."""

    sigma: float
    """Standard deviation of the smoothing, pixels of the working copy (Felzenszwalb and Huttenlocher's and OpenCV's is 0.8)."""
    scales: tuple[int, ...]
    """k of each segmentation, grey levels times pixels: a larger one prefers larger regions."""
    min_size: int
    """Smallest region, in pixels."""
    thin: bool
    """Whether to leave out the heaviest edge of every square of pixels."""
    corners: bool
    """Whether regions that touch at a corner are neighbours too, as in OpenCV."""
    fine: int = 0
    """k of a finer segmentation for small objects; 0 for none."""
    fine_size: int = 0
    """Its smallest region, in pixels."""
    fine_side: int = 0
    """Longest side, in pixels, of a box that is taken from it."""

    def boxes(self, image: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Return all boxes of an image in one colour space, int32 N x 4 left, top, right, bottom, including equal ones."""
        scales = np.array(self.scales, np.int64)
        fine = (self.fine, self.fine_size, self.fine_side)
        return np.asarray(hierarchies(image, codes, taps(self.sigma), scales, self.min_size, *fine, self.thin, self.corners))


AT_256 = Segmentation(sigma=0.6, scales=(60, 120, 270, 540), min_size=35, thin=True, corners=False)
"""Settings for 256 pixels, chosen on COCO train images (docs/log.md); OpenCV's are 150, 300, 450 and 100 at any size."""
FINE_AT_256 = replace(AT_256, fine=30, fine_size=12, fine_side=38)
"""The same with the finer segmentation, whose boxes measure up to 95 pixels in a photograph of 640."""
FAST_RESOLUTION = 160
"""Of `fast`: of the settings tried on COCO train images, one whose boxes the paper's filter keeps best at 300 times the speed
of OpenCV's Fast mode or more (docs/log.md)."""


def selective_search(
    image: np.ndarray,
    *,
    seed: int = 0,
    working_resolution: int | None = None,
    small: bool = True,
    fast: bool = False,
) -> np.ndarray:
    """Propose boxes by selective search on a small copy.

    Args:
        image: uint8, height x width x 3, RGB.
        seed: not used: nothing here is random.
        working_resolution: longer side of the copy, pixels; a smaller image is taken as it is. Time grows with its square.
            None is 256, or 160 with `fast`.
        small: whether to look for small objects too, in a finer segmentation of the copy in Lab. Without, boxes of less than a
            tenth of the longer side are few, and the rest takes less time.
        fast: whether to take half the time for boxes that are a little worse: a smaller copy, with regions of as many of its
            pixels as those of a copy of 256 have.

    Returns:
        int32, N x 4 x, y, w, h in pixels of the image, each next one the one that adds most to those before it (`ranking.ranked`).

    Raises:
        UsageError: an option has a value that it cannot have.

    """
    require_switch("fast", fast)
    working_resolution = (FAST_RESOLUTION if fast else 256) if working_resolution is None else working_resolution
    require_whole("working_resolution", working_resolution, 16, (1 << 15) - 1, "whole pixels")
    require_switch("small", small)
    height, width = image.shape[:2]
    copy = working_copy(image, working_resolution)
    found = []
    for conversion in COLOURS:
        fine = small and conversion == cv2.COLOR_RGB2Lab
        settings = scaled(FINE_AT_256 if fine else AT_256, working_resolution / 256)
        if fast:
            min_size, fine_size = (max(settings.min_size, AT_256.min_size), max(settings.fine_size, FINE_AT_256.fine_size))
            settings = replace(settings, min_size=min_size, fine_size=fine_size)
        colours = np.asarray(cv2.cvtColor(copy, conversion), np.uint8)
        found.append(settings.boxes(colours, texture_codes(colours)))

    def in_image(boxes: np.ndarray) -> np.ndarray:
        return full_size(boxes, copy.shape[1], copy.shape[0], width, height)

    return ranking.ranked(np.concatenate(found), colours, in_image)


def scaled(settings: Segmentation, growth: float) -> Segmentation:
    """Return the settings for an image `growth` times as wide: areas grow with its square, k in proportion, as measured."""
    return replace(
        settings,
        scales=tuple(max(1, round(k * growth)) for k in settings.scales),
        min_size=max(1, round(settings.min_size * growth**2)),
        fine=settings.fine and max(1, round(settings.fine * growth)),
        fine_size=max(1, round(settings.fine_size * growth**2)),
        fine_side=round(settings.fine_side * growth),
    )


def working_copy(image: np.ndarray, working_resolution: int) -> np.ndarray:
    """Return the image with its longer side at most `working_resolution` pixels, never enlarged."""
    height, width = image.shape[:2]
    longest = max(height, width)
    if longest <= working_resolution:
        return image
    # Rounded half up, in integers.
    sides = [max(1, (2 * side * working_resolution + longest) // (2 * longest)) for side in (height, width)]
    # A read-only image would be another type for the compiler.
    return np.asarray(pixels.shrink(np.require(image, np.uint8, ["C", "W"]), *sides))


def full_size(boxes: np.ndarray, width: int, height: int, full_width: int, full_height: int) -> np.ndarray:
    """Convert boxes of the working copy (left, top, right, bottom) to x, y, w, h of the image; different boxes stay different."""
    edges = np.empty((len(boxes), 4), np.int32)
    for axis, (side, full) in enumerate(((width, full_width), (height, full_height))):
        there = ((np.arange(side + 1) * full * 2 + side) // (2 * side)).astype(np.int32)
        edges[:, axis::2] = there.take(boxes[:, axis::2])
    edges[:, 2:] -= edges[:, :2]
    return edges


def version() -> str:
    """Return a version that changes when the same image can get other boxes."""
    return f"6, opencv {cv2.__version__}"


@lru_cache(maxsize=4)
def taps(sigma: float) -> np.ndarray:
    """Return half a Gaussian kernel, float32, from the centre on; with its mirror image it sums to 1."""
    radius = round(4 * sigma)
    half = np.exp(-(np.arange(radius + 1) ** 2) / (2 * sigma**2))
    # Rounded to 20 bits, so that no C library's exp matters.
    return np.asarray(np.round(half / (half[0] + 2 * half[1:].sum()) * 2**20) / 2**20, np.float32)
