"""Boxes of shards as the files that other repositories read; nothing is mined again."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from univip_stream import storage
from univip_stream.boxes import FRAMES, UPRIGHT, filter_boxes
from univip_stream.errors import InputError, UsageError
from univip_stream.export.boxes_arrays import write_detectron2, write_detreg, write_siamesedetr
from univip_stream.export.boxes_json import write_coco, write_orl, write_soco
from univip_stream.export.boxes_rows import Fact, Shards
from univip_stream.sources.published_files import Named, listed_images
from univip_stream.sources.targets import TARGETS, name_in

_UNBOUND = 1e9


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which candidates a target gets. Sizes are sqrt(box area) / sqrt(image area), 0 to 1."""

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
    """Pixels by which the target's width and height are less than the number of pixels."""

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


CHOICES = {
    # hologerry/SoCo, selective_search/filters.py, with the sides that its own search gives: last pixel less first.
    "soco": Choice(min_scale=32, max_aspect=3, min_size=0.3, max_size=0.8, less=1),
    # The name of AlignDet's file says it: ratio 3, size 0 to 0.8, IoU 0.5; its author says that the rest is SoCo's.
    "aligndet": Choice(min_scale=32, max_aspect=3, max_size=0.8, max_iou=0.5),
}
"""Each target's own filter; those that are not named filter when they read."""


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
class Job:
    """One export."""

    shards: Shards
    format: str
    choice: Choice | None
    """None: the boxes as the shards have them filtered."""
    out: Path
    upright: bool
    """Whether the boxes are of the upright images; otherwise of the pixels as they are stored."""
    annotations: list[Named]
    progress: Callable[[int], None]
    written: BoxesWritten = field(default_factory=BoxesWritten)

    def named(self, fact: Fact) -> str:
        """What the target calls an image."""
        return name_in(self.format, fact.source, fact.image_id, self.shards.sources)

    def facts(self) -> list[Fact]:
        """Images that are samples; the others are noted as left out.

        Raises:
            InputError: two that the target cannot tell apart.

        """
        held, seen = [], dict[str, str]()
        for fact in self.shards.facts():
            if not fact.held:
                self.written.left_out.append((fact.source, fact.reason or "no sample"))
                continue
            name = self.named(fact)
            if (other := seen.setdefault(name, fact.source)) != fact.source:
                raise InputError(
                    f"{other} and {fact.source} are both {name!r} for {self.format}, which has one entry a name; rename one of "
                    "them and mine again, or export sets of their own"
                )
            held.append(fact)
        return held

    def rows(self) -> Iterator[tuple[Fact, np.ndarray]]:
        """Samples with their boxes before any filter, or filtered as the shards have them; of the upright image."""
        for fact, boxes in self.shards.rows("boxes" if self.choice is None else "candidates"):
            yield fact, boxes
            self.progress(1)

    def chosen(self, fact: Fact, boxes: np.ndarray) -> np.ndarray:
        """The boxes that the target gets, int64 N x 4 x, y, w, h in its frame."""
        kept = boxes if self.choice is None else self.choice(boxes, fact.width, fact.height)
        return fact.framed(kept, self.upright)


_WRITERS: dict[str, Callable[[Job], None]] = {
    "orl": write_orl,
    "soco": write_soco,
    "detreg": write_detreg,
    "siamesedetr": write_siamesedetr,
    "aligndet": write_coco,
    "detectron2": write_detectron2,
    "coco": write_coco,
}


def export_boxes(
    shards: str | Path,
    format: str,
    out: str | Path,
    *,
    annotations: tuple[str, ...] = (),
    box_frame: str | None = None,
    overrides: dict[str, float | None] | None = None,
    planned: Callable[[int], None] = lambda images: None,
    progress: Callable[[int], None] = lambda images: None,
) -> BoxesWritten:
    """Write the boxes of shards as a repository reads them; the files appear when they are complete.

    Args:
        shards: folder of finished shards, local or remote.
        format: a name of `TARGETS`.
        out: local file, or folder for SoCo, DETReg and SiameseDETR.
        annotations: COCO's files: the order of ORL's boxes, and the image ids where the shards have none.
        box_frame: for COCO's JSON, `upright` (the default) or `stored`: of which picture the boxes are where EXIF turns it.
        overrides: fields of `Choice` that replace the target's own; None keeps them.
        planned: called once with the number of images.
        progress: called as images get done, with their number.

    Raises:
        InputError: shards without boxes, images that the target cannot tell apart or cannot read, a place that is taken.
        UsageError: a format that does not exist, annotations missing or where none are used.

    """
    if format not in TARGETS:
        raise UsageError(f"unknown --format {format!r}; expected one of: {', '.join(TARGETS)}")
    if format == "orl" and not annotations:
        raise UsageError("--format orl needs --annotations: ORL finds an image's boxes by its place in the annotation file")
    if annotations and format in ("soco", "detreg", "siamesedetr"):
        raise UsageError(f"--annotations means nothing to {format}, which finds boxes by the names of files; leave it out")
    if box_frame is not None and (format != "coco" or box_frame not in FRAMES):
        raise UsageError(
            f"--box-frame {box_frame} for {format}; expected one of {', '.join(FRAMES)}, for coco: the other repositories' own "
            "readers say in which frame their boxes are"
        )
    if storage.is_remote(out):
        raise UsageError(f"--out {out}: expected a local path; the readers of {format} open local files")
    place = Path(out)
    _check_place(place, format)
    listed = list(listed_images(annotations))
    ids = {image.file_name: image.image_id for image in listed if image.image_id is not None}
    found = Shards(shards, ids)
    job = Job(
        shards=found, format=format, choice=_choice(found, format, overrides or {}), out=place, annotations=listed,
        upright=TARGETS[format].upright if box_frame is None else box_frame == UPRIGHT,
        progress=progress,
    )  # fmt: skip
    planned(found.images)
    place.parent.mkdir(parents=True, exist_ok=True)
    _WRITERS[format](job)
    return job.written


def _choice(shards: Shards, format: str, overrides: dict[str, float | None]) -> Choice | None:
    given = {name: value for name, value in overrides.items() if value is not None}
    if format != "coco":
        return replace(CHOICES.get(format, Choice()), **given)  # type: ignore[arg-type]
    if not given:
        return None
    names = ("min_scale", "max_aspect", "max_iou", "max_boxes")
    own = {name: shards.parameters[name] for name in names if shards.parameters.get(name) is not None}
    return Choice(**(own | given))


def _check_place(place: Path, format: str) -> None:
    if not TARGETS[format].folder:
        if place.is_dir():
            raise InputError(f"--out {place} is a folder; {format} reads one file: name it")
    elif place.exists() and not place.is_dir():
        raise InputError(f"--out {place} is a file; {format} reads a folder: name one")
    elif format != "soco" and place.is_dir() and any(place.iterdir()):
        raise InputError(f"--out {place} holds files; expected an empty folder, or none: it is filled as a whole")
