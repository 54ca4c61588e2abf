"""Check COCO's JSON as various tools write it, and bring it into one form, whole, as pycocotools wants it.

`sources.coco` has the rules of single fields, and reads files of any size for boxes alone.
"""

import math
from collections import Counter
from typing import Any

from univip_stream.sources.coco import NO_AREA, NO_BOX, file_name, has_no_box, is_crowd, whole_number


def checked(content: Any) -> tuple[dict[str, Any], dict[str, int]]:
    """Check COCO's content, convert ids and sizes to whole numbers, and leave out objects that have no box.

    Returns:
        The content with its checked `images`, `annotations` and `categories`, and the number of objects left out, by reason.

    Raises:
        ValueError: the content is wrong; the message says how.

    """
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in lists):
        raise ValueError("expected an object with the lists images, annotations and categories")
    images = [_image(image) for image in content["images"]]
    categories = [_category(category) for category in content["categories"]]
    if not categories:
        raise ValueError("it has no category")
    known = {category["id"] for category in categories}
    if len(known) < len(categories):
        raise ValueError("two of its categories have one id")
    left_out: Counter[str] = Counter()
    annotations = []
    for annotation in content["annotations"]:
        if isinstance(annotation, dict) and has_no_box(annotation.get("bbox")):
            left_out[NO_BOX] += 1
            continue
        fields = _annotation(annotation, known)
        if min(fields["bbox"][2:]) < 0:  # COCO has boxes of width 0, which its scorer counts, but none of negative width
            left_out[NO_AREA] += 1
        else:
            annotations.append(fields)
    if left_out[NO_BOX] == len(content["annotations"]) > 0:
        raise ValueError(f"all of its {left_out[NO_BOX]} annotations have no bbox of four numbers x, y, w, h")
    return {**content, "images": images, "annotations": annotations, "categories": categories}, dict(left_out)


def _image(image: Any) -> dict[str, Any]:
    if not isinstance(image, dict) or "file_name" not in image:
        raise ValueError(f"the image {image!r:.100} has no file_name; expected its path below the folder of images")
    name = file_name(image["file_name"])
    numbers = {}
    for field, least in (("id", None), ("width", 1), ("height", 1)):
        if field not in image:
            raise ValueError(f"the image {name!r} has no {field}")
        value = whole_number(image[field])
        if value is None or (least is not None and value < least):
            kind = "a whole number" if least is None else "a whole number of pixels"
            raise ValueError(f"the image {name!r} has the {field} {image[field]!r:.40}; expected {kind}")
        numbers[field] = value
    return {**image, **numbers}


def _category(category: Any) -> dict[str, Any]:
    number = whole_number(category.get("id")) if isinstance(category, dict) else None
    if number is None:
        raise ValueError(f"the category {category!r:.100} has no id that is a whole number")
    return {**category, "id": number}


def _annotation(annotation: Any, known: set[int]) -> dict[str, Any]:
    fields = annotation if isinstance(annotation, dict) else {}
    box, image, category = fields.get("bbox"), whole_number(fields.get("image_id")), whole_number(fields.get("category_id"))
    about = f"the annotation {annotation!r:.150}"
    if not isinstance(box, list) or len(box) != 4 or not all(map(_number, box)):
        raise ValueError(f"{about} has no bbox of four numbers x, y, w, h")
    if image is None:
        raise ValueError(f"{about} has no image_id that is a whole number")
    if category not in known:
        raise ValueError(f"{about} has no category_id that is one of the categories")
    area = fields.get("area")
    return {
        **fields, "image_id": image, "category_id": category, "iscrowd": int(is_crowd(fields.get("iscrowd"), fields.get("id"))),
        "area": area if _number(area) else box[2] * box[3],
    }  # fmt: skip


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
