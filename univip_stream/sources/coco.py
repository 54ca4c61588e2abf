"""COCO's annotation files: image ids and annotated boxes for the images of a folder."""

import contextlib
import heapq
import json
import os
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from univip_stream import storage
from univip_stream.errors import InputError, why
from univip_stream.sources.folder import files_below, folder_image, left_out
from univip_stream.sources.jsonstream import JsonStream
from univip_stream.sources.listing import Boxes, SourceImage
from univip_stream.sources.names import ByName

NO_BOX, NO_AREA, NO_IMAGE = "without a bbox", "with a bbox of no area", "without an image_id"
CROWD, UNLISTED = "crowds", "of an image that it does not list"
"""Reasons for leaving out an object."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Annotations:
    """Image ids, sizes and boxes from an annotation file; segmentations and all else are dropped."""

    name: str
    """Name of the file."""
    ids: dict[str, int]
    """Image id of each file name."""
    starts: dict[int, tuple[int, int]] | None
    """First row of an image's boxes, and one past the last; None if boxes were not asked for."""
    boxes: np.ndarray
    """int32 N x 4 x, y, w, h, sorted by image, otherwise in the file's order, without crowds."""
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Width and height of each image according to the file; only with boxes."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Number of objects without a usable box, by reason."""

    def boxes_of(self, image_id: int) -> Boxes | None:
        """Return the boxes of an image; None if boxes were not asked for."""
        if self.starts is None:
            return None
        first, last = self.starts.get(image_id, (0, 0))
        return tuple((x, y, w, h) for x, y, w, h in self.boxes[first:last].tolist())


def find_annotations(folder: str) -> str | None:
    """Find the annotation file in COCO's usual place: `../annotations/instances_<name>.json`, or `image_info_<name>.json`.

    `../../annotations` is searched too.
    """
    if storage.scheme_of(folder) in storage.WEB:
        return None
    folder = folder.rstrip("/") if storage.is_remote(folder) else os.path.abspath(folder)
    beside = storage.parent(folder)
    for place in (beside, storage.parent(beside)):  # coco/train2017 and coco/images/train2017
        if storage.is_remote(place) != storage.is_remote(folder):
            continue
        for kind in ("instances", "image_info"):
            location = storage.join(storage.join(place, "annotations"), f"{kind}_{storage.name_of(folder)}.json")
            with contextlib.suppress(OSError):  # no permission to look there
                if storage.size_of(location) is not None:
                    return location
    return None


def read_annotations(location: str, *, with_boxes: bool) -> Annotations:
    """Read an annotation file.

    Boxes are rounded outwards to whole pixels; they are clipped later, when the image is read.

    Raises:
        InputError: the file cannot be read, or has no boxes although they are asked for.

    """
    name = storage.name_of(location)
    reader = _Reader(with_boxes)
    try:
        whole = json.loads(storage.read(location), object_hook=reader.hook)
    except OSError as error:
        raise InputError(f"{location}: {why(error)}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{location} is not a COCO annotation file: {why(error)}") from error
    if not isinstance(whole, _ParsedFile) or not reader.ids:
        raise InputError(f"{location} is not a COCO annotation file: expected JSON with `images`, each with file_name and id")
    if not with_boxes:
        return Annotations(name=name, ids=reader.ids, starts=None, boxes=np.empty((0, 4), np.int32))
    if not whole.annotated:
        raise InputError(
            f"{location} has no `annotations`, so no ground-truth boxes; give the instances file by --annotations"
        )
    images = np.frombuffer(reader.images, np.int64) if reader.images else np.empty(0, np.int64)
    if whole.objects and not reader.images and not reader.left_out[CROWD]:
        raise InputError(
            f"{location} has no object with a bbox among its {whole.objects} annotations (captions?); give the instances file by "
            "--annotations"
        )
    order = np.argsort(images, kind="stable")
    boxes = _outwards(np.asarray(reader.boxes, np.float64).reshape(-1, 4)[order])
    values, first, counts = np.unique(images[order], return_index=True, return_counts=True)
    rows = zip(values.tolist(), zip(first.tolist(), (first + counts).tolist(), strict=True), strict=True)
    # Boxes without area stay in this list, so that digests do not change; they are dropped when the image is read.
    flat = int((boxes[:, 2:] <= 0).any(axis=1).sum())
    unlisted = int((~np.isin(images, np.fromiter(reader.ids.values(), np.int64))).sum())
    reader.left_out.update({NO_AREA: flat, UNLISTED: unlisted, NO_IMAGE: whole.objects - reader.objects})
    left_out = {what: count for what, count in reader.left_out.items() if count > 0}
    return Annotations(name=name, ids=reader.ids, starts=dict(rows), boxes=boxes, sizes=reader.sizes, left_out=left_out)


