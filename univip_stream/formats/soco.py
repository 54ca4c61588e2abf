"""SoCo (hologerry/SoCo): a JSON file of boxes by the stems of file names, and a list of images."""

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from univip_stream import storage
from univip_stream.errors import InputError
from univip_stream.files import written_atomically
from univip_stream.formats.base import Choice, Export, Format, stem_of
from univip_stream.formats.collected import Boxes, numbers_of
from univip_stream.formats.shards import Fact
from univip_stream.sources.jsonstream import JsonStream
from univip_stream.sources.names import path_of

SOCO_BOXES = "train_ratio3size0308post.json"
SOCO_IMAGES = "train_map.txt"
SOCO_COCO = "trainunlabeled2017"
"""Replaces `train` in the file names that its --dataset COCO reads (hologerry/SoCo @ 2be1229, contrast/data/__init__.py)."""
_SOCO_READS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif")


class SoCoFormat(Format):
    """`{stem: [[x, y, w, h], ...]}` with w = xmax - xmin, and the list of images with their labels' numbers.

    If no box passes the filter, its "post" step takes those of any size, and then of any aspect. If images have COCO's ids, both
    files also get the names that its COCO branch reads.
    """

    name = "soco"
    summary = "SoCo: train_ratio3size0308post.json and train_map.txt, and COCO's names"
    folder = True
    shares_folder = True
    annotations = "unused"
    # hologerry/SoCo, selective_search/filters.py, with sides as in its own search: last pixel minus first.
    choice = Choice(min_scale=32, max_aspect=3, min_size=0.3, max_size=0.8, less=1)

    def image_name(self, source: str, image_id: int | None, sources: Sequence[str]) -> str:
        return stem_of(path_of(source, sources))

    def read(self, boxes: Boxes, annotations: tuple[str, ...]) -> None:
        if os.path.isdir(boxes.location):
            raise InputError(f"{boxes.location} is a folder; expected SoCo's JSON in it, train_ratio3size0308post.json")
        with storage.opened(boxes.location) as file:
            stream = JsonStream(file, boxes.location)
            for stem in stream.members():
                found = numbers_of(stream.value(), f"{boxes.location}: {stem}")
                found[:, 2:] += 1  # w = xmax - xmin there, of the last pixel inside
                boxes.add(stem, found)
            stream.finish()

    def write(self, export: Export) -> None:
        export.out.mkdir(parents=True, exist_ok=True)
        labels = {label: at for at, label in enumerate(export.shards.classes)}
        with_ids = False
        for fact in export.facts():
            with_ids = with_ids or fact.image_id is not None
            path = path_of(fact.source, export.shards.sources)
            if len(path.split()) != 1 or not path.lower().endswith(_SOCO_READS):
                raise InputError(
                    f"SoCo cannot read {path!r}: its lists of images end a path at the first space, and its images are "
                    f"{', '.join(_SOCO_READS)}; rename or convert it and mine again"
                )
        with ExitStack() as stack:
            boxes_file, map_file = (
                stack.enter_context(written_atomically(export.out / name)) for name in (SOCO_BOXES, SOCO_IMAGES)
            )
            for fact in export.facts():
                path = path_of(fact.source, export.shards.sources)
                map_file.write(f"{path}\t{labels.get(fact.label or '', 0)}\n".encode())
            boxes_file.write(b"{")
            for at, (fact, candidates) in enumerate(export.rows()):
                kept = _chosen(export, fact, candidates)
                export.written.count(kept)
                kept[:, 2:] -= 1
                entry = f"{json.dumps(export.named(fact))}: {json.dumps(kept.tolist())}"
                boxes_file.write(b", " * (at > 0) + entry.encode())
            boxes_file.write(b"}")
        names = [SOCO_BOXES, SOCO_IMAGES]
        if with_ids:
            for name in (SOCO_BOXES, SOCO_IMAGES):
                names.append(name.replace("train", SOCO_COCO, 1))
                _same_file(export.out / name, export.out / names[-1])
        export.written.files = [str(export.out / name) for name in names]


def _same_file(there: Path, new: Path) -> None:
    """Give a file a second name; make a copy if the disk has no links."""
    new.unlink(missing_ok=True)
    try:
        os.link(there, new)
    except OSError:
        with written_atomically(new) as copy, there.open("rb") as file:
            shutil.copyfileobj(file, copy)


def _chosen(export: Export, fact: Fact, candidates: np.ndarray) -> np.ndarray:
    assert export.choice is not None
    for choice in export.choice.relaxed():
        if len(kept := choice(candidates, fact.width, fact.height)):
            return fact.framed(kept, export.upright)
    return np.empty((0, 4), np.int64)
