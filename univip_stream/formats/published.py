"""Match boxes that others published with the images of a source."""

from dataclasses import dataclass, field

import numpy as np

from univip_stream.errors import InputError
from univip_stream.formats.base import Format
from univip_stream.formats.collected import Boxes
from univip_stream.sources.listing import Listing, SourceImage
from univip_stream.sources.names import ByName


@dataclass(kw_only=True)
class Match:
    """Result of matching a file's entries with a source's images."""

    entries: int
    """Number of entries in the file."""
    images: int = 0
    """Number of images in the source."""
    without_entry: list[str] = field(default_factory=list)
    """Images without an entry."""
    without_image: list[str] = field(default_factory=list)
    """Entries without an image."""


class Published:
    """Boxes that others published, with the format that names their images."""

    def __init__(self, format: Format, boxes: Boxes):
        self.format, self.boxes = format, boxes
        self._sources: list[str] = []
        self._names = ByName(boxes.names)

    def __len__(self) -> int:
        return len(self.boxes)

    def match(self, listing: Listing) -> Match:
        """Match the entries with the images of a listing, and remember the names of its sources.

        Raises:
            InputError: no image has an entry, or two images share one.

        """
        self._sources = listing.sources
        self._names = ByName(self.boxes.names)
        found = Match(entries=len(self), images=len(listing))
        taken: dict[str, str] = {}
        for image in listing:
            name = self._name(image)
            if name is None:
                found.without_entry.append(image.source)
                continue
            if (other := taken.setdefault(name, image.source)) != image.source:
                raise InputError(
                    f"{other} and {image.source} are both {name!r} in the format {self.format.name}, so whose boxes these are "
                    "cannot be told; import them from two sources into two folders"
                )
            if name not in self.boxes.names:
                found.without_entry.append(image.source)
        found.without_image = [name for name in self.boxes.names if name not in taken]
        location, first = self.boxes.location, next(iter(self.boxes.names), "none")
        if self.boxes.by_id and not taken:
            raise InputError(
                f"{location} names images by COCO's ids, such as {first}, and none of the "
                f"{len(listing)} images, such as {found.without_entry[0]!r}, has one; give the file that says their ids by "
                "--annotations, and a folder by --src"
            )
        if len(found.without_entry) == len(listing):
            raise InputError(
                f"{location} has {len(self)} entries, such as {first!r}, and none for the "
                f"{len(listing)} images, such as {found.without_entry[0]!r}; expected the boxes of these images"
            )
        return found

    def boxes_of(self, image: SourceImage) -> np.ndarray | None:
        """Return the boxes of an image of the listing, int32 N x 4 x, y, w, h; None if there is no entry."""
        name = self._name(image)
        return None if name is None else self.boxes.of(name)

    def size_of(self, image: SourceImage) -> tuple[int, int] | None:
        """Return width and height of an image of the listing according to the file, or None."""
        name = self._name(image)
        return None if name is None else self.boxes.sizes.get(name)

    def _name(self, image: SourceImage) -> str | None:
        if self.boxes.by_id:
            return None if image.image_id is None else str(image.image_id)
        return self._names.own_form(self.format.image_name(image.source, image.image_id, self._sources))
