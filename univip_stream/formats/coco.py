"""COCO's JSON: reads and writes instances files with one box per annotation; also reads lists of results."""

import itertools
import json
import math
from array import array
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

import numpy as np

from univip_stream import __version__, storage
from univip_stream.errors import InputError
from univip_stream.files import written_atomically
from univip_stream.formats.base import Choice, Export, Format
from univip_stream.formats.collected import Boxes
from univip_stream.formats.shards import Fact
from univip_stream.sources.coco import NO_BOX, has_no_box, read_annotations, whole_number
from univip_stream.sources.jsonstream import JsonStream
from univip_stream.sources.names import path_of, repeated


class COCOFormat(Format):
    """COCO's JSON: images, one box per annotation, one category. A list of results can be read too."""

    name = "coco"
    summary = "COCO JSON of the shards' filtered boxes"
    upright = True  # unless --box-frame says otherwise
    frame_selectable = True
    choice: ClassVar[Choice | None] = None
    category: ClassVar[str] = "object"

    def read(self, boxes: Boxes, annotations: tuple[str, ...]) -> None:
        with storage.opened(boxes.location) as file:
            stream = JsonStream(file, boxes.location)
            if stream.at_array():
                _read_results(boxes, stream)
                return
        found = read_annotations(boxes.location, with_boxes=True)
        boxes.sizes, boxes.left_out = found.sizes, found.left_out
        for name, image_id in found.ids.items():
            drawn = found.boxes_of(image_id)
            boxes.add(name, [] if drawn is None else list(drawn))

    def write(self, export: Export) -> None:
        ids = _Ids(export)
        with written_atomically(export.out) as file:
            # pycocotools 2.0.9 and 2.0.10 read no results beside a file without `info`; COCO's own have both.
            info = {"description": f"region proposals, written by univip-stream {__version__}"}
            file.write(f'{{"info": {json.dumps(info)}, "licenses": [], "images": ['.encode())
            id_of = ids.in_order()
            for at, fact in enumerate(export.facts()):
                width, height = fact.size(export.upright)
                name = path_of(fact.source, export.shards.sources)
                _append(file, at, {"id": id_of(fact), "file_name": name, "width": width, "height": height})
            file.write(b'], "annotations": [')
            id_of = ids.in_order()
            for fact, candidates in export.rows():
                kept, image = export.chosen(fact, candidates), id_of(fact)
                for at, (x, y, w, h) in enumerate(kept.tolist(), export.written.boxes):
                    annotation = {"id": at + 1, "image_id": image, "category_id": 1, "bbox": [x, y, w, h]}
                    _append(file, at, annotation | {"area": w * h, "iscrowd": 0})
                export.written.count(kept)
            file.write(f'], "categories": [{json.dumps({"id": 1, "name": self.category})}]}}'.encode())
        export.written.files = [str(export.out)]


def _read_results(boxes: Boxes, stream: JsonStream) -> None:
    """Read `[{"image_id": 1, "category_id": 1, "bbox": [x, y, w, h], "score": 0.9}, ...]` (cocodataset.org/#format-results).

    Images are named by their ids. The boxes of an image, of all categories, are ranked by score; of equal scores the earlier
    box comes first.

    Raises:
        InputError: an entry lacks image_id or score, or its bbox is not four numbers.

    """
    images, drawn, scores = array("q"), array("d"), array("d")
    empty = 0
    for at, entry in enumerate(stream.elements(), 1):
        if not isinstance(entry, dict):
            raise InputError(f"{boxes.location}: entry {at} is {entry!r:.60}; expected a list of results, each an object")
        image, score, box = whole_number(entry.get("image_id")), entry.get("score"), entry.get("bbox")
        if image is None or not _number(score):
            raise InputError(
                f"{boxes.location}: entry {at} has image_id {entry.get('image_id')!r} and score {score!r}; expected a whole "
                "number and a number, as COCO's list of results has them"
            )
        if has_no_box(box):  # a result that has only a mask
            empty += 1
            continue
        if not isinstance(box, list) or len(box) != 4 or not all(_number(value) for value in box):
            raise InputError(f"{boxes.location}: entry {at} has bbox {box!r:.80}; expected four numbers x, y, w, h")
        images.append(image)
        drawn.extend(box)
        scores.append(float(score))  # type: ignore[arg-type]
    stream.finish()
    boxes.by_id = True
    boxes.left_out = {NO_BOX: empty} if empty else {}
    if not images:
        return
    numbers, found = np.frombuffer(images, np.int64), np.frombuffer(drawn, np.float64).reshape(-1, 4)
    order = np.lexsort([-np.frombuffer(scores, np.float64), numbers])  # stable
    ids, first = np.unique(numbers[order], return_index=True)
    for image, own in zip(ids.tolist(), np.split(found[order], first[1:]), strict=True):
        boxes.add(str(image), own)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _append(file: BinaryIO, at: int, fields: dict[str, Any]) -> None:
    file.write(b",\n" * (at > 0) + json.dumps(fields, ensure_ascii=False).encode())


class _Ids:
    """The image ids of an export: COCO's id, or the next free number if there is none. It holds eight bytes an image.

    Raises:
        InputError: two images have the same id.

    """

    def __init__(self, export: Export):
        known = array("q", (fact.image_id for fact in export.facts() if fact.image_id is not None))
        if suspects := repeated(known):
            owners: dict[int, str] = {}
            for fact in export.facts():
                if fact.image_id in suspects and (other := owners.setdefault(fact.image_id, fact.source)) != fact.source:
                    raise InputError(
                        f"{other} and {fact.source} both have the image id {fact.image_id}; expected each once: export sets of "
                        "their own"
                    )
        self._largest = max(known, default=0)

    def in_order(self) -> Callable[[Fact], int]:
        """Return a function that gives the id of each image, if it is asked for all of them in their order."""
        following = itertools.count(self._largest + 1)
        return lambda fact: next(following) if fact.image_id is None else fact.image_id
