"""ORL (Jiahao000/ORL): one JSON file with boxes in the order of the annotations."""

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from univip_stream import storage
from univip_stream.errors import InputError
from univip_stream.files import Scratch, written_atomically
from univip_stream.formats.base import Export, Format
from univip_stream.formats.collected import Boxes
from univip_stream.sources.coco import listed_images
from univip_stream.sources.jsonstream import JsonStream
from univip_stream.sources.names import ByName, path_below


class ORLFormat(Format):
    """`{"bbox": [[[x, y, w, h], ...] per image]}`, in the order of the annotations; every image has at least one box.

    ORL filters when it reads, and takes the first box if none passes. So an image whose boxes are all filtered out here keeps
    its first box, and one without boxes gets the whole image as a box.
    """

    name = "orl"
    summary = "ORL: one JSON, boxes in the order of the annotations, unfiltered"
    annotations = "order"

    def image_name(self, source: str, image_id: int | None, sources: Sequence[str]) -> str:
        return path_below(source, sources)  # COCO's own file names, also if several folders make COCO+

    def read(self, boxes: Boxes, annotations: tuple[str, ...]) -> None:
        names = (image.file_name for image in listed_images(annotations))
        found = False
        with storage.opened(boxes.location) as file:
            stream = JsonStream(file, boxes.location)
            for key in stream.members():
                if key != "bbox" or not stream.at_array():
                    stream.skip()
                    continue
                found = True
                for own in stream.elements():
                    name = next(names, None)
                    if name is None:
                        raise InputError(_other_images(boxes, annotations, f"more than {len(boxes)}"))
                    # ORL's own program writes a single box without the list around it.
                    squeezed = isinstance(own, list) and len(own) == 4 and not any(isinstance(box, list) for box in own)
                    boxes.add(name, [own] if squeezed else own)
        if not found:
            raise InputError(f'{boxes.location} has no list `bbox`; expected ORL\'s {{"bbox": [[[x, y, w, h], ...], ...]}}')
        if next(names, None) is not None:
            raise InputError(_other_images(boxes, annotations, str(len(boxes))))

    def write(self, export: Export) -> None:
        order = ByName({image.file_name: at for at, image in enumerate(export.annotations)})
        there = {order.own_form(export.named(fact)) for fact in export.facts()}
        failed = {order.own_form(export.named(fact)) for fact in export.shards.facts() if not fact.held}
        missing = [name for name in order if name not in there and name not in failed]
        if missing:
            raise InputError(
                f"the annotations list {len(order)} images and {len(missing)} of them are not in the shards, such as {missing[0]}; "
                f"expected the annotations of the images that were mined, such as {min(there | failed)}"
            )
        sources = export.shards.sources
        export.written.left_out = [
            line for line in export.written.left_out if order.own_form(path_below(line[0], sources)) not in order
        ]
        # Shards and annotations are ordered differently: entries wait on disk until their turn.
        with Scratch() as waiting, written_atomically(export.out) as file:
            places: dict[int, tuple[int, int]] = {}
            for fact, candidates in export.rows():
                at = order.get(export.named(fact))
                if at is None:
                    export.written.left_out.append((fact.source, "the annotations do not list it"))
                    continue
                kept = export.chosen(fact, candidates)
                if not len(kept):
                    first = candidates[:1] if len(candidates) else np.array([[0, 0, fact.width, fact.height]])
                    kept = fact.framed(first, export.upright)
                    export.written.filled.append(fact.source)
                export.written.count(kept)
                data = json.dumps(kept.tolist()).encode()
                places[at] = (waiting.tell(), len(data))
                waiting.write(data)
            file.write(b'{"bbox": [')
            for at, image in enumerate(export.annotations):
                file.write(b", " if at else b"")
                if at in places:
                    offset, size = places[at]
                    file.write(os.pread(waiting.fileno(), size, offset))
                else:
                    kept = _whole_image(image.file_name, image.width, image.height)
                    file.write(json.dumps(kept.tolist()).encode())
                    export.written.filled.append(image.file_name)
                    export.written.count(kept)
            file.write(b"]}")
        export.written.files = [str(export.out)]


def _other_images(boxes: Boxes, annotations: tuple[str, ...], count: str) -> str:
    total = sum(1 for _ in listed_images(annotations))
    return (
        f"{boxes.location} has boxes of {count} images and {', '.join(annotations)} lists {total}; expected the annotations "
        "of exactly these images"
    )


def _whole_image(name: str, width: Any, height: Any) -> np.ndarray:
    if not isinstance(width, int) or not isinstance(height, int) or min(width, height) < 1:
        raise InputError(
            f"{name} could not be mined and the annotations do not say its width and height, so ORL cannot be given its one "
            "box; mend the image and mine with --retry-failed, or annotate its size"
        )
    return np.array([[0, 0, width, height]])
