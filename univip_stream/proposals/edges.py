"""EdgeBoxes (Zitnick and Dollar, ECCV 2014) of OpenCV, on an edge map that needs no trained model.

The paper takes its edges from a trained forest; here they are the steepest slope of the smoothed Lab image, thinned. Boxes are
ranked by the contours that lie wholly inside. OpenCV computes in floats: between processors a few boxes can differ.
"""

import cv2
import numpy as np

from univip_stream.proposals.options import require_whole

_SMALLEST_SIDE = 8
"""Shortest side, in pixels, for which there are contours to speak of."""


def edge_boxes(image: np.ndarray, *, seed: int = 0, count: int = 1000) -> np.ndarray:
    """Propose boxes by EdgeBoxes.

    Args:
        image: uint8, height x width x 3, RGB.
        seed: not used: nothing here is random.
        count: maximal number of boxes.

    Returns:
        int32, N x 4 x, y, w, h, best first, and the whole image last.

    Raises:
        UsageError: `count` is no number of boxes.

    """
    require_whole("count", count, 1, 100_000, "boxes")
    height, width = image.shape[:2]
    whole = np.array([[0, 0, width, height]], np.int32)
    if min(height, width) < _SMALLEST_SIDE:
        return whole
    strength, direction = thin_edges(image)
    finder = cv2.ximgproc.createEdgeBoxes(maxBoxes=count)
    boxes, _ = finder.getBoundingBoxes(strength, direction)
    edges = np.asarray(boxes, np.int64).reshape(-1, 4)
    edges[:, 2:] += edges[:, :2]
    edges = np.clip(edges, 0, [width, height, width, height])
    edges = edges[(edges[:, 2] > edges[:, 0]) & (edges[:, 3] > edges[:, 1])]
    found = np.concatenate([np.concatenate([edges[:, :2], edges[:, 2:] - edges[:, :2]], axis=1), whole])
    _, first = np.unique(found, axis=0, return_index=True)
    return found[np.sort(first)].astype(np.int32)


def thin_edges(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return edge strength, 0 to 1 and only on ridges, and the slope's direction, 0 to pi: float32, height x width each."""
    lab = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2Lab), (0, 0), 1.5)
    across, along = (np.asarray(cv2.Sobel(lab, cv2.CV_32F, dx, dy)) for dx, dy in ((1, 0), (0, 1)))
    steepest = (across**2 + along**2).argmax(axis=2)[..., None]
    gx, gy = (np.take_along_axis(slope, steepest, axis=2)[..., 0] for slope in (across, along))
    strength = np.sqrt(gx**2 + gy**2)
    direction = np.mod(np.arctan2(gy, gx), np.float32(np.pi))
    # A ridge is no weaker than its two neighbours along the slope, of the eight around it.
    padded = np.pad(strength, 1)
    octant = np.round(direction / (np.pi / 4)).astype(np.int64) % 4
    height, width = strength.shape
    ridge = np.zeros(strength.shape, bool)
    for which, (dx, dy) in enumerate(((1, 0), (1, 1), (0, 1), (-1, 1))):
        before = padded[1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width]
        after = padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        ridge |= (octant == which) & (strength >= before) & (strength >= after)
    strength = np.where(ridge, strength, 0) / max(float(strength.max()), 1e-9)
    return strength.astype(np.float32), direction.astype(np.float32)


def version() -> str:
    """Return a version that changes when the same image can get other boxes."""
    return f"1, opencv {cv2.__version__}"
