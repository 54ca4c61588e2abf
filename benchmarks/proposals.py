"""Proposals in the field's own metric: COCO's box AR, without classes, for every engine in one run.

    python benchmarks/proposals.py --images coco/val2017 --annotations coco/annotations/instances_val2017.json
    python benchmarks/proposals.py --images ... --annotations ... --engines 'selective-search' grid --rounds 3
    python benchmarks/proposals.py --images ... --annotations ... --engines selective-search --rank-by runs/first random:resnet18

AR is the recall averaged over the IoUs .50, .55, ... .95, one box to one object, as pycocotools counts it with useCats = 0: of
objects of all areas, and of small (to 32 ** 2 pixels), medium and large ones (from 96 ** 2) by the annotation's own `area`.
Crowds, and BSDS's stuff segments, are left out. R.5 is the recall at IoU .5. The last columns are what a run that trains on the
boxes sees: recall at IoU .7 of objects with sides of 64 pixels and more, by the first boxes that the paper's filter keeps.
Milliseconds are CPU time of one thread: each image's least of some rounds, the engines in turn, then the median over images,
since other work may share the machine.

"as of version 4" rows are the engine's boxes in the order that it gave them before it looked at what is covered already.
"""

import argparse
import ctypes
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numba
import numpy as np

from univip_stream.boxes import filter_boxes, iou
from univip_stream.proposals import propose, ranking

COUNTS = (1, 10, 100, 1000)
IOUS = np.linspace(0.5, 0.95, 10)
SIZES = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
Engine = Callable[[np.ndarray], np.ndarray]

PUBLISHED = (
    (
        "selective search, COCO val2017",
        "1.5 at 10, 10.9 at 100; DETReg 12.7, FreeSOLO 15.3 at 100 (they train without labels); arXiv:2106.04550, 2202.12181",
    ),
    (
        "selective search, COCO 2014",
        "5 / 16 / 36 at 10 / 100 / 1000; EdgeBoxes 7 / 18 / 34, MCG 10 / 25 / 40 (25 s an image); read by another off curves of "
        "arXiv:1506.06204, 1603.08695; why they disagree with the row above neither says",
    ),
    ("CutLER, COCO val2017", "32.7 at 100: a detector, trained on ImageNet without labels; arXiv:2301.11320"),
)
"""From DETReg (arXiv:2106.04550), FreeSOLO (arXiv:2202.12181), CutLER (arXiv:2301.11320), and curves of DeepMask's and SharpMask's
papers (arXiv:1506.06204, 1603.08695), as another's survey read them: on their images, all of COCO's."""


def opencv_fast(image: np.ndarray) -> np.ndarray:
    """OpenCV in this process, so that its CPU time can be seen; its order is random, here from one seed."""
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(image[..., ::-1]))
    search.switchToSelectiveSearchFast()
    ctypes.CDLL(None).srand(1)
    return np.asarray(search.process(), np.int32).reshape(-1, 4)


def by_agreement(boxes: np.ndarray) -> np.ndarray:
    """The boxes by votes alone, larger first among equals."""
    edges = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    unique = ranking.unique_boxes(edges)
    edges = unique[np.argsort(ranking.neighbours(unique, 70), kind="stable")[::-1]]
    return np.concatenate([edges[:, :2], edges[:, 2:] - edges[:, :2]], axis=1)


def suppressed(boxes: np.ndarray) -> np.ndarray:
    """Plain non-maximum suppression at 0.7 bolted on; what it drops comes last."""
    kept = filter_boxes(boxes, 1, 1e9, 0.7)
    names = set(map(tuple, kept.tolist()))
    return np.concatenate([kept, np.array([b for b in boxes.tolist() if tuple(b) not in names], np.int32).reshape(-1, 4)])


