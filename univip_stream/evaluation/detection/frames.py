"""Boxes and outlines of photographs that EXIF turns, brought into the upright picture, which is what a detector sees.

Nearly all images have no turn, and what belongs to them stays as it is.
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
"""Headers read at a time: a disk behind a network takes its time for each."""


def made_upright(
    images: Sequence[dict[str, Any]], objects: Sequence[list[dict[str, Any]]], paths: Sequence[Path | None], frame: str
) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]], list[str]]:
    """Images and their objects in the frame of the upright pictures.

    Args:
        images: COCO's, with width and height in either frame.
        objects: each image's annotations.
        paths: where each image lies.
        frame: `upright` or `stored`: of which picture the annotations are.

    Returns:
        Images with the upright width and height, their objects, and the names of images that EXIF turns by a quarter and whose
        width and height are those of the other frame than `frame`. An image of neither size stays: reading it says so.

    """
    with warnings.catch_warnings(), ThreadPoolExecutor(_READERS) as pool:
        warnings.simplefilter("ignore")  # about bombs and odd metadata: what cannot be read says so when it is read
        heads = list(pool.map(_head, paths))
    turned, theirs, contrary = list(images), list(objects), []
    for at, head in enumerate(heads):
        if head is None or head[2] == 1:
            continue
        width, height, orientation = head
        upright = (height, width) if orientation >= 5 else (width, height)
        said = (images[at]["width"], images[at]["height"])
        if said not in ((width, height), upright):
            continue
        if width != height and orientation >= 5 and (said == upright) != (frame == UPRIGHT):
            contrary.append(f"{images[at]['file_name']} ({said[0]} x {said[1]} there, {upright[0]} x {upright[1]} upright)")
        turned[at] = {**images[at], "width": upright[0], "height": upright[1]}
        if frame == STORED:
            theirs[at] = [_turned(thing, upright, orientation, images[at]["file_name"]) for thing in objects[at]]
    return turned, theirs, contrary


def _head(path: Path | None) -> tuple[int, int, int] | None:
    try:
        return None if path is None else stored_size_of(path)
    except InputError:
        return None


def _turned(thing: dict[str, Any], size: tuple[int, int], orientation: int, name: str) -> dict[str, Any]:
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
    """Run lengths of the stored pixels as run lengths of the upright ones."""
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
