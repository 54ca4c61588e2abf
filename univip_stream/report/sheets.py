"""Draw contact sheets as PNG: the images with their boxes and their crops, for people who have only a terminal."""

import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from univip_stream.files import written_atomically
from univip_stream.report.build import Picked, Report
from univip_stream.report.crops import ImageCrops, fitted

_COLUMNS, _ROWS = 6, 5
_CELL = 220
"""Side of an image's cell, pixels."""
_CAPTION = 34
"""Height of the two lines below it, pixels."""
_GAP = 10
_VIEWS_ROWS = 6
_BEST = 12
"""Maximal number of boxes drawn into an image; the best ones are."""

_Colour = tuple[int, int, int]
# RGB, as in the page.
_PAPER, _INK, _SOFT = (246, 247, 247), (28, 35, 38), (85, 99, 106)
_MINED_COLOUR, _VIEW_COLOURS = (255, 176, 0), ((61, 139, 255), (255, 79, 163))
_TAKEN_COLOUR, _NAIVE_COLOUR = (165, 227, 28), (255, 90, 54)


def write_sheets(report: Report, folder: Path) -> list[Path]:
    """Write `images-000.png`, ... and `views-000.png`, ..., and return the files. Older sheets there are removed.

    Args:
        report: report whose images are drawn; those that cannot be read are left out.
        folder: created if it is missing.

    """
    folder.mkdir(parents=True, exist_ok=True)
    images = [(picked, picked.crops) for picked in report.picked if picked.crops is not None]
    files = []
    for name, size, draw in (("images", _COLUMNS * _ROWS, _images), ("views", _VIEWS_ROWS, _views)):
        for old in folder.glob(f"{name}-[0-9][0-9][0-9].png"):
            old.unlink()
        for number, first in enumerate(range(0, len(images), size)):
            files.append(folder / f"{name}-{number:03d}.png")
            data = io.BytesIO()
            Image.fromarray(draw(report, images[first : first + size])).save(data, "PNG", compress_level=2)
            with written_atomically(files[-1]) as file:
                file.write(data.getvalue())
    return files


def _images(report: Report, group: Sequence[tuple[Picked, ImageCrops]]) -> np.ndarray:
    """Draw images with their best boxes, _COLUMNS side by side."""
    rows = -(-len(group) // _COLUMNS)
    sheet = _paper(_COLUMNS * (_CELL + _GAP) + _GAP, rows * (_CELL + _CAPTION + _GAP) + _GAP)
    captions = []
    for at, (picked, crops) in enumerate(group):
        row, column = divmod(at, _COLUMNS)
        x, y = _GAP + column * (_CELL + _GAP), _GAP + row * (_CELL + _CAPTION + _GAP)
        boxes = report.index.boxes_of(picked.sample)[:_BEST]
        _paste(sheet, _with_boxes(report, picked, crops, [(box, _MINED_COLOUR, 1) for box in boxes[::-1]]), x, y)
        captions += _name_and_reason(report, picked, x, y + _CELL + 2)
    return _with_captions(sheet, captions)


def _views(report: Report, group: Sequence[tuple[Picked, ImageCrops]]) -> np.ndarray:
    """Draw one row per image: the image with views and instances; the views; the instances; each also augmented."""
    K = report.views.instances
    half = (_CELL - 4) // 2
    width = _GAP + 5 * (_CELL + _GAP) + K * (half + _GAP)
    sheet = _paper(width, len(group) * (_CELL + _CAPTION + _GAP) + _GAP)
    captions = []
    for row, (picked, crops) in enumerate(group):
        y, views = _GAP + row * (_CELL + _CAPTION + _GAP), crops.views
        mined = len(views.instances) - views.filled
        boxes = [(box, colour, 2) for box, colour in zip(views.scenes, _VIEW_COLOURS, strict=True)]
        boxes += [(box, _TAKEN_COLOUR if k < mined else _NAIVE_COLOUR, 2) for k, box in enumerate(views.instances)]
        _paste(sheet, _with_boxes(report, picked, crops, boxes), _GAP, y)
        x = 2 * _GAP + _CELL
        for view, crop in enumerate(crops.scenes):
            for picture, what in ((crop.before, f"view {view + 1}"), (crop.after, "augmented" + ", mirrored" * crop.flipped)):
                _paste(sheet, fitted(picture, _CELL), x, y)
                captions.append((x, y + _CELL + 2, what, _SOFT))
                x += _CELL + _GAP
        for k, crop in enumerate(crops.instances):
            _paste(sheet, fitted(crop.before, half), x, y, half)
            _paste(sheet, fitted(crop.after, half), x, y + half + 4, half)
            rank = crops.ranks[k]
            captions.append((x, y + _CELL + 2, "random box" if rank is None else f"box {rank + 1}", _SOFT))
            x += half + _GAP
        captions += _name_and_reason(report, picked, _GAP, y + _CELL + 2)
    return _with_captions(sheet, captions)


def _name_and_reason(report: Report, picked: Picked, x: int, y: int) -> list[tuple[int, int, str, _Colour]]:
    """Return the captions of an image: its name, and below it the reason why it is shown."""
    index = report.index
    source = index.text("source", picked.sample)
    name = source if len(source) <= 32 else "…" + source[-31:]
    boxes = len(index.boxes_of(picked.sample))
    return [
        (x, y, name, _INK),
        (x, y + 15, f"{boxes} {'box' if boxes == 1 else 'boxes'}, {picked.marks[0].text}"[:38], _SOFT),
    ]


def _with_boxes(
    report: Report, picked: Picked, crops: ImageCrops, boxes: Sequence[tuple[np.ndarray, _Colour, int]]
) -> np.ndarray:
    image = fitted(crops.image, _CELL).copy()
    scale = image.shape[1] / report.index.size_of(picked.sample)[0]
    for box, colour, thick in boxes:
        x, y, w, h = (round(float(v) * scale) for v in box)
        corner = min(x + w, image.shape[1]) - 1, min(y + h, image.shape[0]) - 1
        if thick > 1:  # a dark rim, so that it is visible on bright pixels too
            cv2.rectangle(image, (x, y), corner, (0, 0, 0), thick + 2)
        cv2.rectangle(image, (x, y), corner, colour, thick)
    return image


def _paper(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), _PAPER, np.uint8)


def _paste(sheet: np.ndarray, picture: np.ndarray, x: int, y: int, side: int = _CELL) -> None:
    """Copy a picture into the middle of its cell."""
    height, width = picture.shape[:2]
    x, y = x + (side - width) // 2, y + (side - height) // 2
    sheet[y : y + height, x : x + width] = picture


def _with_captions(sheet: np.ndarray, captions: Sequence[tuple[int, int, str, _Colour]]) -> np.ndarray:
    image = Image.fromarray(sheet)
    pen, font = (
        ImageDraw.Draw(image),
        ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 11),
    )
    for x, y, text, colour in captions:
        pen.text((x, y), text, colour, font=font)
    return np.asarray(image)