ENGINES: dict[str, Engine] = {
    "opencv-fast": opencv_fast,
    "selective-search": propose,
    "selective-search, small=false": lambda image: propose(image, small=False),
    "as of version 4": lambda image: by_agreement(propose(image, small=False)),
    "as of version 4, then NMS 0.7": lambda image: suppressed(by_agreement(propose(image, small=False))),
    "selective-search, fast=true": lambda image: propose(image, fast=True),
    "selective-search, 128 px": lambda image: propose(image, working_resolution=128, small=False),
    "selective-search-exact": lambda image: propose(image, "selective-search-exact"),
    "edge-boxes": lambda image: propose(image, "edge-boxes"),
    "watershed": lambda image: propose(image, "watershed"),
    "grid": lambda image: propose(image, "grid"),
    "naive, 1000 boxes": lambda image: propose(image, "naive", count=1000),
}
ORDERS = ("as of version 4", "as of version 4, then NMS 0.7")
"""Orders computed for comparison: their time is no engine's."""


def ranked_by(run: str) -> Engine:
    """The default's boxes as `refilter --rank-by RUN` ranks them; its time is that of both."""
    from univip_stream.evaluation.ranking import ranker_of, ranking_file

    ranker = ranker_of(ranking_file(run)[1])

    def engine(image: np.ndarray) -> np.ndarray:
        boxes = propose(image)
        return boxes[ranker(np.ascontiguousarray(image), boxes)]

    return engine


@numba.njit
def matched(boxes: np.ndarray, objects: np.ndarray, ious: np.ndarray) -> np.ndarray:
    """Return at which box each object is found, T x G (a huge number: never), by pycocotools' rules.

    In their order, each box takes the object that it overlaps most of those still free, if by at least t; of equals, the last.

    Args:
        boxes: float64 N x 4 x, y, w, h, best first.
        objects: float64 G x 4.
        ious: float64 T.

    """
    rank = np.full((len(ious), len(objects)), 1 << 30)
    for t in range(len(ious)):
        for at in range(len(boxes)):
            best, which = min(ious[t], 1 - 1e-10), -1
            for g in range(len(objects)):
                if rank[t, g] < 1 << 30:
                    continue
                box, other = boxes[at], objects[g]
                wide = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
                high = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
                if wide <= 0 or high <= 0:
                    continue
                shared = wide * high
                overlap = shared / (box[2] * box[3] + other[2] * other[3] - shared)
                if overlap >= best:
                    best, which = overlap, g
            if which >= 0:
                rank[t, which] = at
    return rank


