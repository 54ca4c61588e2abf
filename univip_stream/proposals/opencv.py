"""OpenCV's selective search: the reference that the field's published boxes come from, made deterministic.

OpenCV ranks regions by libc's `rand()` times their level and never seeds it, so two runs of one process give two orders,
and the greedy filter then keeps other boxes. Here libc is seeded from the pixels before each image. The boxes are then
a function of the image, the seed, the OpenCV build and the C library; both are named by `version()`.
"""

import ctypes
import platform
import threading
import zlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

# Below this OpenCV's graph has next to nothing to merge, and a one-pixel side is an error in its Scharr filter.
_SMALLEST_SIDE = 8

# rand() is one state for the whole process: two threads would take numbers from each other.
_one_at_a_time = threading.Lock()


def fast(image: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Fast mode: HSV and Lab, k = 150, 300, 450, two strategies (Uijlings et al., IJCV 2013).

    Args:
        image: uint8, height x width x 3, RGB.
        seed: another seed gives another random order of the same boxes.

    Returns:
        int32, N x 4 x, y, w, h in OpenCV's rank order.

    """
    return _run(image, seed, lambda search: search.switchToSelectiveSearchFast())


def quality(image: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Quality mode: five colour spaces, k = 150 to 750, four strategies; about ten times Fast's cost. As `fast`."""
    return _run(image, seed, lambda search: search.switchToSelectiveSearchQuality())


def version() -> str:
    """The OpenCV build and the C library whose `rand()` orders the boxes."""
    return f"opencv {cv2.__version__}, {' '.join(platform.libc_ver()) or platform.system()}"


def _run(image: np.ndarray, seed: int, switch_mode: Callable[[Any], None]) -> np.ndarray:
    height, width = image.shape[:2]
    whole = np.array([[0, 0, width, height]], np.int32)
    if min(height, width) < _SMALLEST_SIDE:
        return whole
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    threads = cv2.getNumThreads()
    with _one_at_a_time:
        # A Ray task is given one CPU, but OpenCV's own pool would use every core of the node.
        cv2.setNumThreads(1)
        try:
            search.setBaseImage(np.ascontiguousarray(image[..., ::-1]))
            switch_mode(search)
            _seed_libc(zlib.crc32(np.ascontiguousarray(image).tobytes(), zlib.crc32(f"{width}x{height}/{seed}".encode())))
            boxes = np.asarray(search.process(), np.int32).reshape(-1, 4)
        finally:
            cv2.setNumThreads(threads)
    return boxes if len(boxes) else whole


def _seed_libc(seed: int) -> None:
    library = ctypes.CDLL("msvcrt" if platform.system() == "Windows" else None)
    library.srand(ctypes.c_uint(seed))
