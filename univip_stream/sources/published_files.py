"""Files of boxes that others published, each read by the rules of its repository."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from univip_stream import storage
from univip_stream.errors import InputError, UsageError, why
from univip_stream.sources.coco import read_annotations, whole_number
from univip_stream.sources.jsonstream import JsonStream
from univip_stream.sources.listing import text_of
from univip_stream.sources.pickles import load_plain
from univip_stream.sources.published import Published, numbers_of
from univip_stream.sources.results import read_results
from univip_stream.sources.targets import TARGETS


def read_published(location: str, format: str, annotations: tuple[str, ...] = ()) -> Published:
    """Read a file or folder of boxes.

    Args:
        location: the file, local or remote; a local folder for DETReg and SiameseDETR. For SoCo its JSON.
        format: a name of `TARGETS`.
        annotations: COCO's files, whose `images` say the order of ORL's boxes.

    Raises:
        InputError: it is not there, or of another format.
        UsageError: ORL's boxes without annotations.

    """
    if format not in TARGETS:
        raise UsageError(f"unknown --format {format!r}; expected one of: {', '.join(TARGETS)}")
    if format == "orl" and not annotations:
        raise UsageError("--format orl names no images; give the COCO file whose order its boxes have by --annotations")
    if TARGETS[format].folder and format != "soco" and not os.path.isdir(location):
        raise InputError(f"{location} is no folder; expected {format}'s folder of .npy files")
    published = Published(location, format)
    try:
        if format == "orl":
            _read_orl(published, annotations)
        else:
            _READERS[format](published)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{location}: {why(error)}") from error
    if not len(published):
        raise InputError(f"{location} has no entry; expected the format {format}")
    return published


@dataclass(frozen=True, kw_only=True)
class Named:
    """An image that an annotation file lists."""

    file_name: str
    image_id: int | None
    width: int | None
    height: int | None


def listed_images(locations: tuple[str, ...]) -> Iterator[Named]:
    """`images` of COCO's annotation files, file after file, in their order.

    Raises:
        InputError: a file without them, or a name that comes twice.

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
                    yield Named(file_name=name, image_id=number, width=width, height=height)
        if len(seen) == before:
            raise InputError(f"{location} is no COCO annotation file: it has no `images`")


def _read_orl(published: Published, annotations: tuple[str, ...]) -> None:
    names = (image.file_name for image in listed_images(annotations))
    found = False
    with storage.opened(published.location) as file:
        stream = JsonStream(file, published.location)
        for key in stream.members():
            if key != "bbox" or not stream.at_array():
                stream.skip()
                continue
            found = True
            for boxes in stream.elements():
                name = next(names, None)
                if name is None:
                    raise InputError(_other_images(published, annotations, f"more than {len(published)}"))
                # ORL's own program squeezes an image's only box.
                squeezed = isinstance(boxes, list) and len(boxes) == 4 and not any(isinstance(box, list) for box in boxes)
                published.add(name, [boxes] if squeezed else boxes)
    if not found:
        raise InputError(f'{published.location} has no list `bbox`; expected ORL\'s {{"bbox": [[[x, y, w, h], ...], ...]}}')
    if next(names, None) is not None:
        raise InputError(_other_images(published, annotations, str(len(published))))


def _other_images(published: Published, annotations: tuple[str, ...], count: str) -> str:
    total = sum(1 for _ in listed_images(annotations))
    return (
        f"{published.location} has boxes of {count} images and {', '.join(annotations)} lists {total}; expected the annotations "
        "of the very images"
    )


def _read_soco(published: Published) -> None:
    if os.path.isdir(published.location):
        raise InputError(f"{published.location} is a folder; expected SoCo's JSON in it, train_ratio3size0308post.json")
    with storage.opened(published.location) as file:
        stream = JsonStream(file, published.location)
        for stem in stream.members():
            boxes = numbers_of(stream.value(), f"{published.location}: {stem}")
            boxes[:, 2:] += 1  # w = xmax - xmin there, of the last pixel inside
            published.add(stem, boxes)
        stream.finish()


