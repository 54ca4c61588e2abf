"""The features by which selective search compares regions (Uijlings et al., IJCV 2013, section 3.2): colour and texture histograms.

Counts of pixels, so that a region's are the sum of its parts'. Shape letters: A cells, n regions, C bins of colour, T bins
of texture.
"""

import numpy as np

from univip_stream.proposals.jit import copy_into, entry, part

COLOUR_BINS = 25
"""Bins per channel, over 0 to 255."""
TEXTURE_BINS = 10
"""Bins per direction and channel."""
COLOURS = 3 * COLOUR_BINS
"""C."""
TEXTURES = 3 * 8 * TEXTURE_BINS
"""T: three channels, eight directions."""
_LINE = 2 * TEXTURE_BINS
"""Bins of a derivative along one line: nine falling, none rising, nine rising, none falling."""


@entry
def texture_codes(image: np.ndarray) -> np.ndarray:
    """Return each pixel's bin of each derivative.

    Texture is the Scharr derivative along x, y and both diagonals (their sum and difference). Each has a positive and a
    negative part, so eight directions; each part is scaled by its maximum over the image and its channel.

    Args:
        image: uint8, height x width x 3.

    Returns:
        uint8, 3 x 4 x height x width: 0 to 18, of which 9 is little or no slope, 18 the steepest rise, 0 the steepest fall.

    """
    height, width, _ = image.shape
    slopes = np.empty((4, height, width), np.int16)
    codes = np.empty((3, 4, height, width), np.uint8)
    # Rows of one channel with a mirrored border: before (up), at (mid) and after (down) the row in work.
    plane = np.empty((height + 2, width + 2), np.int16)
    for c in range(3):
        for y in range(height):
            for x in range(width):
                plane[y + 1, x + 1] = image[y, x, c]
            plane[y + 1, 0] = plane[y + 1, min(2, width)]
            plane[y + 1, width + 1] = plane[y + 1, max(width - 1, 1)]
        copy_into(plane[0], plane[min(2, height)])
        copy_into(plane[height + 1], plane[max(height - 1, 1)])
        for y in range(height):
            up, mid, down = plane[y], plane[y + 1], plane[y + 2]
            up_w, up_x, up_e = up[:width], up[1 : width + 1], up[2:]
            mid_w, mid_e = mid[:width], mid[2:]
            down_w, down_x, down_e = down[:width], down[1 : width + 1], down[2:]
            across, along, rising, falling = slopes[0, y], slopes[1, y], slopes[2, y], slopes[3, y]
            for x in range(width):
                gx = 3 * (up_e[x] - up_w[x] + down_e[x] - down_w[x]) + 10 * (mid_e[x] - mid_w[x])
                gy = 3 * (down_w[x] - up_w[x] + down_e[x] - up_e[x]) + 10 * (down_x[x] - up_x[x])
                across[x], along[x], rising[x], falling[x] = gx, gy, gx + gy, gy - gx
        for line in range(4):
            _bins(slopes[line].ravel(), codes[c, line].ravel())
    return codes


@part
def _bins(slopes: np.ndarray, codes: np.ndarray) -> None:
    most, least = np.int16(0), np.int16(0)
    for at in range(len(slopes)):
        most, least = max(most, slopes[at]), min(least, slopes[at])
    # value * TEXTURE_BINS / (most + 1) in 16-bit fixed point: below TEXTURE_BINS, and never past 32 bits.
    rise = np.int32((TEXTURE_BINS << 16) // (np.int32(most) + 1))
    fall = np.int32((TEXTURE_BINS << 16) // (np.int32(-np.int32(least)) + 1))
    for at in range(len(slopes)):
        value = np.int32(slopes[at])
        size = (max(value, np.int32(0)) * rise >> 16) - (max(-value, np.int32(0)) * fall >> 16)
        codes[at] = size + (TEXTURE_BINS - 1)


@part
def cell_histograms(
    image: np.ndarray, codes: np.ndarray, node: np.ndarray, cell: np.ndarray, cells: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute histograms and boxes of every cell; the only function that reads the pixels of regions.

    Args:
        image: uint8, height x width x 3.
        codes: uint8, 3 x 4 x height x width, as `texture_codes` gives them.
        node: uint32, height x width.
        cell: uint32, one of each node.
        cells: how many.

    Returns:
        int32 A x C; int32 A x T, _LINE bins for each of 3 channels x 4 lines; int32 A x 4 left, top, right, bottom.

    """
    height, width, _ = image.shape
    boxes = np.empty((cells, 4), np.int32)
    for at in range(cells):
        boxes[at, 0], boxes[at, 1], boxes[at, 2], boxes[at, 3] = width, height, 0, 0
    colour = np.zeros(cells * COLOURS, np.int32)
    texture = np.zeros(cells * TEXTURES, np.int32)
    of_colour = np.empty(256, np.uint32)
    for value in range(256):
        of_colour[value] = value * COLOUR_BINS // 256
    labels = np.empty(width, np.uint32)
    for y in range(height):
        begin = np.int64(0)
        for x in range(width):
            labels[x] = cell[node[y, x]]
            if labels[x] != labels[begin]:
                _widen(boxes[labels[begin]], begin, x, y)
                begin = x
        _widen(boxes[labels[begin]], begin, width, y)
        for c in range(3):
            row = image[y]
            code_1, code_2, code_3, code_4 = codes[c, 0, y], codes[c, 1, y], codes[c, 2, y], codes[c, 3, y]
            for x in range(width):
                first = labels[x] * np.uint32(TEXTURES) + np.uint32(4 * c * _LINE)
                texture[first + code_1[x]] += 1
                texture[first + code_2[x] + np.uint32(_LINE)] += 1
                texture[first + code_3[x] + np.uint32(2 * _LINE)] += 1
                texture[first + code_4[x] + np.uint32(3 * _LINE)] += 1
                colour[labels[x] * np.uint32(COLOURS) + np.uint32(c * COLOUR_BINS) + of_colour[row[x, c]]] += 1
    lines = texture.reshape(cells * 12, _LINE)
    for line in range(len(lines)):
        _split_flat(lines[line])
    return colour.reshape(cells, COLOURS), texture.reshape(cells, TEXTURES), boxes


@part
def _split_flat(line: np.ndarray) -> None:
    """Split 19 signed bins into 10 for each direction: slopes in the other direction count as no slope."""
    falls, flat, rises = np.int32(0), line[TEXTURE_BINS - 1], np.int32(0)
    for bin_ in range(TEXTURE_BINS - 1):
        falls = np.int32(falls + line[bin_])
        rises = np.int32(rises + line[bin_ + TEXTURE_BINS])
    line[TEXTURE_BINS - 1] = flat + falls
    line[_LINE - 1] = flat + rises


@part
def _widen(box: np.ndarray, begin: int, end: int, y: int) -> None:
    """Extend a box by a run of pixels; rows come from the top."""
    box[0], box[1] = min(box[0], begin), min(box[1], y)
    box[2], box[3] = max(box[2], end), y + 1
