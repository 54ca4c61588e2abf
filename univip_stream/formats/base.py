"""What a format of boxes says of itself, and what its files have in common with those of other formats.

A format is one file beside this one and an entry in `registry.py`. What it writes it finds again when it reads.
"""

from abc import ABC, abstractmethod
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
from univip_stream.sources.names import path_of

_UNBOUND = 1e9


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which candidates a format gets. Sizes are sqrt(box area) / sqrt(image area), 0 to 1."""

    min_scale: int = 1
    """Shortest side, pixels."""
    max_aspect: float = _UNBOUND
    """Longest side over shortest."""
    min_size: float = 0.0
    max_size: float = _UNBOUND
    max_iou: float = 1.0
    """Of two boxes overlapping more than this, the earlier stays."""
    max_boxes: int | None = None
    """At most so many."""
    less: int = 0
    """Pixels by which the format's width and height are less than the number of pixels."""

    def __call__(self, boxes: np.ndarray, width: int, height: int) -> np.ndarray:
        """The boxes that stay, of N x 4 x, y, w, h of an image of this size, in their order."""
        w, h = (np.asarray(boxes, np.int64)[:, 2:] - self.less).T
        size = np.sqrt(w * h) / np.sqrt(width * height)
        stays = (np.minimum(w, h) >= self.min_scale) & (w <= self.max_aspect * h) & (h <= self.max_aspect * w)
        kept: np.ndarray = boxes[stays & (self.min_size <= size) & (size <= self.max_size)]
        if self.max_iou < 1:
            kept = filter_boxes(kept, 1, _UNBOUND, self.max_iou, self.max_boxes)
        return kept[: self.max_boxes]

    def ever_wider(self) -> "tuple[Choice, Choice, Choice]":
        """This, then boxes of any size, then of any aspect too: SoCo's, where nothing passes."""
        any_size = replace(self, min_size=0.0, max_size=_UNBOUND)
        return self, any_size, replace(any_size, max_aspect=_UNBOUND)


@dataclass(kw_only=True)
class BoxesWritten:
    """What was written, and what was not."""

    files: list[str] = field(default_factory=list)
    images: int = 0
    boxes: int = 0
    without_boxes: int = 0
    """Images that are there with no box."""
    filled: list[str] = field(default_factory=list)
    """ORL's images that had no box and got one, because it reads none without."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """(source, reason) of images that are not in the files."""

    def count(self, boxes: np.ndarray) -> None:
        """Note an image that was written."""
        self.images += 1
        self.boxes += len(boxes)
        self.without_boxes += not len(boxes)


@dataclass(kw_only=True)
class Export:
    """Boxes of shards on their way into a format's file."""

    shards: Shards
    format: "Format"
    choice: Choice | None
    """None: the boxes as the shards have them filtered."""
    out: Path
    upright: bool
    """Whether the boxes are of the upright images; otherwise of the pixels as they are stored."""
    annotations: list[ListedImage]
    progress: Callable[[int], None]
    written: BoxesWritten = field(default_factory=BoxesWritten)

    def named(self, fact: Fact) -> str:
        """What the format calls an image."""
        return self.format.image_name(fact.source, fact.image_id, self.shards.sources)

    def facts(self) -> list[Fact]:
        """Images that are samples; the others are noted as left out.

        Raises:
            InputError: two that the format cannot tell apart.

        """
        held, seen = [], dict[str, str]()
        for fact in self.shards.facts():
            if not fact.held:
                self.written.left_out.append((fact.source, fact.reason or "no sample"))
                continue
            name = self.named(fact)
            if (other := seen.setdefault(name, fact.source)) != fact.source:
                raise InputError(
                    f"{other} and {fact.source} are both {name!r} for {self.format.name}, which has one entry a name; rename one "
                    "of them and mine again, or export sets of their own"
                )
            held.append(fact)
        return held

    def rows(self) -> Iterator[tuple[Fact, np.ndarray]]:
        """Samples with their boxes before any filter, or filtered as the shards have them; of the upright image."""
        for fact, boxes in self.shards.rows("boxes" if self.choice is None else "candidates"):
            yield fact, boxes
            self.progress(1)

    def chosen(self, fact: Fact, boxes: np.ndarray) -> np.ndarray:
        """The boxes that the format gets, int64 N x 4 x, y, w, h in its frame."""
        kept = boxes if self.choice is None else self.choice(boxes, fact.width, fact.height)
        return fact.framed(kept, self.upright)


class Format(ABC):
    """A repository's file of boxes."""

    name: ClassVar[str]
    """After --format."""
    says: ClassVar[str]
    """What is written, for people."""
    folder: ClassVar[bool] = False
    """Whether it is a folder of files, not one file."""
    several: ClassVar[bool] = False
    """Whether its folder may hold other files too: it writes under names of its own."""
    upright: ClassVar[bool] = False
    """Whether its reader turns images by EXIF. Otherwise boxes are in the frame of the stored pixels, as PIL opens them."""
    framed_at_will: ClassVar[bool] = False
    """Whether nothing says of which frame its boxes are, so that a person may (--box-frame)."""
    annotations: ClassVar[Literal["order", "ids", "unused"]] = "ids"
    """What COCO's annotation file is needed for: the order of the images, the ids of images whose shards have none, nothing."""
    choice: ClassVar[Choice | None] = Choice()
    """Which candidates it gets: all where it filters when it reads; None for the boxes as the shards have them filtered."""

    def image_name(self, source: str, image_id: int | None, sources: Sequence[str]) -> str:
        """What its file calls an image.

        Args:
            source: the image's name in shards, its source's name first.
            image_id: COCO's.
            sources: the names of all sources.

        """
        return path_of(source, sources)

    @abstractmethod
    def read(self, boxes: Boxes, annotations: tuple[str, ...]) -> None:
        """Read what `boxes.location` holds.

        Args:
            boxes: gets the boxes, image after image.
            annotations: COCO's files, where it needs them.

        Raises:
            InputError: it is of another format, or damaged.

        """

    @abstractmethod
    def write(self, export: Export) -> None:
        """Write `export.out`, whole or not at all, and note it in `export.written`."""


def stem_of(path: str) -> str:
    """The last part of a path up to its first dot, as SoCo and DETReg cut it."""
    return path.rpartition("/")[2].partition(".")[0]


def corners_of(boxes: np.ndarray) -> np.ndarray:
    """int64 N x 4: x1, y1, x2, y2 with the latter just outside."""
    return np.ascontiguousarray(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1))
