"""Box formats by name, and reading published files."""

import os

from univip_stream.errors import InputError, UsageError, why
from univip_stream.formats.aligndet import AlignDetFormat
from univip_stream.formats.base import Format
from univip_stream.formats.coco import COCOFormat
from univip_stream.formats.collected import Boxes
from univip_stream.formats.detectron2 import Detectron2Format
from univip_stream.formats.detreg import DETRegFormat
from univip_stream.formats.orl import ORLFormat
from univip_stream.formats.published import Published
from univip_stream.formats.siamesedetr import SiameseDETRFormat
from univip_stream.formats.soco import SoCoFormat

_ALL = (
    ORLFormat(),
    SoCoFormat(),
    DETRegFormat(),
    SiameseDETRFormat(),
    AlignDetFormat(),
    Detectron2Format(),
    COCOFormat(),
)
FORMATS: dict[str, Format] = {each.name: each for each in _ALL}
"""Formats by the value of --format."""


def format_named(name: str) -> Format:
    """Return the format of this name.

    Raises:
        UsageError: there is none.

    """
    if name not in FORMATS:
        raise UsageError(f"unknown --format {name!r}; expected one of: {', '.join(FORMATS)}")
    return FORMATS[name]


def read_published(location: str, format: str, annotations: tuple[str, ...] = ()) -> Published:
    """Read a file or folder of boxes.

    Args:

        location: file, local or remote; a local folder for DETReg and SiameseDETR; the JSON file for SoCo.
        format: a name of `FORMATS`.
        annotations: COCO's files, whose `images` give the order of ORL's boxes.

    Raises:
        InputError: the file is missing, or of another format.
        UsageError: the format needs annotations, and there are none.

    """
    found = format_named(format)
    if found.annotations == "order" and not annotations:
        raise UsageError(f"--format {format} names no images; give the COCO file whose order its boxes have by --annotations")
    if found.folder and not found.shares_folder and not os.path.isdir(location):
        raise InputError(f"{location} is not a folder; expected {format}'s folder of .npy files")
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
