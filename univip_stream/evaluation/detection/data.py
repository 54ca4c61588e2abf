"""Images with annotated boxes and masks: COCO's JSON, and PASCAL VOC's folders brought into the same form."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from functools import cached_property
from io import StringIO
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from univip_stream.boxes import UPRIGHT
from univip_stream.errors import InputError, counted, why
from univip_stream.evaluation.detection.checked import checked
from univip_stream.evaluation.detection.frames import made_upright
from univip_stream.files import sha256_of
from univip_stream.images import MAX_PIXELS, read_picture
from univip_stream.sources.names import spellings

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse"),
    *("motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""PASCAL VOC's twenty (Everingham et al. 2010), in their usual order."""
_MAX_XML = 1 << 20
"""Maximal bytes of the annotation of one image; larger files are refused."""


class DetectionSet:
    """Images and their annotated objects, in the order of the images' ids.

    Args:
        content: `images`, `annotations` and `categories`, as in COCO's JSON.
        folders: folders of the images; a file name is searched in each.
        name: name of the annotations, for messages.
        sha256: hash of the file of annotations, if there is one.
        box_frame: frame of boxes and outlines for images that EXIF turns: `upright` or `stored`; here all become upright.
        left_out: number of objects that were removed from `content`, by reason.

    Raises:
        InputError: the annotations cannot be read, or are of other images than those in the folders.

    """

    def __init__(
        self,
        content: dict[str, Any],
        folders: Sequence[Path],
        name: str,
        sha256: str | None = None,
        *,
        box_frame: str = UPRIGHT,
        left_out: Mapping[str, int] | None = None,
    ) -> None:
        self.name, self.sha256, self.box_frame, self.left_out = name, sha256, box_frame, dict(left_out or {})
        self.is_voc = False
        """Whether VOC's own AP is computed beside COCO's."""
        self.max_pixels = MAX_PIXELS
        """Maximal number of pixels; larger images are refused."""
        self.images = sorted(content["images"], key=lambda image: image["id"])
        self.categories = sorted(content["categories"], key=lambda category: category["id"])
        self.paths = [_found(folders, image["file_name"]) for image in self.images]
        missing = [image["file_name"] for image, path in zip(self.images, self.paths, strict=True) if path is None]
        if missing or not self.images:
            places = ", ".join(map(str, folders))
            raise InputError(
                f"{name} names {len(self.images)} images, of which {len(missing)} are not in {places}"
                f"{f', such as {missing[0]}' if missing else ''}; expected the annotations of these images"
            )
        of_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in self.images}
        if len(of_image) < len(self.images):
            twice = next(one["id"] for one, next_one in pairwise(self.images) if one["id"] == next_one["id"])
            raise InputError(f"{name} has two images with the id {twice}, so whose objects these are cannot be told")
        for number, annotation in enumerate(content["annotations"], 1):
            if annotation["image_id"] not in of_image:
                raise InputError(
                    f"{name}: annotation {annotation.get('id')} is of image {annotation['image_id']}, which it does not list"
                )
            # Numbered anew: pycocotools takes an id of 0 for no match and objects of one id for one (cocodataset/cocoapi#507).
            of_image[annotation["image_id"]].append({**annotation, "id": number})
        objects = [of_image[image["id"]] for image in self.images]
        self.notes = [f"{name}: {counted(count, 'object')} left out: {what}" for what, count in sorted(self.left_out.items())]
        """Sentences about what was left out, and where annotations and images contradict each other."""
        self.images, self.annotations, contrary = made_upright(self.images, objects, self.paths, box_frame)
        if contrary:
            this, that = ("upright", "stored") if box_frame == UPRIGHT else ("stored", "upright")
            having = counted(len(contrary), "image has", "images have")
            self.notes.append(
                f"{name}: {having} the width and height of the {that} picture, such as {contrary[0]}, and their boxes are taken "
                f"as of the {this} one (--box-frame {this}); if they lie wrong, use --box-frame {that}"
            )
        # pycocotools 2.0.9 and 2.0.10 read no results beside annotations that have no `info`.
        self.content = {"info": {}, **content, "images": self.images, "annotations": [*chain.from_iterable(self.annotations)]}
        self.label_of = {category["id"]: place for place, category in enumerate(self.categories)}

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, number: int) -> np.ndarray:
        """Read an image as uint8, height x width x 3, RGB; its size must be that of the annotations."""
        path, facts = self.paths[number], self.images[number]
        assert path is not None
        try:
            found = read_picture(path.read_bytes(), max_pixels=self.max_pixels, min_side=1).pixels
        except (InputError, OSError) as error:
            raise InputError(f"{path}: {error}; detection needs every image: mend it") from error
        if found.shape[:2] != (facts["height"], facts["width"]):
            raise InputError(
                f"{path} is {found.shape[1]} x {found.shape[0]} pixels, and {self.name} is for {facts['width']} x {facts['height']}"
            )
        return found

    def target(self, number: int, *, masks: bool) -> dict[str, Tensor]:
        """Return what a detector learns from: `boxes` float32 N x 4 (x1, y1, x2, y2 in pixels), `labels` int64 N from 0, `masks`
        uint8 N x height x width. Crowds and boxes without area are left out; N may be 0."""
        facts = self.images[number]
        size = np.array([facts["width"], facts["height"]] * 2)
        boxes, labels, pictures = [], [], []
        for annotation in self.annotations[number]:
            x, y, w, h = annotation["bbox"]
            box = np.clip([x, y, x + w, y + h], 0, size)
            if annotation.get("iscrowd") or (box[2:] - box[:2]).min() <= 0:
                continue
            boxes.append(box)
            labels.append(self.label_of[annotation["category_id"]])
            if masks:
                pictures.append(self.truth.annToMask(annotation))
        shape = (facts["height"], facts["width"])
        target = {
            "boxes": torch.tensor(np.array(boxes), dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.int64),
        }
        if masks:
            stacked = np.stack(pictures) if pictures else np.zeros((0, *shape), np.uint8)
            target["masks"] = torch.from_numpy(stacked)
        return target

    @cached_property
    def truth(self) -> Any:
        """The annotations as pycocotools' COCO, which is needed for scoring."""
        from pycocotools.coco import COCO

        coco = COCO()
        coco.dataset = self.content
        with redirect_stdout(StringIO()):
            coco.createIndex()
        return coco

    @cached_property
    def has_masks(self) -> bool:
        """Whether every object has a segmentation."""
        return all(annotation.get("segmentation") for image in self.annotations for annotation in image)

    def facts(self) -> dict[str, Any]:
        """Return what a result records about the set."""
        count = sum(map(len, self.annotations))
        more = {
            **({"left_out": self.left_out} if self.left_out else {}),
            **({"box_frame": self.box_frame} if self.box_frame != UPRIGHT else {}),
        }
        return {"annotations": self.name, "sha256": self.sha256, "images": len(self), "objects": count, **more}


