"""What selective search compares regions by (Uijlings et al., IJCV 2013, section 3.2): colour and texture histograms.

Counts of pixels, so that a region's are the sum of its parts'. Shape letters: A cells, n regions, C bins of colour, T bins
of texture.
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
"""Bins of a derivative along one line: nine each way, and one in the middle that both directions share."""


@kernel
def texture_codes(image: np.ndarray) -> np.ndarray:
    """Each pixel's bin of each derivative.

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
        plane[0] = plane[min(2, height)]
        plane[height + 1] = plane[max(height - 1, 1)]
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


@kernel
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


@kernel
def cell_histograms(
    image: np.ndarray, codes: np.ndarray, node: np.ndarray, cell: np.ndarray, cells: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Histograms, boxes and sizes of every cell; the only place that looks at pixels of regions.

    Args:
        image: uint8, height x width x 3.
        codes: uint8, 3 x 4 x height x width, as `texture_codes` gives them.
        node: uint32, height x width.
        cell: uint32, one of each node.
        cells: how many.

    Returns:
        int32 A x C; int32 A x T; int32 A x 4 left, top, right, bottom; int32 A pixels.

    """
    height, width, _ = image.shape
    boxes = np.empty((cells, 4), np.int32)
    for at in range(cells):
        boxes[at] = (width, height, 0, 0)
    sizes = np.zeros(cells, np.int32)
    colour = np.zeros((3, cells * COLOUR_BINS), np.int32)
    signed = np.zeros((12, cells * _SIGNED), np.int32)
    labels = np.empty(width, np.uint32)
    for y in range(height):
        for x in range(width):
            label = cell[node[y, x]]
            labels[x] = label
            sizes[label] += 1
            box = boxes[label]
            box[0] = min(box[0], x)
            box[1] = min(box[1], y)
            box[2] = max(box[2], x + 1)
            box[3] = max(box[3], y + 1)
        for c in range(3):
            # Four counters at a time: in flat areas each would wait for its own last count.
            of_colour, row = colour[c], image[y]
            one, two, three, four = signed[4 * c], signed[4 * c + 1], signed[4 * c + 2], signed[4 * c + 3]
            code_1, code_2, code_3, code_4 = codes[c, 0, y], codes[c, 1, y], codes[c, 2, y], codes[c, 3, y]
            for x in range(width):
                first = np.uint32(labels[x] * np.uint32(_SIGNED))
                one[np.uint32(first + code_1[x])] += 1
                two[np.uint32(first + code_2[x])] += 1
                three[np.uint32(first + code_3[x])] += 1
                four[np.uint32(first + code_4[x])] += 1
                of_colour[
                    np.uint32(
                        labels[x] * np.uint32(COLOUR_BINS) + np.uint32(row[x, c]) * np.uint32(COLOUR_BINS) // np.uint32(256)
                    )
                ] += 1
    colours = np.empty((cells, COLOURS), np.int32)
    for at in range(cells):
        for c in range(3):
            for bin_ in range(COLOUR_BINS):
                colours[at, c * COLOUR_BINS + bin_] = colour[c, at * COLOUR_BINS + bin_]
    return colours, _by_direction(signed, cells), boxes, sizes


@kernel
def _by_direction(signed: np.ndarray, cells: int) -> np.ndarray:
    """19 signed bins a derivative -> 10 bins for each of its two signs; what has the other sign counts as no slope."""
    texture = np.zeros((cells, 24 * TEXTURE_BINS), np.int32)
    for cell in range(cells):
        out = texture[cell]
        for at in range(12):
            counts = signed[at, cell * _SIGNED : (cell + 1) * _SIGNED]
            rise, fall = out[2 * at * TEXTURE_BINS :], out[(2 * at + 1) * TEXTURE_BINS :]
            rises, falls = np.int32(0), np.int32(0)
            for bin_ in range(1, TEXTURE_BINS):
                rise[bin_] = counts[TEXTURE_BINS - 1 + bin_]
                fall[bin_] = counts[TEXTURE_BINS - 1 - bin_]
                rises += rise[bin_]
                falls += fall[bin_]
            flat = counts[TEXTURE_BINS - 1]
            rise[0], fall[0] = flat + falls, flat + rises
    return texture
