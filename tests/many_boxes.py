"""A proposer for tests: four hundred boxes of all sizes and shapes an image, none where the image is 100 pixels wide."""

import numpy as np


def many_boxes(image):
    height, width = image.shape[:2]
    if width == 100:
        return np.empty((0, 4), np.int32)
    rng = np.random.default_rng(int(image.sum()))
    x, y = rng.integers(0, width, 400), rng.integers(0, height, 400)
    w, h = rng.integers(1, width - x + 1), rng.integers(1, height - y + 1)
    x[:40], y[:40] = x[:40] // 10, y[:40] // 10  # large ones too
    w[:40], h[:40] = rng.integers(width * 7 // 10, width - x[:40] + 1), rng.integers(height * 7 // 10, height - y[:40] + 1)
    if width == 90:  # all too narrow for every filter that looks at shapes
        x, w = x * 0, x * 0 + 33
        y, h = y * 0, y * 0 + height
    if width == 110:  # of the right shape where too small, of the wrong one where large enough
        x, y, w, h = x * 0, y // 4, x * 0 + 33, np.where(np.arange(400) % 2, 33, 200)
    return np.stack([x, y, w, h], axis=1)
