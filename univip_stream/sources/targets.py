"""Repositories that read or publish boxes: how their files name an image, and in which frame their boxes are.

Export and import both look here, so what one writes the other finds.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Target:
    """One repository's format."""

    says: str
    """What is written, for people."""
    folder: bool = False
    """Whether it is a folder of files, not one file."""
    upright: bool = False
    """Whether its reader turns images by EXIF. Otherwise boxes are in the frame of the stored pixels, as PIL opens them."""


TARGETS = {
    "orl": Target(says="ORL: one JSON, boxes in the order of the annotations, unfiltered"),
    "soco": Target(says="SoCo: train_ratio3size0308post.json and train_map.txt, and COCO's names", folder=True),
    "detreg": Target(says="DETReg: a .npy an image, unfiltered", folder=True),
    "siamesedetr": Target(says="SiameseDETR: a pickled .npy an image, unfiltered", folder=True),
    "aligndet": Target(says="AlignDet: COCO JSON, ratio 3, size up to 0.8, IoU 0.5", upright=True),
    "detectron2": Target(says="Detectron2: a pickle of proposals, unfiltered", upright=True),
    "coco": Target(says="COCO JSON of the shards' filtered boxes", upright=True),  # unless told otherwise by --box-frame
}


def path_below(source: str, sources: Sequence[str]) -> str:
    """An image's path below the source it comes from.

    Args:
        source: its name, the source's name first.
        sources: the names of all sources.

    """
    fitting = [name for name in sources if source.startswith(f"{name}/")]
    return source[len(max(fitting, key=len)) + 1 :] if fitting else source


def path_of(source: str, sources: Sequence[str]) -> str:
    """The path that tells an image from all others: below the source if there is one, with its name if there are several."""
    return path_below(source, sources) if len(sources) == 1 else source


def stem_of(path: str) -> str:
    """The last part of a path up to its first dot, as SoCo and DETReg cut it."""
    return path.rpartition("/")[2].partition(".")[0]


def name_in(target: str, source: str, image_id: int | None, sources: Sequence[str]) -> str:
    """What a repository's file calls an image."""
    path = path_of(source, sources)
    if target == "orl":  # COCO's own file names, also where several folders make COCO+
        return path_below(source, sources)
    if target in ("soco", "detreg"):
        return stem_of(path)
    if target == "siamesedetr":  # it cuts the whole path, folders with dots too
        return path.partition(".")[0]
    if target == "detectron2":
        return stem_of(path) if image_id is None else str(image_id)
    return path