def recalls(boxes: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of objects of each size: recall at each IoU (rows) with each number of boxes (columns); NaN without objects."""
    result = {}
    for size, (least, most) in SIZES.items():
        found, objects = np.zeros((len(IOUS), len(COUNTS))), 0
        for name, drawn in truth.items():
            chosen = drawn[(drawn[:, 4] >= least) & (drawn[:, 4] <= most)]
            rank = matched(boxes[name][: max(COUNTS)].astype(np.float64), chosen[:, :4].copy(), IOUS)
            found += np.stack([(rank < count).sum(axis=1) for count in COUNTS], axis=1)
            objects += len(chosen)
        result[size] = found / objects if objects else np.full(found.shape, np.nan)
    return result


def filtered_recalls(boxes: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> list[float]:
    """Of objects with sides of at least 64 pixels: recall at IoU .7 by the first 10, 30 and 100 boxes after the paper's filter."""
    found, objects = np.zeros(3), 0
    for name, drawn in truth.items():
        large = np.floor(drawn[np.minimum(drawn[:, 2], drawn[:, 3]) >= 64, :4])
        overlaps = iou(filter_boxes(boxes[name]), large)
        if overlaps.size:
            found += [(overlaps[:count].max(axis=0) >= 0.7).sum() for count in (10, 30, 100)]
        objects += len(large)
    return (100 * found / objects).tolist() if objects else [np.nan] * 3


def read_images(folder: Path, annotations: Path, count: int) -> tuple[dict[str, Path], dict[str, np.ndarray]]:
    """Images by name, and their objects: x, y, w, h, area."""
    data = json.loads(annotations.read_text())
    names = {image["id"]: Path(image["file_name"]).name for image in data["images"]}
    paths = {path.name: path for path in folder.rglob("*.jpg")}
    truth: dict[str, list[list[float]]] = {}
    for annotation in data["annotations"]:
        if not annotation.get("iscrowd") and annotation.get("object_like", True):
            truth.setdefault(names[annotation["image_id"]], []).append([*annotation["bbox"], annotation["area"]])
    chosen = [name for name in sorted(truth) if name in paths][:count]
    return {name: paths[name] for name in chosen}, {name: np.array(truth[name], np.float64) for name in chosen}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEG images")
    parser.add_argument("--annotations", type=Path, required=True, help="their objects, in COCO's JSON")
    parser.add_argument("--count", type=int, help="images; all by default")
    parser.add_argument(
        "--engines", nargs="+", choices=ENGINES, default=list(ENGINES), metavar="NAME", help="; ".join(ENGINES)
    )
    parser.add_argument("--rank-by", nargs="+", default=[], metavar="RUN", help="also the default ranked by these runs")
    parser.add_argument("--rounds", type=int, default=3, help="of engines that take less than 100 ms")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    engines = {name: ENGINES[name] for name in options.engines} | {f"by {run}": ranked_by(run) for run in options.rank_by}
    paths, truth = read_images(options.images, options.annotations, options.count)
    if not paths:
        parser.error(
            f"no image of {options.images} has objects in {options.annotations}; expected COCO's JSON of these images"
        )
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in engines}
    usual = []
    for done, (name, path) in enumerate(paths.items(), 1):
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        usual.append(max(image.shape) == 640 and 427 <= min(image.shape[:2]) <= 480)
        if done == 1:
            for engine in engines.values():
                engine(image)  # compile
        least = dict.fromkeys(engines, np.inf)
        for lap in range(options.rounds):
            for engine, function in engines.items():
                if lap and (engine in ORDERS or least[engine] > 0.1):
                    continue
                began = time.thread_time()
                found[engine][name] = function(image)
                least[engine] = min(least[engine], time.thread_time() - began)
        for engine, best in least.items():
            seconds[engine].append(best)
        print(f"\r{done}/{len(paths)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    report(truth, seconds, found, np.array(usual))


def report(
    truth: dict[str, np.ndarray], seconds: dict[str, list[float]], found: dict[str, dict[str, np.ndarray]], usual: np.ndarray
) -> None:
    """Print the table, with the published rows under it."""
    objects = np.concatenate(list(truth.values()))
    counts = {s: int(((objects[:, 4] >= low) & (objects[:, 4] <= high)).sum()) for s, (low, high) in SIZES.items()}
    print(f"{len(truth)} images; objects: {counts}; AR and R in percent")
    print(f"ms: of the {usual.sum()} images of 640 x 427 to 640 x 480, or of all if there is none")
    numbers = "/".join(map(str, COUNTS))
    columns = (f"AR@{numbers:17}", "AR@100 s/m/l   ", "AR@1000 s/m/l  ", f"R.5@{numbers}      ", "kept, R.7@10/30/100")
    print(f"{'':32}{'ms':>8}{'boxes':>7} | " + " | ".join(columns))
    for engine, values in seconds.items():
        measured = np.array(values)[usual] if usual.any() else np.array(values)
        shown = "-" if engine in ORDERS else f"{1e3 * np.median(measured):.1f}"
        scores = recalls(found[engine], truth)
        ar = {size: 100 * of.mean(axis=0) for size, of in scores.items()}
        parts = [
            ar["all"],
            *([ar[size][at] for size in ("small", "medium", "large")] for at in (2, 3)),
            100 * scores["all"][0],
            filtered_recalls(found[engine], truth),
        ]
        boxes = np.mean([len(b) for b in found[engine].values()])
        print(
            f"{engine if len(engine) < 33 else '...' + engine[-29:]:32}{shown:>8}{boxes:7.0f} | "
            + " | ".join("".join(f"{value:5.1f}" for value in part) for part in parts)
        )
    for name, figures in PUBLISHED:
        print(f"published: {name}: {figures}")


if __name__ == "__main__":
    main()
