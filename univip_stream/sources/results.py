"""COCO's list of results: what a detector or a proposer found, a box an entry, with a score."""

import math
from array import array
from typing import Any

import numpy as np

from univip_stream.errors import InputError
from univip_stream.sources.coco import NO_BOX, has_no_box, whole_number
from univip_stream.sources.jsonstream import JsonStream
from univip_stream.sources.published import Published


def read_results(published: Published, stream: JsonStream) -> None:
    """Read `[{"image_id": 1, "category_id": 1, "bbox": [x, y, w, h], "score": 0.9}, ...]` (cocodataset.org/#format-results).

    Images are called by their ids. An image's boxes are ranked by their score, of any category; of equal ones the earlier is
    the better.

    Raises:
        InputError: an entry without image_id or score, or with another bbox than four numbers.

    """
    images, boxes, scores = array("q"), array("d"), array("d")
    empty = 0
    for at, entry in enumerate(stream.elements(), 1):
        if not isinstance(entry, dict):
            raise InputError(f"{published.location}: entry {at} is {entry!r:.60}; expected a list of results, each an object")
        image, score, box = whole_number(entry.get("image_id")), entry.get("score"), entry.get("bbox")
        if image is None or not _number(score):
            raise InputError(
                f"{published.location}: entry {at} has image_id {entry.get('image_id')!r} and score {score!r}; expected a whole "
                "number and a number, as COCO's list of results has them"
            )
        if has_no_box(box):  # a result that has only a mask
            empty += 1
            continue
        if not isinstance(box, list) or len(box) != 4 or not all(_number(value) for value in box):
            raise InputError(f"{published.location}: entry {at} has bbox {box!r:.80}; expected four numbers x, y, w, h")
        images.append(image)
        boxes.extend(box)
        scores.append(float(score))  # type: ignore[arg-type]
    stream.finish()
    published.by_id = True
    published.left_out = {NO_BOX: empty} if empty else {}
    if not images:
        return
    numbers, found = np.frombuffer(images, np.int64), np.frombuffer(boxes, np.float64).reshape(-1, 4)
    order = np.lexsort([-np.frombuffer(scores, np.float64), numbers])  # stable
    ids, first = np.unique(numbers[order], return_index=True)
    for image, own in zip(ids.tolist(), np.split(found[order], first[1:]), strict=True):
        published.add(str(image), own)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
