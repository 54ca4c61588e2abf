"""Random boxes under the filter's constraints: the paper's "naive" strategy (Table 8 b)."""

import zlib

import numpy as np

from univip_stream.boxes import naive_boxes
from univip_stream.proposals.options import require_whole


def naive(image: np.ndarray, *, seed: int = 0, count: int = 100) -> np.ndarray:
    """Propose `count` random boxes; which ones depends on the image's size and pixels and the seed.

    Args:
        image: uint8, height x width x 3.
        seed: seed of the generator, together with the pixels.
        count: number of boxes. They avoid each other if possible, so that the paper's filter keeps most.

    Returns:
        int32, at most count x 4: x, y, w, h; equal boxes (in a tiny image) are given once.

    Raises:
        UsageError: `count` is no number of boxes.

    """
    require_whole("count", count, 1, 10_000, "boxes")
    height, width = image.shape[:2]
    rng = np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(np.ascontiguousarray(image).tobytes())]))
    boxes = naive_boxes((0, 0, width, height), count, rng)
    _, first = np.unique(boxes, axis=0, return_index=True)
    return boxes[np.sort(first)]


def version() -> str:
    """Return a version that changes when the same seed gives other boxes."""
    return "1"
