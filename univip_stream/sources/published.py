"""Boxes that others published, by the name that their format gives an image."""

import hashlib
import os
import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from univip_stream.errors import InputError
from univip_stream.files import Scratch
from univip_stream.sources.listing import Listing, SourceImage
from univip_stream.sources.names import ByName
from univip_stream.sources.targets import name_in

_FURTHEST = 1e6
"""Pixels; a coordinate beyond is none."""


@dataclass(kw_only=True)
class Match:
    """How a file's entries and a source's images go together."""

    entries: int
    """Of the file."""
    images: int = 0
    """Of the source."""
    without_entry: list[str] = field(default_factory=list)
    """Images that the file says nothing of."""
    without_image: list[str] = field(default_factory=list)
    """Entries for which there is no image."""


class Published:
    """Boxes of one file or folder. They lie on disk, in a file without a name; in memory are the names."""

    def __init__(self, location: str, format: str):
        self.location, self.format = location, format
        self._file = Scratch()
        self._close = weakref.finalize(self, self._file.close)
        self._end = 0
        self._places: dict[str, tuple[int, int]] = {}
        self._digest = hashlib.sha256()
        self._sources: list[str] = []
        self._names: ByName[tuple[int, int]] = ByName({})
        self.by_id = False
        """Whether it calls images by COCO's ids, not by the format's names."""
        self.sizes: dict[str, tuple[int, int]] = {}
        """Width and height that the file says of an image."""
        self.left_out: dict[str, int] = {}
        """Objects of the file without a box that can be used, counted by what they lack."""

    def __len__(self) -> int:
        return len(self._places)

    @property
    def digest(self) -> str:
        """SHA-256 over names and boxes, in the file's order."""
        return self._digest.hexdigest()

    def add(self, name: str, boxes: Any, *, corners: bool = False) -> None:
        """Append an image's boxes, rounded outwards to whole pixels.

        Args:
            name: what the format calls the image.
            boxes: N x 4 x, y, w, h, or x1, y1, x2, y2 with `corners`.
            corners: which of both.

        Raises:
            InputError: something else, or an image that has been added.

        """
        try:
            line = f"{name}\n".encode()
        except UnicodeEncodeError as error:  # half a surrogate pair
            raise InputError(
                f"{self.location} has the entry {name!r}, which is no text; expected the name of an image"
            ) from error
        if name in self._places:
            raise InputError(f"{self.location} has two entries {name!r}; expected one an image")
        data = _whole(boxes, corners, f"{self.location}: {name}").tobytes()
        self._places[name] = (self._end, len(data))
        self._file.write(data)
        self._end += len(data)
        self._digest.update(line + f"{len(data)}\n".encode() + data)

    def match(self, listing: Listing) -> Match:
        """Compare with the images of a listing, and remember what its sources are called.

        Raises:
            InputError: no image has an entry, or two images share one.

        """
        self._sources = listing.sources
        self._names = ByName(self._places)
        found = Match(entries=len(self), images=len(listing))
        taken: dict[str, str] = {}
        for image in listing:
            name = self._name(image)
            if name is None:
                found.without_entry.append(image.source)
                continue
            if (other := taken.setdefault(name, image.source)) != image.source:
                raise InputError(
                    f"{other} and {image.source} are both {name!r} in the format {self.format}, so whose boxes these are cannot "
                    "be told; import them from two sources into two folders"
                )
            if name not in self._places:
                found.without_entry.append(image.source)
        found.without_image = [name for name in self._places if name not in taken]
        if self.by_id and not taken:
            raise InputError(
                f"{self.location} names images by COCO's ids, such as {next(iter(self._places), 'none')}, and none of the "
                f"{len(listing)} images, such as {found.without_entry[0]!r}, has one; give the file that says their ids by "
                "--annotations, and a folder by --src"
            )
        if len(found.without_entry) == len(listing):
            raise InputError(
                f"{self.location} has {len(self)} entries, such as {next(iter(self._places), 'none')!r}, and none for the "
                f"{len(listing)} images, such as {found.without_entry[0]!r}; expected the boxes of these images"
            )
        return found

    def boxes_of(self, image: SourceImage) -> np.ndarray | None:
        """int32 N x 4 x, y, w, h of an image of the listing; None where there is no entry."""
        name = self._name(image)
        place = None if name is None else self._places.get(name)
        if place is None:
            return None
        return np.frombuffer(os.pread(self._file.fileno(), place[1], place[0]), np.int32).reshape(-1, 4)

    def size_of(self, image: SourceImage) -> tuple[int, int] | None:
        """Width and height that the file says of an image of the listing, if it does."""
        name = self._name(image)
        return None if name is None else self.sizes.get(name)

    def _name(self, image: SourceImage) -> str | None:
        if self.by_id:
            return None if image.image_id is None else str(image.image_id)
        return self._names.said(name_in(self.format, image.source, image.image_id, self._sources))


def numbers_of(boxes: Any, name: str) -> np.ndarray:
    """float64 N x 4.

    Raises:
        InputError: it is something else.

    """
    try:
        array = np.asarray(boxes, np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{name} holds no boxes; expected lists of four numbers") from error
    array = array.reshape(-1, 4) if array.size == 0 else array
    if array.ndim != 2 or array.shape[1] != 4 or not (np.abs(array) < _FURTHEST).all():
        raise InputError(f"{name} has boxes of shape {array.shape}; expected N x 4 numbers, up to {_FURTHEST:.0e} pixels")
    return array


def _whole(boxes: Any, corners: bool, name: str) -> np.ndarray:
    """int32 N x 4 x, y, w, h: the whole pixels around each box. Sums are rounded first, as COCO's are."""
    array = numbers_of(boxes, name)
    low = np.floor(np.round(array[:, :2], 3))
    high = np.ceil(np.round(array[:, 2:] if corners else array[:, :2] + array[:, 2:], 3))
    return np.concatenate([low, high - low], 1).astype(np.int32)
