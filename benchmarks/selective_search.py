"""Selective search: speed and quality of every engine, against OpenCV Fast in the same run.

    python benchmarks/selective_search.py                                    # speed, on images drawn here
    python benchmarks/selective_search.py --images coco/val2017 --annotations coco/annotations/instances_val2017.json

Speed: one thread each, the engines taken in turn for every image, medians. Quality: boxes after the paper's filter (64 px,
aspect 3, IoU 0.5) against ground-truth boxes with sides of at least 64 px: recall at IoU 0.5 and 0.7 and mean best overlap
with the first 10, 30 and 100 boxes. Where OpenCV is ranked by our agreement, the row says so: the ranking is most of the
gain in quality at few boxes, and it works on OpenCV's boxes too.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from univip_stream.boxes import filter_boxes, iou
from univip_stream.proposals import propose, ranking

COUNTS = (10, 30, 100)
Engine = Callable[[np.ndarray], np.ndarray]


def on_a_copy(image: np.ndarray, side: int = 256) -> np.ndarray:
    """OpenCV Fast on a copy of 256 px a side: the usual shortcut, and the fair peer of a working resolution."""
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    small = cv2.resize(image, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    boxes = propose(small, "opencv-fast") / scale
    boxes[:, 2:] += boxes[:, :2]
    edges = np.minimum(np.round(boxes), (width, height, width, height)).astype(np.int32)
    return np.concatenate([edges[:, :2], np.maximum(edges[:, 2:] - edges[:, :2], 1)], axis=1)


def by_agreement(boxes: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The same boxes in our order."""
    edges = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    return ranking.ranked(edges, np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2Lab), np.uint8), xywh)


def xywh(edges: np.ndarray) -> np.ndarray:
    return np.concatenate([edges[:, :2], edges[:, 2:] - edges[:, :2]], axis=1)


ENGINES: dict[str, Engine] = {
    "opencv-fast": lambda image: propose(image, "opencv-fast"),
    "opencv-fast, 256 px copy": on_a_copy,
    "selective-search-exact": lambda image: propose(image, "selective-search-exact"),
    **{
        f"selective-search, {side} px": lambda image, side=side: propose(image, working_resolution=side)
        for side in (128, 160, 192, 224, 256, 320, 400, 512, 640)
    },
    "selective-search, fast=true": lambda image: propose(image, fast=True),
}
DEFAULT, FAST = "selective-search, 256 px", "selective-search, fast=true"


def drawn_images(count: int) -> dict[str, np.ndarray]:
    """Multi-object scenes of 640 x 480, for speed alone."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pipelines"))
    from demo_images import SHAPES, draw_scene

    rng = np.random.default_rng(0)
    return {f"drawn {n}": draw_scene(SHAPES[n % len(SHAPES)], rng, 640, 480) for n in range(count)}


def read_images(folder: Path, annotations: Path, count: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Images with their ground-truth boxes of at least 64 px a side (crowds left out, BSDS's stuff segments too)."""
    data = json.loads(annotations.read_text())
    names = {image["id"]: Path(image["file_name"]).name for image in data["images"]}
    paths = {path.name: path for path in folder.rglob("*.jpg")}
    truth: dict[str, list[list[int]]] = {}
    for annotation in data["annotations"]:
        x, y, w, h = annotation["bbox"]
        if min(w, h) >= 64 and not annotation.get("iscrowd") and annotation.get("object_like", True):
            truth.setdefault(names[annotation["image_id"]], []).append([round(v) for v in (x, y, w, h)])
    chosen = [name for name in sorted(truth) if name in paths][:count]
    images = {name: cv2.cvtColor(cv2.imread(str(paths[name])), cv2.COLOR_BGR2RGB) for name in chosen}
    return images, {name: np.array(truth[name]) for name in chosen}


