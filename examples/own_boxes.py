"""Boxes of your own in place of selective search, by a function of an image, and what they look like.

python examples/own_boxes.py photos out
"""

import sys
from pathlib import Path

import numpy as np

from univip_stream.mining import MiningConfig, mine
from univip_stream.shards import expand_shards, open_index


def thirds(image: np.ndarray) -> np.ndarray:
    """The nine fields of the rule of thirds, the middle one first: int N x 4, x, y, w, h in pixels, best first."""
    height, width = image.shape[:2]
    w, h = width // 3, height // 3
    fields = [(column * w, row * h, w, h) for row in range(3) for column in range(3)]
    return np.array(sorted(fields, key=lambda box: abs(box[0] - w) + abs(box[1] - h)))


def main() -> None:
    """Mine, then count."""
    photographs, out = Path(sys.argv[1]), Path(sys.argv[2])
    # Workers import the function by name, so it stands in a module: this file.
    report = mine(MiningConfig(sources=(photographs,), out=out, proposals="own_boxes:thirds", inline=True))
    index = open_index(expand_shards(str(out)))
    print(f"{report.mined} images, {len(index.boxes)} boxes, {len(index.boxes) / len(index):.1f} an image")
    print(f"the first image's boxes: {index.boxes_of(0).tolist()}")


if __name__ == "__main__":
    main()
