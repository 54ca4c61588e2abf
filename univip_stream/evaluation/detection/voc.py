"""PASCAL VOC's own average precision, as its development kit and Detectron2 compute it.

Shape letters: D detections of a class, T truths of an image, R points of a recall curve.
"""

from collections.abc import Collection
from typing import Any

import numpy as np

from univip_stream.evaluation.detection.data import DetectionSet

_THRESHOLDS = np.arange(50, 100, 5) / 100
"""Overlaps of which Detectron2 takes the mean (02b5c4e, detectron2/evaluation/pascal_voc_evaluation.py)."""


def voc_precision(
    known: DetectionSet, found: list[dict[str, Any]], *, eleven: bool = True, without: Collection[int] = ()
) -> dict[str, float]:
    """Return VOC's AP over overlaps of .50 to .95 and at .50 and .75, means of the classes, 0 to 1: those of MoCo's tables.

    Each detection, by falling score, is matched with the truth that it overlaps most, whether that is taken or not; a second one
    on a truth is wrong, one on a difficult object does not count. COCO's AP matches with what is free and has 101 points. Boxes are
    not rounded to a tenth of a pixel, nor scores to a thousandth, as in Detectron2's text files.

    Args:
        known: annotated images; objects that are crowds are VOC's difficult ones.
        found: results of `score.detections`.
        eleven: the mean of the precision at eleven recalls, which is VOC 2007's rule; False is the area of 2010 and later.
        without: numbers of images that could not be read: neither they nor their objects count.

    """
    images = {image["id"]: number for number, image in enumerate(known.images) if number not in without}
    scores = []
    for category in known.categories:
        truths: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        count = 0
        for image, number in images.items():
            own = [row for row in known.annotations[number] if row["category_id"] == category["id"]]
            difficult = np.array([bool(row.get("iscrowd")) for row in own], bool)
            truths[image] = np.array([row["bbox"] for row in own], float).reshape(-1, 4), difficult
            count += int((~difficult).sum())
        if not count:
            continue  # a class that these images do not have has no precision
        rows = [row for row in found if row["category_id"] == category["id"] and row["image_id"] in images]
        rows.sort(key=lambda row: -row["score"])
        scores.append([_of_class(rows, truths, count, threshold, eleven) for threshold in _THRESHOLDS])
    mean = np.mean(scores, axis=0) if scores else np.zeros(len(_THRESHOLDS))
    return {"AP": float(mean.mean()), "AP50": float(mean[0]), "AP75": float(mean[5])}


def _of_class(
    rows: list[dict[str, Any]], truths: dict[int, tuple[np.ndarray, np.ndarray]], count: int, threshold: float, eleven: bool
) -> float:
    taken: set[tuple[int, int]] = set()
    right, wrong = np.zeros(len(rows)), np.zeros(len(rows))
    for at, row in enumerate(rows):
        boxes, difficult = truths[row["image_id"]]
        overlaps = _overlaps(np.array(row["bbox"], float), boxes)
        best = int(overlaps.argmax()) if len(overlaps) else -1
        if best < 0 or overlaps[best] <= threshold or (not difficult[best] and (row["image_id"], best) in taken):
            wrong[at] = 1
        elif not difficult[best]:
            right[at] = 1
            taken.add((row["image_id"], best))
    rights, wrongs = right.cumsum(), wrong.cumsum()
    return _area(rights / count, rights / np.maximum(rights + wrongs, np.finfo(float).eps), eleven)


def _overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of x, y, w, h, whose widths count both end pixels as VOC's do."""
    near = np.maximum(box[:2], boxes[:, :2])
    far = np.minimum(box[:2] + box[2:], boxes[:, :2] + boxes[:, 2:])
    shared = np.maximum(far - near, 0).prod(1)
    found: np.ndarray = shared / (box[2:].prod() + boxes[:, 2:].prod(1) - shared)
    return found


def _area(recall: np.ndarray, precision: np.ndarray, eleven: bool) -> float:
    if eleven:
        return float(np.mean([precision[recall >= point].max(initial=0) for point in np.arange(0, 1.1, 0.1)]))
    return area_under(recall, precision)


def area_under(recall: np.ndarray, precision: np.ndarray) -> float:
    """Return the area under a curve of precision over recall, each precision the highest of its recall or a larger one."""
    recall = np.concatenate([[0], recall, [1]])
    highest = np.maximum.accumulate(np.concatenate([[0], precision, [0]])[::-1])[::-1]
    return float((np.diff(recall) * highest[1:]).sum())