def quality(boxes: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> np.ndarray:
    """3 x 3: for each number of boxes recall at 0.5, recall at 0.7, mean best overlap."""
    best: dict[int, list[float]] = {count: [] for count in COUNTS}
    for name, objects in truth.items():
        overlap = iou(objects, filter_boxes(boxes[name]))
        for count in COUNTS:
            best[count] += overlap[:, :count].max(axis=1, initial=0.0).tolist()
    values = [np.array(best[count]) for count in COUNTS]
    return np.array([[np.mean(v >= 0.5), np.mean(v >= 0.7), v.mean()] for v in values])


def shown(scores: np.ndarray) -> str:
    """The nine numbers and their mean."""
    return " | ".join(" ".join(f"{value:.3f}" for value in row) for row in scores) + f" | {scores.mean():.3f}"


def pareto(milliseconds: dict[str, float], scores: dict[str, np.ndarray]) -> set[str]:
    """The engines that no other one beats in both time and the mean of the nine numbers."""
    return {
        name
        for name in scores
        if not any(
            milliseconds[other] < milliseconds[name] and scores[other].mean() >= scores[name].mean() for other in scores
        )
    }


def parity(boxes: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> str:
    """How many of the reference's boxes are found exactly, and at IoU 0.9; means over images."""
    identical, near = [], []
    for name, wanted in reference.items():
        overlap = iou(wanted, boxes[name]).max(axis=1, initial=0.0)
        identical.append(np.mean(overlap == 1.0))
        near.append(np.mean(overlap >= 0.9))
    return f"{np.mean(identical):.1%} identical (worst image {np.min(identical):.1%}), {np.mean(near):.1%} at IoU >= 0.9"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path)
    parser.add_argument("--annotations", type=Path)
    parser.add_argument("--count", type=int, default=40, help="images")
    parser.add_argument("--opencv-quality", action="store_true", help="also OpenCV's Quality mode, ten times Fast's cost")
    options = parser.parse_args()
    truth: dict[str, np.ndarray] = {}
    if options.images:
        images, truth = read_images(options.images, options.annotations, options.count)
    else:
        images = drawn_images(options.count)
    if options.opencv_quality:
        ENGINES["opencv-quality"] = lambda image: propose(image, "opencv-quality")
    cv2.setNumThreads(1)
    first = next(iter(images.values()))
    for engine in ENGINES.values():
        engine(first)  # compile, start OpenCV's process

    seconds: dict[str, list[float]] = {name: [] for name in ENGINES}
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in ENGINES}
    for done, (image_name, image) in enumerate(images.items(), 1):
        for name, engine in ENGINES.items():
            began = time.perf_counter()
            found[name][image_name] = engine(image)
            seconds[name].append(time.perf_counter() - began)
        print(f"\r{done}/{len(images)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)

    report(images, truth, seconds, found)


def report(
    images: dict[str, np.ndarray],
    truth: dict[str, np.ndarray],
    seconds: dict[str, list[float]],
    found: dict[str, dict[str, np.ndarray]],
) -> None:
    """Print the table."""
    objects = sum(map(len, truth.values()))
    sizes = {image.shape[:2] for image in images.values()}
    print(f"{len(images)} images of {len(sizes)} sizes, median {np.median([i.size // 3 for i in images.values()]) / 1e3:.0f} "
          f"thousand pixels; {objects} objects")  # fmt: skip
    print(f"{'':38}{'ms':>8}{'ratio':>7}{'boxes':>7}   R.5 R.7 overlap at 10 | 30 | 100 boxes | mean of all; * Pareto front")
    peer = np.array(seconds["opencv-fast"])
    milliseconds = {name: float(np.median(values)) * 1e3 for name, values in seconds.items()}
    scores = {name: quality(boxes, truth) for name, boxes in found.items()} if truth else {}
    front = pareto(milliseconds, scores)
    for name, values in seconds.items():
        ratio = np.median(peer / np.array(values))
        boxes = np.mean([len(b) for b in found[name].values()])
        row = f"{'* ' if name in front else '  '}{name:36}{milliseconds[name]:8.1f}{ratio:7.1f}{boxes:7.0f}"
        print(row + (f"   {shown(scores[name])}" if truth else "") + ("   <- default" if name == DEFAULT else ""))
    usual = [at for at, image in enumerate(images.values()) if max(image.shape) == 640 and 427 <= min(image.shape[:2]) <= 480]
    if usual:
        for name, engine in {"default": DEFAULT, "fast=true": FAST}.items():
            low, middle, high = np.percentile(peer[usual] / np.array(seconds[engine])[usual], [5, 50, 95])
            print(f"{name} on the {len(usual)} images of 640 x 427 to 640 x 480: {middle:.0f} times OpenCV Fast's speed "
                  f"(5 % of them below {low:.0f}, 5 % above {high:.0f})")  # fmt: skip
    print(
        f"OpenCV Fast's boxes found by selective-search-exact: {parity(found['selective-search-exact'], found['opencv-fast'])}"
    )
    if truth:
        for name in ("opencv-fast", "opencv-fast, 256 px copy"):
            reranked = {image: by_agreement(boxes, images[image]) for image, boxes in found[name].items()}
            print(f"  {name + ', our ranking':36}{'':22}   {shown(quality(reranked, truth))}")


if __name__ == "__main__":
    main()