def _read_coco(published: Published) -> None:
    with storage.opened(published.location) as file:
        stream = JsonStream(file, published.location)
        if stream.at_array():
            read_results(published, stream)
            return
    found = read_annotations(published.location, with_boxes=True)
    published.sizes, published.left_out = found.sizes, found.left_out
    for name, image_id in found.ids.items():
        boxes = found.boxes_of(image_id)
        published.add(name, [] if boxes is None else list(boxes))


def _read_detectron2(published: Published) -> None:
    with storage.opened(published.location) as file:
        fields = load_plain(file, published.location)
    try:
        # Detectron called two of them otherwise.
        fields = {{"indexes": "ids", "scores": "objectness_logits"}.get(key, key): value for key, value in fields.items()}
        ids, boxes, logits = (list(fields[name]) for name in ("ids", "boxes", "objectness_logits"))
        scores = [np.ravel(np.asarray(found, np.float64)) for found in logits]
        mode = int(fields.get("bbox_mode", 0))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{published.location} is no file of proposals ({why(error)}); expected ids, boxes and "
            "objectness_logits, and at will bbox_mode"
        ) from error
    if not len(ids) == len(boxes) == len(scores) or mode not in (0, 1):
        raise InputError(
            f"{published.location} has {len(ids)} ids, {len(boxes)} boxes, {len(scores)} objectness_logits and bbox_mode "
            f"{mode}; expected as many of each, and 0 (XYXY_ABS) or 1 (XYWH_ABS)"
        )
    for name, found, score in zip(ids, boxes, scores, strict=True):
        array = numbers_of(found, f"{published.location}: {name}")
        if len(score) != len(array):
            raise InputError(f"{published.location}: {name} has {len(array)} boxes and {len(score)} objectness_logits")
        published.add(str(name), array[np.argsort(-score, kind="stable")], corners=mode == 0)


def _read_detreg(published: Published) -> None:
    for path in _arrays_below(published):
        with open(os.path.join(published.location, path), "rb") as file:
            boxes = _array(file, os.path.join(published.location, path))
        published.add(text_of(path.removesuffix(".npy").rpartition("/")[2]), boxes, corners=True)


def _read_siamesedetr(published: Published) -> None:
    for path in _arrays_below(published):
        whole = os.path.join(published.location, path)
        with open(whole, "rb") as file:
            if not _header(file, whole).hasobject:
                raise InputError(f"{whole} holds numbers; expected SiameseDETR's pickled dictionary with `box` (detreg?)")
            fields = load_plain(file, whole)
        if not isinstance(fields, dict) or "box" not in fields:
            raise InputError(f"{whole} holds no dictionary with `box`; expected SiameseDETR's")
        published.add(text_of(path.removesuffix(".npy")), fields["box"], corners=True)


def _arrays_below(published: Published) -> Iterator[str]:
    for folder, folders, names in os.walk(published.location):
        folders.sort()
        for name in sorted(names):
            if name.endswith(".npy"):
                yield os.path.relpath(os.path.join(folder, name), published.location)


def _header(file: Any, name: str) -> np.dtype[Any]:
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(file)[2]
    except OSError:
        raise
    except Exception as error:  # a damaged header may be anything
        raise InputError(f"{name} is no .npy file ({why(error)})") from error


def _array(file: Any, name: str) -> np.ndarray:
    try:
        array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        return array
    except OSError:
        raise
    except Exception as error:  # MemoryError too, where a damaged header promises more than there is
        raise InputError(f"{name} is no .npy file of numbers ({why(error)}); a pickled one is siamesedetr's") from error


_READERS: dict[str, Callable[[Published], None]] = {
    "soco": _read_soco,
    "detreg": _read_detreg,
    "siamesedetr": _read_siamesedetr,
    "aligndet": _read_coco,
    "detectron2": _read_detectron2,
    "coco": _read_coco,
}