def read_coco(annotations: Path, images: Path, *, box_frame: str = UPRIGHT) -> DetectionSet:
    """Read COCO's JSON with its folder of images.

    Args:
        annotations: the JSON file.
        images: folder of the images.
        box_frame: frame of the boxes for images that EXIF turns: `upright`, as shown, or `stored`, as in the file.

    Raises:
        InputError: files cannot be read, or do not belong together.

    """
    try:
        found = json.loads(annotations.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{annotations} cannot be read as COCO annotations: {why(error)}") from error
    try:
        content, left_out = checked(found)
    except ValueError as error:
        raise InputError(f"{annotations} is not a COCO annotation file: {error}") from error
    if not images.is_dir():
        raise InputError(f"{images} is not a folder; expected the images of {annotations}")
    return DetectionSet(content, [images], str(annotations), sha256_of(annotations), box_frame=box_frame, left_out=left_out)


def read_voc(devkit: Path, parts: Sequence[tuple[str, str]], *, box_frame: str = UPRIGHT) -> DetectionSet:
    """Read PASCAL VOC: the images of each (year, list), such as ("2007", "test"), of a VOCdevkit or of one VOC folder.

    Boxes become x - 1, y - 1 and widths that count both ends; "difficult" objects are crowds: not learnt from, and
    detections on them do not count. VOC's own AP is `voc.voc_precision`.

    Raises:
        InputError: folders or annotations are missing or cannot be read.

    """
    content: dict[str, Any] = {
        "images": [], "annotations": [], "categories": [{"id": at, "name": name} for at, name in enumerate(VOC_CLASSES, 1)],
    }  # fmt: skip
    folders = []
    for year, part in parts:
        root = devkit / f"VOC{year}"
        if not root.is_dir():
            if len({known for known, _ in parts}) > 1 or _names_another_year(devkit, year):
                there = ", ".join(sorted(path.name for path in devkit.glob("VOC*")))
                raise InputError(
                    f"{devkit} has no folder VOC{year}{f' but {there}' if there else ''}; expected a VOCdevkit with "
                    f"{' and '.join(f'VOC{known}/ImageSets/Main/{name}.txt' for known, name in parts)}"
                )
            root = devkit
        names = root / "ImageSets" / "Main" / f"{part}.txt"
        try:
            stems = [line.split()[0] for line in names.read_text().splitlines() if line.strip()]
        except OSError as error:
            there = ", ".join(sorted(path.stem for path in names.parent.glob("*.txt") if "_" not in path.stem))
            raise InputError(
                f"{names}: {error.strerror}{f'; there is {there}' if there else ''}; expected a VOCdevkit with "
                f"VOC{year}/ImageSets/Main/{part}.txt, the list of that year's {part} images"
            ) from error
        folders.append(root / "JPEGImages")
        for stem in stems:
            _add_voc(content, root / "Annotations" / f"{stem}.xml")
    name = f"{devkit} ({', '.join(' '.join(part) for part in parts)})"
    known = DetectionSet(content, folders, name, box_frame=box_frame)
    known.is_voc = True
    return known


def _names_another_year(folder: Path, year: str) -> bool:
    """Whether a folder's name says that it is VOC of another year, such as VOC2012 for 2007."""
    return folder.name.startswith("VOC") and folder.name[3:].isdigit() and folder.name != f"VOC{year}"


def _add_voc(content: dict[str, Any], path: Path) -> None:
    try:
        text = path.read_bytes()
        if len(text) > _MAX_XML or b"<!DOCTYPE" in text or b"<!ENTITY" in text:
            raise InputError(f"{path} is not an annotation of VOC: too large, or it defines entities")
        tree = ET.fromstring(text)
        number = len(content["images"]) + 1
        name = path.with_suffix(".jpg").name
        width, height = (int(_text(tree, f"size/{side}")) for side in ("width", "height"))
        content["images"].append({"id": number, "file_name": name, "width": width, "height": height})
        for thing in tree.iter("object"):
            x1, y1, x2, y2 = (float(_text(thing, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
            label = VOC_CLASSES.index(_text(thing, "name")) + 1
            box = [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1, "image_id": number, "category_id": label, "bbox": box,
                    "area": box[2] * box[3], "iscrowd": int((thing.findtext("difficult") or "0").strip() == "1"),
                }
            )  # fmt: skip
    except (OSError, ET.ParseError, ValueError) as error:
        raise InputError(f"{path} cannot be read as an annotation of VOC: {why(error)}") from error


def _text(node: ET.Element, place: str) -> str:
    found = node.findtext(place)
    if found is None:
        raise ValueError(f"it has no {place}")
    return found.strip()


def _found(folders: Sequence[Path], name: str) -> Path | None:
    names = [name] if name.isascii() else spellings(name)
    return next((folder / form for folder in folders for form in names if (folder / form).is_file()), None)
