"""A page about shards that needs nothing but itself: pictures, boxes, views, distributions, oddities. And contact sheets."""

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from univip_stream.augment import AugmentConfig
from univip_stream.errors import InputError
from univip_stream.files import written_atomically
from univip_stream.report.seen import Seen, see
from univip_stream.report.survey import Histogram, Survey, sampled
from univip_stream.shapes import UInt8
from univip_stream.stream.reader import Reader
from univip_stream.views import ViewConfig

PICTURE_SIDE = 480
"""Longest side of a picture on the page, pixels."""
CROP_SIDE = 112
QUALITY = 78
BOXES_SHOWN = 200

SHEET_COLUMNS, SHEET_ROWS, SHEET_CELL, SHEET_BOXES = 6, 5, 300, 30


@dataclass(frozen=True, kw_only=True)
class Looked:
    """One image that is shown."""

    sample: int
    key: str
    source: str
    label: str | None
    why: list[str]
    """What is odd about it; empty for those that chance chose."""
    image: UInt8[np.ndarray, "H W 3"] | None
    error: str
    """Why there is no image, where its bytes cannot be read."""
    boxes: np.ndarray
    seen: Seen | None


def look(
    found: Survey, *, samples: int = 48, seed: int = 0, views: ViewConfig | None = None, augment: AugmentConfig | None = None
) -> Iterator[Looked]:
    """Read the images to show, and draw views of each.

    An image that cannot be read is shown as an oddity with its reason; looking must not end where looking is needed most.
    """
    index, reader = found.index, Reader(found.index)
    try:
        for sample in chosen(found, samples, seed):
            boxes = index.boxes_of(sample).astype(np.int32)
            why = found.odd.get(sample, [])
            image, seen, error = None, None, ""
            try:
                image = reader.image(sample)
                seen = see(image, boxes, [seed, sample], views or ViewConfig(), augment or AugmentConfig())
            except InputError as problem:
                error, why = str(problem), ["cannot be read", *why]
            yield Looked(
                sample=sample, key=index.text("key", sample), source=index.text("source", sample),
                label=index.text("label", sample), why=why, image=image, error=error, boxes=boxes, seen=seen,
            )  # fmt: skip
    finally:
        reader.close()


