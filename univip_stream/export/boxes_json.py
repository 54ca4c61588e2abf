"""Boxes for repositories that read JSON: ORL, SoCo, and COCO's own format. Written image after image."""

import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from univip_stream import __version__
from univip_stream.errors import InputError
from univip_stream.export.boxes_rows import Fact
from univip_stream.files import Scratch, written_atomically
from univip_stream.sources.names import ByName
from univip_stream.sources.targets import path_below, path_of

if TYPE_CHECKING:
    from univip_stream.export.boxes import Job

SOCO_BOXES = "train_ratio3size0308post.json"
SOCO_IMAGES = "train_map.txt"
SOCO_COCO = "trainunlabeled2017"
"""Instead of `train` in the names that its --dataset COCO looks for (hologerry/SoCo @ 2be1229, contrast/data/__init__.py)."""
_SOCO_READS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif")


def write_orl(job: "Job") -> None:
    """`{"bbox": [[[x, y, w, h], ...] per image]}`, in the order of the annotations; every image has at least one box.

    ORL filters when it reads, and takes the first box where none passes: so an image whose boxes are all filtered out here
    keeps its first, and one without any gets itself as a box.
    """
    order = ByName({image.file_name: at for at, image in enumerate(job.annotations)})
    there = {order.said(job.named(fact)) for fact in job.facts()}
    failed = {order.said(job.named(fact)) for fact in job.shards.facts() if not fact.held}
    missing = [name for name in order if name not in there and name not in failed]
    if missing:
        raise InputError(
            f"the annotations list {len(order)} images and {len(missing)} of them are not in the shards, such as {missing[0]}; "
            f"expected the annotations of the images that were mined, such as {min(there | failed)}"
        )
    sources = job.shards.sources
    job.written.left_out = [line for line in job.written.left_out if order.said(path_below(line[0], sources)) not in order]
    # Shards and annotations have orders of their own: what is written waits on disk until its turn.
    with Scratch() as waiting, written_atomically(job.out) as file:
        places: dict[int, tuple[int, int]] = {}
        for fact, candidates in job.rows():
            at = order.get(job.named(fact))
            if at is None:
                job.written.left_out.append((fact.source, "the annotations do not list it"))
                continue
            boxes = job.chosen(fact, candidates)
            if not len(boxes):
                first = candidates[:1] if len(candidates) else np.array([[0, 0, fact.width, fact.height]])
                boxes = fact.framed(first, job.upright)
                job.written.filled.append(fact.source)
            job.written.count(boxes)
            data = json.dumps(boxes.tolist()).encode()
            places[at] = (waiting.tell(), len(data))
            waiting.write(data)
        file.write(b'{"bbox": [')
        for at, image in enumerate(job.annotations):
            file.write(b", " if at else b"")
            if at in places:
                offset, size = places[at]
                file.write(os.pread(waiting.fileno(), size, offset))
            else:
                boxes = _whole_image(image.file_name, image.width, image.height)
                file.write(json.dumps(boxes.tolist()).encode())
                job.written.filled.append(image.file_name)
                job.written.count(boxes)
        file.write(b"]}")
    job.written.files = [str(job.out)]


def _whole_image(name: str, width: Any, height: Any) -> np.ndarray:
    if not isinstance(width, int) or not isinstance(height, int) or min(width, height) < 1:
        raise InputError(
            f"{name} could not be mined and the annotations do not say its width and height, so ORL cannot be given its one "
            "box; mend the image and mine with --retry-failed, or annotate its size"
        )
    return np.array([[0, 0, width, height]])


