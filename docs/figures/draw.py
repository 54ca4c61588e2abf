"""The pictures of docs/selective-search.md, drawn by the kernel itself from a photograph that scikit-image ships.

python docs/figures/draw.py            # writes docs/figures/*.jpg
"""

from pathlib import Path

import cv2
import numpy as np
import skimage.data

from univip_stream.boxes import filter_boxes
from univip_stream.proposals import fast, features, graph, grouping, pixels, propose

HERE = Path(__file__).parent
PHOTOGRAPH = Path(skimage.data.__file__).parent / "motorcycle_left.png"
COLOURS = [(66, 133, 244), (219, 68, 55), (244, 180, 0), (15, 157, 88), (171, 71, 188), (0, 172, 193), (255, 112, 67)]
GAP = 8


def segmentations(small: np.ndarray) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Of each scale in Lab: the region of every pixel, and the boxes of its hierarchy in the order of merging."""
    settings = fast.AT_256
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2Lab)
    height, width, _ = lab.shape
    right, down = pixels.weigh_edges(pixels.smooth(lab, fast.taps(settings.sigma)))
    keys = graph.sorted_keys(pixels.edge_keys(right, down, settings.thin))
    node, sizes, inners, a_nodes, b_nodes, weights = graph.contract(keys, height, width, min(settings.scales) * pixels.UNIT)
    found = []
    for k in settings.scales:
        region, regions, pairs = graph.segment(a_nodes, b_nodes, weights, sizes, inners, k * pixels.UNIT, settings.min_size)
        counts = features.cell_histograms(lab, features.texture_codes(lab), node, region, regions)
        found.append((region[node], grouping.group(pairs, *counts, height * width, True)))
    return found


def mean_coloured(small: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Every region in its mean colour, with its outline."""
    out = np.zeros(small.shape, np.float64)
    flat = region.ravel()
    for c in range(3):
        sums = np.bincount(flat, small[..., c].ravel())
        out[..., c] = (sums / np.bincount(flat))[flat].reshape(region.shape)
    edge = np.zeros(region.shape, bool)
    edge[:, 1:] |= region[:, 1:] != region[:, :-1]
    edge[1:] |= region[1:] != region[:-1]
    out[edge] = out[edge] * 0.4
    return out.astype(np.uint8)


def with_boxes(image: np.ndarray, boxes: np.ndarray, thickness: int = 2) -> np.ndarray:
    """The image, paled, with x, y, w, h boxes."""
    out = cv2.addWeighted(image, 0.6, np.full_like(image, 255), 0.4, 0)
    for number, (x, y, w, h) in enumerate(boxes.tolist()):
        cv2.rectangle(out, (x, y), (x + w - 1, y + h - 1), COLOURS[number % len(COLOURS)], thickness, cv2.LINE_AA)
    return out


def panel(image: np.ndarray, caption: str, width: int) -> np.ndarray:
    """An image at a width, with a line of text under it."""
    height = round(image.shape[0] * width / image.shape[1])
    shown = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if width < image.shape[1] else cv2.INTER_NEAREST)
    text = np.full((30, width, 3), 255, np.uint8)
    cv2.putText(text, caption, (4, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (40, 40, 40), 1, cv2.LINE_AA)
    return np.vstack([shown, text])


def save(name: str, rows: list[list[np.ndarray]]) -> None:
    """Panels side by side, rows under each other."""
    lines = []
    for row in rows:
        gaps = [np.full((part.shape[0], GAP, 3), 255, np.uint8) for part in row]
        lines.append(np.hstack([part for pair in zip(row, gaps, strict=True) for part in pair][:-1]))
    picture = np.vstack(lines)
    cv2.imwrite(str(HERE / name), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    print(HERE / name, picture.shape)


def main() -> None:
    """Draw all of them."""
    image = cv2.cvtColor(cv2.imread(str(PHOTOGRAPH)), cv2.COLOR_BGR2RGB)
    height, width = image.shape[:2]
    small = fast.working_copy(image, 256)
    found = segmentations(small)

    shown = [panel(image, f"the photograph, {width} x {height}", 440), panel(small, "1. the working copy", 440)]
    for k, (region, _) in zip(fast.AT_256.scales, found, strict=True):
        shown.append(panel(mean_coloured(small, region), f"4. k = {k}: {region.max() + 1} regions", 440))
    save("segments.jpg", [shown[:2], shown[2:4], shown[4:6]])

    region, boxes = found[1]
    count = region.max() + 1
    stages = []
    for left in (count // 2, 40, 12):
        merged = 2 * count - left  # boxes up to the merge that leaves so many regions
        latest = fast.full_size(boxes[merged - min(12, left) : merged], small.shape[1], small.shape[0], width, height)
        stages.append(panel(with_boxes(image, latest), f"6. the last merges until {left} regions are left", 440))
    save("hierarchy.jpg", [stages])

    ours = filter_boxes(propose(image))
    theirs = filter_boxes(propose(image, "opencv-fast"))
    save(
        "ranking.jpg",
        [
            [panel(with_boxes(image, ours[:10]), "7. the first ten, ranked by agreement", 440),
             panel(with_boxes(image, theirs[:10]), "OpenCV Fast's first ten, ranked by chance", 440)],
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