def write_page(
    found: Survey,
    out: Path,
    *,
    title: str,
    samples: int,
    seed: int,
    sheets: Path | None = None,
    progress: Callable[[int], None] = lambda images: None,
) -> dict[str, Any]:
    """Write the page, and contact sheets of the same images where a folder for them is given.

    Args:
        found: the numbers.
        out: the page.
        title: what the shards are called.
        samples: images that chance chooses, beside the odd ones.
        seed: of that choice, of views and augmentations.
        sheets: folder for PNG contact sheets.
        progress: called with each image's count of 1.

    Returns:
        What the page says in numbers.

    """
    from jinja2 import Environment, PackageLoader

    shown, sheet = [], _Sheets(sheets)
    for looked in look(found, samples=samples, seed=seed):
        shown.append(_entry(looked))
        sheet.add(looked)
        progress(1)
    sheet.end()
    facts = summary(found) | {
        "shown": len(shown),
        "odd": len(found.odd),
        "seed": seed,
        "sheets": [str(p) for p in sheet.written],
    }
    page = Environment(loader=PackageLoader("univip_stream.report"), autoescape=True).get_template("inspect.html")
    text = page.render(
        title=title,
        facts=facts,
        made=found.facts,
        notes=found.index.notes,
        histograms=[_bars(histogram) for histogram in found.histograms],
        failures=found.failures,
        data={"images": shown, "failures": [failure._asdict() for failure in found.failures]},
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with written_atomically(out) as file:
        file.write(text.encode())
    return facts


def summary(found: Survey) -> dict[str, Any]:
    """The numbers of shards, for machines."""
    counts = found.boxes_per_image
    return {
        "images": len(found.index),
        "shards": len(found.index.shards),
        "boxes": len(found.index.boxes),
        "without_boxes": int((counts == 0).sum()),
        "failed": found.failed,
        "boxes_per_image": round(float(counts.mean()), 2),
        "drawn": found.drawn,
    }


def chosen(found: Survey, samples: int, seed: int) -> list[int]:
    """Samples to show: all that are odd, then those that chance chooses, in their order."""
    return [*found.odd, *(s for s in sampled(len(found.index), samples, seed).tolist() if s not in found.odd)]


def _entry(looked: Looked) -> dict[str, Any]:
    height, width = (0, 0) if looked.image is None else looked.image.shape[:2]
    told: dict[str, Any] = {
        "key": looked.key,
        "source": looked.source,
        "label": looked.label,
        "why": looked.why,
        "error": looked.error,
        "width": width,
        "height": height,
        "count": len(looked.boxes),
        "boxes": looked.boxes[:BOXES_SHOWN].tolist(),
    }
    if looked.image is not None and looked.seen is not None:
        seen = looked.seen
        told |= {
            "picture": _embedded(_within(looked.image, PICTURE_SIDE)),
            "scenes": seen.views.scenes.tolist(),
            "overlap": seen.views.overlap.tolist(),
            "instances": seen.views.instances.tolist(),
            "filled": seen.views.filled,
            "tries": seen.views.tries,
            "held": seen.held,
            "cut_scenes": [_embedded(_within(crop, CROP_SIDE)) for crop in seen.scenes],
            "seen_scenes": [_embedded(_within(seen.shown(crop), CROP_SIDE)) for crop in seen.seen_scenes],
            "cut_instances": [_embedded(crop) for crop in seen.instances],
            "seen_instances": [_embedded(seen.shown(crop)) for crop in seen.seen_instances[0]],
        }
    return told


def _within(image: np.ndarray, side: int) -> np.ndarray:
    """Shrunk until it fits a square; never enlarged."""
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return image if scale == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _embedded(image: np.ndarray) -> str:
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def _bars(histogram: Histogram) -> dict[str, Any]:
    """A histogram as rectangles of a 300 x 90 drawing."""
    most = max(histogram.counts) or 1
    wide = 300 / len(histogram.counts)
    total = sum(histogram.counts) or 1

    def edge(value: float) -> str:
        if histogram.whole:
            return f"{value:.0f}"
        return f"{value:.0f}" if abs(value) >= 20 or float(value).is_integer() else f"{value:.2g}"

    # Of whole numbers a bin's edges lie between: people want the numbers in it.
    inner = 0.5 if histogram.whole else 0
    ranges = [(low + inner, high - inner) for low, high in zip(histogram.edges, histogram.edges[1:], strict=False)]
    bars = [
        {
            "x": round(at * wide + 0.5, 2), "y": round(90 - 84 * count / most, 2), "w": round(wide - 1, 2),
            "h": round(84 * count / most, 2),
            "says": f"{edge(low)} to {edge(high)} {histogram.unit}: {count} ({100 * count / total:.1f} %)",
        }
        for at, (count, (low, high)) in enumerate(zip(histogram.counts, ranges, strict=True))
    ]  # fmt: skip
    ends = edge(ranges[0][0]), edge(ranges[-1][1])
    return {"title": histogram.title, "unit": histogram.unit, "says": histogram.says, "bars": bars, "ends": ends}


class _Sheets:
    """Contact sheets: a grid of pictures with their boxes, a PNG for every so many."""

    def __init__(self, folder: Path | None):
        self.folder, self.cells = folder, []  # type: Path | None, list[np.ndarray]
        self.written: list[Path] = []

    def add(self, looked: Looked) -> None:
        if self.folder is None or looked.image is None:
            return
        self.cells.append(_cell(looked))
        if len(self.cells) == SHEET_COLUMNS * SHEET_ROWS:
            self.end()

    def end(self) -> None:
        if self.folder is None or not self.cells:
            return
        rows = -(-len(self.cells) // SHEET_COLUMNS)
        sheet = np.full((rows * SHEET_CELL, min(SHEET_COLUMNS, len(self.cells)) * SHEET_CELL, 3), 255, np.uint8)
        for at, cell in enumerate(self.cells):
            row, column = divmod(at, SHEET_COLUMNS)
            sheet[row * SHEET_CELL :, column * SHEET_CELL :][:SHEET_CELL, :SHEET_CELL] = cell
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"boxes-{len(self.written) + 1:02d}.png"
        with written_atomically(path) as file:
            file.write(cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1].tobytes())
        self.written.append(path)
        self.cells = []


def _cell(looked: Looked) -> np.ndarray:
    assert looked.image is not None
    cell = np.full((SHEET_CELL, SHEET_CELL, 3), 255, np.uint8)
    small = _within(looked.image, SHEET_CELL - 24)
    scale = small.shape[1] / looked.image.shape[1]
    small = small.copy()
    # The best boxes last, so that they lie on top.
    for rank in reversed(range(min(SHEET_BOXES, len(looked.boxes)))):
        x, y, w, h = (round(float(v) * scale) for v in looked.boxes[rank])
        cv2.rectangle(small, (x, y), (x + w - 1, y + h - 1), (255, 213, 74) if rank < 10 else (90, 170, 230), 1)
    top = (SHEET_CELL - 20 - small.shape[0]) // 2
    left = (SHEET_CELL - small.shape[1]) // 2
    cell[top : top + small.shape[0], left : left + small.shape[1]] = small
    text = f"{looked.key}  {len(looked.boxes)}  {', '.join(looked.why)}"
    cv2.putText(cell, text[:44], (8, SHEET_CELL - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (40, 40, 40), 1, cv2.LINE_AA)
    return cell
