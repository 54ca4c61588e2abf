"""Move boxes and outlines of photographs that EXIF turns into the upright picture, which is what a detector gets.

Most images are not turned, and their annotations stay as they are.
"""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from univip_stream.boxes import STORED, UPRIGHT, to_upright
from univip_stream.errors import InputError
from univip_stream.images import stored_size_of

_READERS = 8
"""Image headers read at a time: each takes long on a network disk."""


def made_upright(
    images: Sequence[dict[str, Any]], objects: Sequence[list[dict[str, Any]]], paths: Sequence[Path | None], frame: str
) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]], list[str]]:
    """Return images and their objects in the frame of the upright pictures.

    Args:
        images: COCO's images, with width and height in either frame.
        objects: annotations of each image.
        paths: path of each image.
        frame: frame of the annotations, `upright` or `stored`.

    Returns:
        Images with the upright width and height; their objects; and the names of images that EXIF turns by a quarter and whose
        width and height contradict `frame`. An image of neither size is unchanged: reading it raises the error.

    """
    with warnings.catch_warnings(), ThreadPoolExecutor(_READERS) as pool:
        warnings.simplefilter("ignore")  # about huge images and odd metadata: reading the image raises the error
        heads = list(pool.map(_stored_size, paths))
    turned, turned_objects, contrary = list(images), list(objects), []
    for at, head in enumerate(heads):
        if head is None or head[2] == 1:
            continue
        width, height, orientation = head
        upright = (height, width) if orientation >= 5 else (width, height)
        annotated = (images[at]["width"], images[at]["height"])
        if annotated not in ((width, height), upright):
            continue
        if width != height and orientation >= 5 and (annotated == upright) != (frame == UPRIGHT):
            contrary.append(
                f"{images[at]['file_name']} ({annotated[0]} x {annotated[1]} there, {upright[0]} x {upright[1]} upright)"
            )
        turned[at] = {**images[at], "width": upright[0], "height": upright[1]}
        if frame == STORED:
            turned_objects[at] = [
                _turned_object(thing, upright, orientation, images[at]["file_name"]) for thing in objects[at]
            ]
    return turned, turned_objects, contrary


def _stored_size(path: Path | None) -> tuple[int, int, int] | None:
    try:
        return None if path is None else stored_size_of(path)
    except InputError:
        return None


def _turned_object(thing: dict[str, Any], size: tuple[int, int], orientation: int, name: str) -> dict[str, Any]:
    x, y, w, h = thing["bbox"]
    low, high = to_upright(np.array([[x, y]]), np.array([[x + w, y + h]]), size, orientation)
    changed = {**thing, "bbox": [*low[0].tolist(), *(high - low)[0].tolist()]}
    outline = thing.get("segmentation")
    if isinstance(outline, dict):
        changed["segmentation"] = _turned_mask(outline, size, orientation, name)
    elif isinstance(outline, list):
        changed["segmentation"] = [_turned_points(points, size, orientation) for points in outline]
    return changed


def _turned_points(points: list[float], size: tuple[int, int], orientation: int) -> list[float]:
    array = np.array(points, np.float64).reshape(-1, 2)
    turned, _ = to_upright(array, array, size, orientation)
    return [float(value) for value in turned.ravel()]


def _turned_mask(outline: dict[str, Any], size: tuple[int, int], orientation: int, name: str) -> dict[str, Any]:
    """Return a mask's run lengths over the stored pixels as run lengths over the upright ones."""
    from pycocotools import mask as rle

    height, width = outline["size"]
    stored = size[::-1] if orientation >= 5 else size
    if (width, height) != tuple(stored):
        raise InputError(
            f"{name}: a mask of {width} x {height} pixels; expected that of the stored {stored[0]} x {stored[1]}"
        )
    code = rle.frPyObjects(outline, height, width) if isinstance(outline["counts"], list) else outline
    pixels = rle.decode(code)
    pixels = pixels.T if orientation >= 5 else pixels
    pixels = pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels
    pixels = pixels[::-1] if orientation in (3, 4, 7, 8) else pixels
    code = rle.encode(np.asfortranarray(pixels))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}