@dataclass(frozen=True, kw_only=True)
class ListedImage:
    """An image that an annotation file lists."""

    file_name: str
    image_id: int | None
    width: int | None
    height: int | None


def listed_images(locations: tuple[str, ...]) -> Iterator[ListedImage]:
    """Yield the `images` of COCO's annotation files, file after file, in their order.

    Raises:
        InputError: a file has none, or a name occurs twice.

    """
    seen: set[str] = set()
    for location in locations:
        before = len(seen)
        with storage.opened(location) as file:
            stream = JsonStream(file, location)
            for key in stream.members():
                if key != "images" or not stream.at_array():
                    stream.skip()
                    continue
                for image in stream.elements():
                    name = image.get("file_name") if isinstance(image, dict) else None
                    if not isinstance(name, str) or name in seen:
                        raise InputError(f"{location} lists the image {name!r}; expected a file_name, each once")
                    seen.add(name)
                    number, width, height = (whole_number(image.get(key)) for key in ("id", "width", "height"))
                    if number is None and image.get("id") is not None:
                        raise InputError(
                            f"{location} lists the image {name!r} with the id {image['id']!r:.40}; expected a whole number"
                        )
                    yield ListedImage(file_name=name, image_id=number, width=width, height=height)
        if len(seen) == before:
            raise InputError(f"{location} is not a COCO annotation file: it has no `images`")


def coco_images(
    folder: str, name: str, ignored: Counter[str], annotations: Annotations, *, labelled: bool
) -> Iterator[SourceImage]:
    """Yield the images of a folder and those that its annotation file names, sorted by the bytes of their paths.

    An image that the file does not name has no id; one that it names but that does not exist is absent. Its position in the
    order is the same either way, so that an image restored later can be mined alone.
    """
    stated = _names_in_file(folder, annotations)
    found_otherwise = set(stated.values())
    names = sorted((path for path in annotations.ids if path not in found_otherwise), key=_bytes)
    named = ((_bytes(path), path, False) for path in names)
    there = ((_bytes(path), path, True) for path in files_below(folder, ignored))
    last, met = None, 0
    for path_bytes, path, found in heapq.merge(there, named, key=lambda entry: (entry[0], not entry[2])):
        if path_bytes == last:
            continue
        last = path_bytes
        if found and (why := left_out(path)):
            ignored[why] += 1
            continue
        image = folder_image(folder, name, path, labelled=labelled and "/" in path)
        known = stated.get(path, path)
        image_id = annotations.ids.get(known)
        met += found and image_id is not None
        boxes = None if image_id is None else annotations.boxes_of(image_id)
        fault = None if found else f"{annotations.name} names it, and it is not there"
        size = annotations.sizes.get(known)
        yield replace(image, image_id=image_id, boxes=boxes, fault=fault, absent=not found, size_said=size)
    if not met:
        raise InputError(
            f"{annotations.name} names {len(annotations.ids)} images, such as {next(iter(annotations.ids))}, and none of them "
            f"is in {folder}; expected the annotations of this folder"
        )


def _names_in_file(folder: str, annotations: Annotations) -> dict[str, str]:
    """Return the paths of the folder that the file names in another Unicode form, with the file's names."""
    names = ByName(annotations.ids)
    if all(name.isascii() for name in names):
        return {}
    there = [path for path in files_below(folder) if not path.isascii()]
    taken = {path for path in there if path in annotations.ids}  # exact names take precedence
    stated: dict[str, str] = {}
    for path in there:
        name = names.own_form(path)
        if name != path and name not in taken:
            stated[path] = name
            taken.add(name)
    return stated


class _ParsedFile:
    """Marker for the parsed file after its parts were taken."""

    def __init__(self, annotations: Any):
        self.annotated = isinstance(annotations, list)
        self.objects = len(annotations) if self.annotated else 0