def write_soco(job: "Job") -> None:
    """`{stem: [[x, y, w, h], ...]}` with w = xmax - xmin, and the list of images with their labels' numbers.

    Where no box passes the filter, its "post" step takes those of any size, and then of any aspect. Images with COCO's ids get
    both files under the names of its COCO branch too.
    """
    job.out.mkdir(parents=True, exist_ok=True)
    labels = {label: at for at, label in enumerate(job.shards.classes)}
    facts = job.facts()
    paths = [(path_of(fact.source, job.shards.sources), labels.get(fact.label or "", 0)) for fact in facts]
    for path, _ in paths:
        if len(path.split()) != 1 or not path.lower().endswith(_SOCO_READS):
            raise InputError(
                f"SoCo cannot read {path!r}: its lists of images end a path at the first space, and its images are "
                f"{', '.join(_SOCO_READS)}; rename or convert it and mine again"
            )
    with ExitStack() as stack:
        boxes_file, map_file = (stack.enter_context(written_atomically(job.out / name)) for name in (SOCO_BOXES, SOCO_IMAGES))
        map_file.writelines(f"{path}\t{label}\n".encode() for path, label in paths)
        boxes_file.write(b"{")
        for at, (fact, candidates) in enumerate(job.rows()):
            boxes = _soco_boxes(job, fact, candidates)
            job.written.count(boxes)
            boxes[:, 2:] -= 1
            entry = f"{json.dumps(job.named(fact))}: {json.dumps(boxes.tolist())}"
            boxes_file.write(b", " * (at > 0) + entry.encode())
        boxes_file.write(b"}")
    names = [SOCO_BOXES, SOCO_IMAGES]
    if any(fact.image_id is not None for fact in facts):
        for name in (SOCO_BOXES, SOCO_IMAGES):
            names.append(name.replace("train", SOCO_COCO, 1))
            _same_file(job.out / name, job.out / names[-1])
    job.written.files = [str(job.out / name) for name in names]


def _same_file(there: Path, new: Path) -> None:
    """Give a file a second name; a copy where the disk has no links."""
    new.unlink(missing_ok=True)
    try:
        os.link(there, new)
    except OSError:
        with written_atomically(new) as copy, there.open("rb") as file:
            shutil.copyfileobj(file, copy)


def _soco_boxes(job: "Job", fact: Fact, candidates: np.ndarray) -> np.ndarray:
    assert job.choice is not None
    for choice in job.choice.ever_wider():
        if len(kept := choice(candidates, fact.width, fact.height)):
            return fact.framed(kept, job.upright)
    return np.empty((0, 4), np.int64)


def write_coco(job: "Job") -> None:
    """COCO's JSON: images, a box an annotation, one category; also AlignDet's."""
    facts = job.facts()
    ids = _ids(facts)
    category = "selective_search" if job.format == "aligndet" else "object"
    with written_atomically(job.out) as file:
        # pycocotools 2.0.9 and 2.0.10 read no results beside a file without `info`; COCO's own have both.
        info = {"description": f"region proposals, written by univip-stream {__version__}"}
        file.write(f'{{"info": {json.dumps(info)}, "licenses": [], "images": ['.encode())
        for at, fact in enumerate(facts):
            width, height = fact.size(job.upright)
            name = path_of(fact.source, job.shards.sources)
            _append(file, at, {"id": ids[fact.source], "file_name": name, "width": width, "height": height})
        file.write(b'], "annotations": [')
        for fact, candidates in job.rows():
            boxes = job.chosen(fact, candidates)
            for at, (x, y, w, h) in enumerate(boxes.tolist(), job.written.boxes):
                annotation = {"id": at + 1, "image_id": ids[fact.source], "category_id": 1, "bbox": [x, y, w, h]}
                _append(file, at, annotation | {"area": w * h, "iscrowd": 0})
            job.written.count(boxes)
        file.write(f'], "categories": [{json.dumps({"id": 1, "name": category})}]}}'.encode())
    job.written.files = [str(job.out)]


def _append(file: BinaryIO, at: int, fields: dict[str, Any]) -> None:
    file.write(b",\n" * (at > 0) + json.dumps(fields, ensure_ascii=False).encode())


def _ids(facts: list[Fact]) -> dict[str, int]:
    """The image's number by its name: COCO's, or the next after the greatest where there is none."""
    owners: dict[int, str] = {}
    for fact in facts:
        if fact.image_id is not None and (other := owners.setdefault(fact.image_id, fact.source)) != fact.source:
            raise InputError(
                f"{other} and {fact.source} both have the image id {fact.image_id}; expected each once: export sets of their own"
            )
    following = max(owners, default=0)
    ids = {}
    for fact in facts:
        following += fact.image_id is None
        ids[fact.source] = following if fact.image_id is None else fact.image_id
    return ids
