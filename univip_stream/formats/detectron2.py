"""Detectron2 (facebookresearch/detectron2): a pickle of proposals by image id."""

import pickle
from array import array
from collections.abc import Sequence

import numpy as np

from univip_stream import storage
from univip_stream.errors import InputError, why
from univip_stream.files import written_atomically
from univip_stream.formats.base import Export, Format, corners_of, stem_of
from univip_stream.formats.collected import Boxes, numbers_of
from univip_stream.formats.pickles import PROTOCOL, load_plain, pickled
from univip_stream.sources.names import path_of


class Detectron2Format(Format):
    """A pickle of ids, boxes (float32 N x 4 x1, y1, x2, y2), objectness_logits (float32 N) and bbox_mode (0, XYXY_ABS).

    Detectron2 sorts by the logits, which here only encode the order: 0, -1, -2, ... The file is written array after array.
    """

    name = "detectron2"
    summary = "Detectron2: a pickle of proposals, unfiltered"
    upright = True

    def image_name(self, source: str, image_id: int | None, sources: Sequence[str]) -> str:
        return stem_of(path_of(source, sources)) if image_id is None else str(image_id)

    def read(self, boxes: Boxes, annotations: tuple[str, ...]) -> None:
        with storage.opened(boxes.location) as file:
            fields = load_plain(file, boxes.location)
        try:
            # Detectron had other names for two of them.
            fields = {{"indexes": "ids", "scores": "objectness_logits"}.get(key, key): value for key, value in fields.items()}
            ids, lists, logits = (list(fields[name]) for name in ("ids", "boxes", "objectness_logits"))
            scores = [np.ravel(np.asarray(found, np.float64)) for found in logits]
            mode = int(fields.get("bbox_mode", 0))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{boxes.location} is not a file of proposals ({why(error)}); expected ids, boxes and "
                "objectness_logits, and optionally bbox_mode"
            ) from error
        if not len(ids) == len(lists) == len(scores) or mode not in (0, 1):
            raise InputError(
                f"{boxes.location} has {len(ids)} ids, {len(lists)} boxes, {len(scores)} objectness_logits and bbox_mode "
                f"{mode}; expected as many of each, and 0 (XYXY_ABS) or 1 (XYWH_ABS)"
            )
        for name, found, score in zip(ids, lists, scores, strict=True):
            array = numbers_of(found, f"{boxes.location}: {name}")
            if len(score) != len(array):
                raise InputError(f"{boxes.location}: {name} has {len(array)} boxes and {len(score)} objectness_logits")
            boxes.add(str(name), array[np.argsort(-score, kind="stable")], corners=mode == 0)

    def write(self, export: Export) -> None:
        with written_atomically(export.out) as file:
            file.write(pickle.PROTO + bytes([PROTOCOL]) + pickle.EMPTY_DICT + pickle.MARK)
            file.write(pickled("ids", piece=True) + pickle.EMPTY_LIST)
            for fact in export.facts():
                file.write(pickled(_id(export.named(fact)), piece=True) + pickle.APPEND)
            file.write(pickled("boxes", piece=True) + pickle.EMPTY_LIST)
            counts = array("i")
            for fact, candidates in export.rows():
                kept = export.chosen(fact, candidates)
                file.write(pickled(corners_of(kept).astype(np.float32), piece=True) + pickle.APPEND)
                counts.append(len(kept))
                export.written.count(kept)
            file.write(pickled("objectness_logits", piece=True) + pickle.EMPTY_LIST)
            for count in counts:
                file.write(pickled(-np.arange(count, dtype=np.float32), piece=True) + pickle.APPEND)
            file.write(pickled("bbox_mode", piece=True) + pickled(0, piece=True) + pickle.SETITEMS + pickle.STOP)
        export.written.files = [str(export.out)]


def _id(name: str) -> int | str:
    return int(name) if name.isdecimal() and str(int(name)) == name else name