class _Reader:
    """Collects what is needed from each JSON object as it is parsed, so that the rest is freed at once."""

    def __init__(self, with_boxes: bool):
        self.with_boxes = with_boxes
        self.ids: dict[str, int] = {}
        self.names: dict[int, str] = {}
        self.listed = 0
        """Number of elements of `images` that are images."""
        self.images = array("q")
        self.boxes = array("d")
        self.sizes: dict[str, tuple[int, int]] = {}
        self.objects = 0
        """Number of elements of `annotations` that have an image."""
        self.left_out: Counter[str] = Counter()

    def hook(self, fields: dict[str, Any]) -> Any:
        if "images" in fields:
            images = fields["images"] if isinstance(fields["images"], list) else []
            if self.listed < len(images):
                raise ValueError(f"{len(images) - self.listed} of its {len(images)} images have no file_name or no id")
            return _ParsedFile(fields.get("annotations"))
        if "file_name" in fields and "id" in fields:
            self._image(fields["file_name"], fields["id"], fields.get("width"), fields.get("height"))
        elif self.with_boxes and "image_id" in fields:
            self.objects += 1
            if is_crowd(fields.get("iscrowd"), fields.get("id")):
                self.left_out[CROWD] += 1
            else:
                self._box(fields["image_id"], fields.get("bbox"), fields.get("id"))
        return None

    def _image(self, name: Any, stated: Any, width: Any, height: Any) -> None:
        name, number = file_name(name), whole_number(stated)
        if number is None:
            raise ValueError(f"the image {name!r} has the id {stated!r:.40}; expected a whole number")
        self.listed += 1
        if self.ids.setdefault(name, number) != number:
            raise ValueError(f"the image {name!r} has two ids, {self.ids[name]} and {number}")
        if (other := self.names.setdefault(number, name)) != name:
            raise ValueError(
                f"it has two images with the id {number}, {other} and {name}: whose objects these are cannot be told"
            )
        size = whole_number(width) or 0, whole_number(height) or 0
        if self.with_boxes and min(size) > 0 and max(size) < 1 << 31:
            self.sizes[name] = size

    def _box(self, stated: Any, box: Any, number: Any) -> None:
        image = whole_number(stated)
        fine = isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) and abs(v) < 1e6 for v in box)
        if image is None or not (fine or has_no_box(box)):
            raise ValueError(
                f"annotation {number} has image_id {stated!r} and bbox {box!r}; expected four numbers x, y, w, h"
            )
        if not fine:
            self.left_out[NO_BOX] += 1
            return
        self.images.append(image)
        self.boxes.extend(box)


def file_name(stated: Any) -> str:
    """Return an image's `file_name`.

    Raises:
        ValueError: it is no path that lies below the folder of the images.

    """
    if not isinstance(stated, str) or not stated:
        raise ValueError(f"an image has the file_name {stated!r:.100}; expected its path below the folder of images")
    if "\0" in stated:
        raise ValueError(f"the image {stated!r} has a zero byte in its file_name")
    stated.encode()  # raises for half a surrogate pair
    if stated.startswith("/") or ".." in stated.split("/"):
        raise ValueError(f"the image {stated!r} leads outside its folder")
    return stated


def whole_number(value: Any) -> int | None:
    """Return a JSON value as a whole number, also if it is written as floating point (8193.0); None if it is not whole."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63 else None


def has_no_box(box: Any) -> bool:
    """Whether an object's `bbox` is missing or empty, as tools write it for objects with only a mask or a label."""
    return box is None or box == []


def is_crowd(stated: Any, number: Any) -> bool:
    """Whether an object's `iscrowd` is 1; if it is missing, the object is not a crowd.

    Raises:
        ValueError: it is neither 0 nor 1.

    """
    value = 0 if stated is None else int(stated) if isinstance(stated, bool) else whole_number(stated)
    if value not in (0, 1):
        raise ValueError(f"annotation {number} has iscrowd {stated!r:.40}; expected 0 or 1")
    return value == 1


def _bytes(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _outwards(boxes: np.ndarray) -> np.ndarray:
    """Round boxes outwards to whole pixels. Sums are rounded first: 0.1 + 0.2 must not reach into the next pixel."""
    low = np.floor(np.round(boxes[:, :2], 6))
    high = np.ceil(np.round(boxes[:, :2] + boxes[:, 2:], 6))
    return np.concatenate([low, high - low], 1).astype(np.int32)
