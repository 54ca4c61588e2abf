"""Base class of box formats, and the parts of reading and writing that they share.

A format is one file beside this one and an entry in `registry.py`. It can read what it writes.
"""

from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from univip_stream.boxes import filter_boxes
from univip_stream.errors import InputError
from univip_stream.formats.collected import Boxes
from univip_stream.formats.shards import Fact, Shards
from univip_stream.sources.coco import ListedImage
from univip_stream.sources.names import number_of, path_of, repeated

_UNLIMITED = 1e9


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A format's choice among the candidates. Sizes are sqrt(box area) / sqrt(image area), 0 to 1."""

    min_scale: int = 1
    """Shortest side, pixels."""
    max_aspect: float = _UNLIMITED
    """Longest side over shortest."""
    min_size: float = 0.0
    max_size: float = _UNLIMITED
    max_iou: float = 1.0
    """Of two boxes overlapping more than this, the earlier stays."""
    max_boxes: int | None = None
    """Maximal number of boxes."""
    less: int = 0
    """Pixels by which the format's width and height are smaller than the number of pixels."""

    def __call__(self, boxes: np.ndarray, width: int, height: int) -> np.ndarray:
        """Return those of N x 4 boxes x, y, w, h that pass, in their order; `width` and `height` are the image's."""
        w, h = (np.asarray(boxes, np.int64)[:, 2:] - self.less).T
        size = np.sqrt(w * h) / np.sqrt(width * height)
        stays = (np.minimum(w, h) >= self.min_scale) & (w <= self.max_aspect * h) & (h <= self.max_aspect * w)
        kept: np.ndarray = boxes[stays & (self.min_size <= size) & (size <= self.max_size)]
        if self.max_iou < 1:
            kept = filter_boxes(kept, 1, _UNLIMITED, self.max_iou, self.max_boxes)
        return kept[: self.max_boxes]

    def relaxed(self) -> "tuple[Choice, Choice, Choice]":
        """Return this choice, the same for any size, and the same for any size and aspect: SoCo's steps if nothing passes."""
        any_size = replace(self, min_size=0.0, max_size=_UNLIMITED)
        return self, any_size, replace(any_size, max_aspect=_UNLIMITED)


@dataclass(kw_only=True)
class BoxesWritten:
    """Counts of what was written, and the images that were not."""

    files: list[str] = field(default_factory=list)
    images: int = 0
    boxes: int = 0
    without_boxes: int = 0
    """Number of images written without a box."""
    filled: list[str] = field(default_factory=list)
    """Images that had no box and got one, because ORL cannot read images without boxes."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """(source, reason) of images that are not in the files."""

    def count(self, boxes: np.ndarray) -> None:
        """Count an image that was written."""
        self.images += 1
        self.boxes += len(boxes)
        self.without_boxes += not len(boxes)


@dataclass(kw_only=True)
class Export:
    """One export of the boxes of shards to a format's file."""

    shards: Shards
    format: "Format"
    choice: Choice | None
    """Choice among the candidates; None for the filtered boxes of the shards."""
    out: Path
    upright: bool
    """Whether the boxes are written in the frame of the upright images; otherwise in that of the stored pixels."""
    annotations: list[ListedImage]
    progress: Callable[[int], None]
    written: BoxesWritten = field(default_factory=BoxesWritten)

    def named(self, fact: Fact) -> str:
        """Return the format's name of an image."""
        return self.format.image_name(fact.source, fact.image_id, self.shards.sources)

    def facts(self) -> Iterator[Fact]:
        """Yield the images that are samples, in their order. They are read from the indexes each time, and none are held."""
        return (fact for fact in self.shards.facts() if fact.held)

    def check(self) -> None:
        """Record the images that are no samples as left out, and make sure that the format can tell the others apart.

        This holds eight bytes an image.

        Raises:
            InputError: two images have the same name in the format.

        """
        numbers = array("Q")
        for fact in self.shards.facts():
            if fact.held:
                numbers.append(number_of(self.named(fact)))
            else:
                self.written.left_out.append((fact.source, fact.reason or "no sample"))
        if not (suspects := repeated(numbers)):
            return
        seen: dict[str, str] = {}
        for fact in self.facts():
            name = self.named(fact)
            if number_of(name) in suspects and (other := seen.setdefault(name, fact.source)) != fact.source:
                raise InputError(
                    f"{other} and {fact.source} are both {name!r} for {self.format.name}, which has one entry a name; rename one "
                    "of them and mine again, or export sets of their own"
                )

    def rows(self) -> Iterator[tuple[Fact, np.ndarray]]:
        """Yield samples with their candidates, or with the shards' filtered boxes if there is no choice; both upright."""
        for fact, boxes in self.shards.rows("boxes" if self.choice is None else "candidates"):
            yield fact, boxes
            self.progress(1)

    def chosen(self, fact: Fact, boxes: np.ndarray) -> np.ndarray:
        """Return the boxes that the format gets, int64 N x 4 x, y, w, h in its frame."""
        kept = boxes if self.choice is None else self.choice(boxes, fact.width, fact.height)
        return fact.framed(kept, self.upright)


class Format(ABC):
    """The box format of a repository."""

    name: ClassVar[str]
    """Value of --format."""
    summary: ClassVar[str]
    """One line that describes the format."""
    folder: ClassVar[bool] = False
    """Whether it is a folder of files instead of one file."""
    shares_folder: ClassVar[bool] = False
    """Whether its folder may hold other files too, because it writes under fixed names."""
    upright: ClassVar[bool] = False
    """Whether its reader turns images by EXIF. Otherwise boxes are in the frame of the stored pixels, as PIL opens them."""
    frame_selectable: ClassVar[bool] = False
    """Whether its files leave the frame of the boxes open, so that users choose it (--box-frame)."""
    annotations: ClassVar[Literal["order", "ids", "unused"]] = "ids"
    """Use of COCO's annotation file: for the order of the images, for ids of images whose shards have none, or not at all."""
    choice: ClassVar[Choice | None] = Choice()
    """Candidates that it gets: all if its reader filters; None for the filtered boxes of the shards."""

    def image_name(self, source: str, image_id: int | None, sources: Sequence[str]) -> str:
        """Return the name of an image in its file.

        Args:
            source: the image's name in shards, which begins with its source's name.
            image_id: COCO's id of the image.
            sources: the names of all sources.

        """
        return path_of(source, sources)

    @abstractmethod
    def read(self, boxes: Boxes, annotations: tuple[str, ...]) -> None:
        """Read the boxes at `boxes.location`.

        Args:
            boxes: receives the boxes, image after image.
            annotations: COCO's files, if the format needs them.

        Raises:
            InputError: the file is of another format, or damaged.

        """

    @abstractmethod
    def write(self, export: Export) -> None:
        """Write `export.out`, whole or not at all, and record what was written in `export.written`."""


def stem_of(path: str) -> str:
    """Return the last part of a path up to its first dot, as SoCo and DETReg do."""
    return path.rpartition("/")[2].partition(".")[0]


def corners_of(boxes: np.ndarray) -> np.ndarray:
    """Return boxes as int64 N x 4 x1, y1, x2, y2, with x2 and y2 just outside."""
    return np.ascontiguousarray(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1))
