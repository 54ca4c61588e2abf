"""Export the boxes of shards to files that other repositories read; nothing is mined again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from univip_stream import storage
from univip_stream.boxes import FRAMES, UPRIGHT
from univip_stream.errors import InputError, UsageError
from univip_stream.formats.base import BoxesWritten, Choice, Export, Format
from univip_stream.formats.registry import format_named
from univip_stream.formats.shards import Shards
from univip_stream.sources.coco import listed_images


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
    """Write the boxes of shards in the format of a repository; the files appear when they are complete.

    Args:
        shards: folder of finished shards, local or remote.
        format: a name of `formats.registry.FORMATS`.

        out: local file, or folder for SoCo, DETReg and SiameseDETR.
        annotations: COCO's files: they give the order of ORL's boxes, and the image ids if the shards have none.
        box_frame: for COCO's JSON, the frame of the boxes for images that EXIF turns: `upright` (the default) or `stored`.
        overrides: fields of `Choice` that replace the format's own; None keeps them.
        planned: called once with the number of images.
        progress: called with the number of images just finished.

    Raises:
        InputError: the shards have no boxes, the format cannot tell images apart or cannot read them, or `out` is in use.
        UsageError: the format does not exist, or annotations are missing or not used by it.

    """
    target = format_named(format)
    if target.annotations == "order" and not annotations:
        raise UsageError(
            f"--format {format} needs --annotations: its reader finds an image's boxes by its place in the annotation file"
        )
    if annotations and target.annotations == "unused":
        raise UsageError(f"--annotations means nothing to {format}, which finds boxes by the names of files; leave it out")
    if box_frame is not None and (not target.frame_selectable or box_frame not in FRAMES):
        raise UsageError(
            f"--box-frame {box_frame} for {format}; expected one of {', '.join(FRAMES)}, for coco: the other repositories' own "
            "readers say in which frame their boxes are"
        )
    if storage.is_remote(out):
        raise UsageError(f"--out {out}: expected a local path; the readers of {format} open local files")
    place = Path(out)
    _check_place(place, target)
    listed = list(listed_images(annotations))
    ids = {image.file_name: image.image_id for image in listed if image.image_id is not None}
    found = Shards(shards, ids)
    export = Export(
        shards=found, format=target, choice=_choice(found, target, overrides or {}), out=place, annotations=listed,
        upright=target.upright if box_frame is None else box_frame == UPRIGHT,
        progress=progress,
    )  # fmt: skip
    planned(found.images)
    export.check()
    place.parent.mkdir(parents=True, exist_ok=True)
    target.write(export)
    return export.written


def _choice(shards: Shards, format: Format, overrides: dict[str, float | None]) -> Choice | None:
    given = {name: value for name, value in overrides.items() if value is not None}
    if format.choice is not None:
        return replace(format.choice, **given)  # type: ignore[arg-type]
    if not given:
        return None
    names = ("min_scale", "max_aspect", "max_iou", "max_boxes")
    own = {name: shards.parameters[name] for name in names if shards.parameters.get(name) is not None}
    return Choice(**(own | given))


def _check_place(place: Path, format: Format) -> None:
    if not format.folder:
        if place.is_dir():
            raise InputError(f"--out {place} is a folder; {format.name} reads one file: name it")
    elif place.exists() and not place.is_dir():
        raise InputError(f"--out {place} is a file; {format.name} reads a folder: name one")
    elif not format.shares_folder and place.is_dir() and any(place.iterdir()):
        raise InputError(f"--out {place} holds files; expected an empty folder, or none: it is filled as a whole")
