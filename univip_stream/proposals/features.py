"""What selective search compares regions by (Uijlings et al., IJCV 2013, section 3.2): colour and texture histograms.

Counts of pixels, so that a region's are the sum of its parts'. Shape letters: A atoms, C bins of colour, T bins of texture.
"""

import numpy as np

from univip_stream.proposals.jit import kernel

COLOUR_BINS = 25
"""Bins a channel, over 0 to 255."""
TEXTURE_BINS = 10
"""Bins a direction and channel."""
COLOURS = 3 * COLOUR_BINS
"""C."""
TEXTURES = 3 * 8 * TEXTURE_BINS
"""T: three channels, eight directions."""
_SIGNED = 2 * TEXTURE_BINS - 1


@kernel
def atom_histograms(image: np.ndarray, labels: np.ndarray, atoms: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Histograms of every atom, from every `step`-th pixel each way.

    Texture is the Scharr derivative along x, y and both diagonals (their sum and difference); each has a positive and a
    negative part, so eight directions. Each part is scaled by its maximum over the image and its channel.

    Args:
        image: uint8, height x width x 3.
        labels: int32, height x width.
        atoms: how many.
        step: 1 takes all pixels.

    Returns:
        int32 A x C and int32 A x T. An atom that the steps missed is counted from its first pixel, so none is empty.

    """
    height, width, _ = image.shape
    colour = np.zeros((atoms, COLOURS), np.int32)
    signed = np.zeros((atoms, 12 * _SIGNED), np.int32)
    rows, columns = (height + step - 1) // step, (width + step - 1) // step
    slopes = np.empty((rows, columns, 12), np.int16)
    most, least = np.ones(12, np.int64), np.full(12, -1, np.int64)
    for row in range(rows):
        y = row * step
        up, down = (y - 1 if y > 0 else min(1, height - 1)), (y + 1 if y < height - 1 else max(height - 2, 0))
        for column in range(columns):
            x = column * step
            left, right = (x - 1 if x > 0 else min(1, width - 1)), (x + 1 if x < width - 1 else max(width - 2, 0))
            for c in range(3):
                corner_nw, corner_ne = np.int32(image[up, left, c]), np.int32(image[up, right, c])
                corner_sw, corner_se = np.int32(image[down, left, c]), np.int32(image[down, right, c])
                gx = 3 * (corner_ne - corner_nw + corner_se - corner_sw)
                gx += 10 * (np.int32(image[y, right, c]) - image[y, left, c])
                gy = 3 * (corner_sw - corner_nw + corner_se - corner_ne)
                gy += 10 * (np.int32(image[down, x, c]) - image[up, x, c])
                at = 4 * c
                slopes[row, column, at] = gx
                slopes[row, column, at + 1] = gy
                slopes[row, column, at + 2] = gx + gy
                slopes[row, column, at + 3] = gy - gx
            for at in range(12):
                value = slopes[row, column, at]
                if value > most[at]:
                    most[at] = value
                elif value < least[at]:
                    least[at] = value
    # A slope's bin is looked up: one division for each possible value instead of one for each pixel.
    table = np.empty((12, 2 * 8160 + 1), np.uint8)
    for at in range(12):
        for value in range(least[at], most[at] + 1):
            if value >= 0:
                bin_ = (value * 255 // most[at]) * TEXTURE_BINS // 256
            else:
                bin_ = -((value * 255 // least[at]) * TEXTURE_BINS // 256)
            table[at, value + 8160] = bin_ + TEXTURE_BINS - 1
    for row in range(rows):
        for column in range(columns):
            y, x = row * step, column * step
            atom = labels[y, x]
            for c in range(3):
                colour[atom, c * COLOUR_BINS + image[y, x, c] * COLOUR_BINS // 256] += 1
            for at in range(12):
                signed[atom, at * _SIGNED + table[at, slopes[row, column, at] + 8160]] += 1
    if step > 1:
        _count_missed(image, labels, colour, signed)
    return colour, _by_direction(signed)


@kernel
def _count_missed(image: np.ndarray, labels: np.ndarray, colour: np.ndarray, signed: np.ndarray) -> None:
    height, width, _ = image.shape
    for y in range(height):
        for x in range(width):
            atom = labels[y, x]
            total = 0
            for bin_ in range(COLOUR_BINS):
                total += colour[atom, bin_]
            if total == 0:
                for c in range(3):
                    colour[atom, c * COLOUR_BINS + image[y, x, c] * COLOUR_BINS // 256] += 1
                for at in range(12):
                    signed[atom, at * _SIGNED + TEXTURE_BINS - 1] += 1


@kernel
def _by_direction(signed: np.ndarray) -> np.ndarray:
    """19 signed bins a derivative -> 10 bins for each of its two signs; what has the other sign counts as no slope."""
    atoms = len(signed)
    texture = np.zeros((atoms, 24 * TEXTURE_BINS), np.int32)
    for atom in range(atoms):
        for at in range(12):
            for bin_ in range(_SIGNED):
                value = bin_ - (TEXTURE_BINS - 1)
                count = signed[atom, at * _SIGNED + bin_]
                texture[atom, 2 * at * TEXTURE_BINS + max(value, 0)] += count
                texture[atom, (2 * at + 1) * TEXTURE_BINS + max(-value, 0)] += count
    return texture


@kernel
def atom_boxes(labels: np.ndarray, atoms: int) -> np.ndarray:
    """int32 A x 4: each atom's left, top, right, bottom; right and bottom just outside."""
    height, width = labels.shape
    boxes = np.empty((atoms, 4), np.int32)
    for atom in range(atoms):
        boxes[atom] = (width, height, 0, 0)
    for y in range(height):
        for x in range(width):
            atom = labels[y, x]
            boxes[atom, 0] = min(boxes[atom, 0], x)
            boxes[atom, 1] = min(boxes[atom, 1], y)
            boxes[atom, 2] = max(boxes[atom, 2], x + 1)
            boxes[atom, 3] = max(boxes[atom, 3], y + 1)
    return boxes
