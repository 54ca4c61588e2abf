"""The formats of boxes by name."""

import os

from univip_stream.errors import InputError, UsageError, why
from univip_stream.formats.aligndet import AlignDet
from univip_stream.formats.base import Format
from univip_stream.formats.coco import COCO
from univip_stream.formats.collected import Boxes
from univip_stream.formats.detectron2 import Detectron2
from univip_stream.formats.detreg import DETReg
from univip_stream.formats.orl import ORL
from univip_stream.formats.published import Published
from univip_stream.formats.siamesedetr import SiameseDETR
from univip_stream.formats.soco import SoCo

FORMATS: dict[str, Format] = {
    each.name: each for each in (ORL(), SoCo(), DETReg(), SiameseDETR(), AlignDet(), Detectron2(), COCO())
}


def format_named(name: str) -> Format:
    """The format that --format calls so.

    Raises:
        UsageError: there is none.

    """
    if name not in FORMATS:
        raise UsageError(f"unknown --format {name!r}; expected one of: {', '.join(FORMATS)}")
    return FORMATS[name]


def read_published(location: str, format: str, annotations: tuple[str, ...] = ()) -> Published:
    """Read a file or folder of boxes.

    Args:
        location: the file, local or remote; a local folder for DETReg and SiameseDETR. For SoCo its JSON.
        format: a name of `FORMATS`.
        annotations: COCO's files, whose `images` say the order of ORL's boxes.

    Raises:
        InputError: it is not there, or of another format.
        UsageError: boxes that need annotations, without them.

    """
    found = format_named(format)
    if found.annotations == "order" and not annotations:
        raise UsageError(f"--format {format} names no images; give the COCO file whose order its boxes have by --annotations")
    if found.folder and not found.several and not os.path.isdir(location):
        raise InputError(f"{location} is no folder; expected {format}'s folder of .npy files")
    boxes = Boxes(location)
    try:
        found.read(boxes, annotations)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{location}: {why(error)}") from error
    if not len(boxes):
        raise InputError(f"{location} has no entry; expected the format {format}")
    return Published(found, boxes)
