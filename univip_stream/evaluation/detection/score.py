"""Compute average precision with pycocotools, the papers' own scorer."""

from collections.abc import Collection, Iterable
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
from torch import Tensor

from univip_stream.evaluation.detection.data import DetectionSet

_NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
"""The first six of COCO's twelve numbers."""


def detections(known: DetectionSet, number: int, found: dict[str, Tensor]) -> Iterable[dict[str, Any]]:
    """Yield a detector's results on an image in the form of COCO's result files.

    Args:
        known: set of the image.
        number: number of the image.
        found: torchvision's `boxes` (x1, y1, x2, y2), `scores`, `labels` from 0, and perhaps `masks` N x 1 x height x width.

    """
    boxes = found["boxes"].cpu().numpy().astype(float)
    boxes[:, 2:] -= boxes[:, :2]
    masks = _encoded(found["masks"]) if "masks" in found else [None] * len(boxes)
    rows = zip(boxes.tolist(), found["scores"].tolist(), found["labels"].tolist(), masks, strict=True)
    for box, score, label, mask in rows:
        row: dict[str, Any] = {
            "image_id": known.images[number]["id"], "category_id": known.categories[label]["id"], "bbox": box, "score": score,
        }  # fmt: skip
        if mask is not None:
            row["segmentation"] = mask
        yield row


def average_precision(
    known: DetectionSet, found: list[dict[str, Any]], kind: str, *, without: Collection[int] = ()
) -> dict[str, float]:
    """Return COCO's AP over IoU .50 to .95, at .50 and .75, and by size, 0 to 1; a size without objects is -1.

    Args:
        known: annotated images.
        found: results of `detections`.
        kind: "bbox" or "segm".
        without: numbers of images that could not be read: neither they nor their objects count.

    """
    from pycocotools.cocoeval import COCOeval

    if not found:
        return dict.fromkeys(_NAMES, 0.0)
    with redirect_stdout(StringIO()):
        results = known.truth.loadRes([dict(row) for row in found])
        scorer = COCOeval(known.truth, results, kind)
        scorer.params.imgIds = [image["id"] for number, image in enumerate(known.images) if number not in without]
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return dict(zip(_NAMES, map(float, scorer.stats[:6]), strict=True))


def _encoded(masks: Tensor) -> list[dict[str, Any]]:
    """Return the run lengths of each mask, thresholded at 0.5."""
    from pycocotools import mask as rle

    found: list[dict[str, Any]] = []
    for picture in (masks[:, 0] > 0.5).cpu().numpy():
        code = rle.encode(np.asfortranarray(picture.astype(np.uint8)))
        found.append({"size": code["size"], "counts": code["counts"].decode()})
    return found
