"""Boxes as a format's reader finds them, image after image: kept in an unnamed file on disk, with only the names in memory."""

import hashlib
import os
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

from univip_stream.errors import InputError
from univip_stream.files import Scratch

_MAX_COORDINATE = 1e6
"""Largest coordinate that is accepted, in pixels."""


class Boxes:
    """Boxes of one file or folder, by its format's names of the images."""

    def __init__(self, location: str):
        self.location = location
        self._file = Scratch()
        self._close = weakref.finalize(self, self._file.close)
        self._end = 0
        self._places: dict[str, tuple[int, int]] = {}
        self._digest = hashlib.sha256()
        self.by_id = False
        """Whether images are named by COCO's ids, not by the format's names."""
        self.sizes: dict[str, tuple[int, int]] = {}
        """Width and height of each image according to the file."""
        self.left_out: dict[str, int] = {}
        """Number of objects in the file without a usable box, by reason."""

    def __len__(self) -> int:
        return len(self._places)

    @property
    def names(self) -> Mapping[str, tuple[int, int]]:
        """The images that were added, in their order, each with offset and size of its boxes on disk."""
        return self._places

    @property
    def digest(self) -> str:
        """SHA-256 over names and boxes, in the file's order."""
        return self._digest.hexdigest()

    def add(self, name: str, boxes: Any, *, corners: bool = False) -> None:
        """Append an image's boxes, rounded outwards to whole pixels.

        Args:
            name: the format's name of the image.
            boxes: N x 4 x, y, w, h, or x1, y1, x2, y2 with `corners`.

            corners: whether boxes are given by two corners.

        Raises:
            InputError: the boxes have another form, or the image was added before.

        """
        try:
            line = f"{name}\n".encode()
        except UnicodeEncodeError as error:  # half a surrogate pair
            raise InputError(
                f"{self.location} has the entry {name!r}, which is not text; expected the name of an image"
            ) from error
        if name in self._places:
            raise InputError(f"{self.location} has two entries {name!r}; expected one an image")
        data = _rounded_outwards(boxes, corners, f"{self.location}: {name}").tobytes()
        self._places[name] = (self._end, len(data))
        self._file.write(data)
        self._end += len(data)
        self._digest.update(line + f"{len(data)}\n".encode() + data)

    def of(self, name: str) -> np.ndarray | None:
        """Return the boxes of an image, int32 N x 4 x, y, w, h; None if there is no entry."""
        place = self._places.get(name)
        if place is None:
            return None
        return np.frombuffer(os.pread(self._file.fileno(), place[1], place[0]), np.int32).reshape(-1, 4)


def numbers_of(boxes: Any, name: str) -> np.ndarray:
    """Return boxes as float64 N x 4.

    Raises:
        InputError: they have another form.

    """
    try:
        array = np.asarray(boxes, np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{name} holds no boxes; expected lists of four numbers") from error
    array = array.reshape(-1, 4) if array.size == 0 else array
    if array.ndim != 2 or array.shape[1] != 4 or not (np.abs(array) < _MAX_COORDINATE).all():
        raise InputError(
            f"{name} has boxes of shape {array.shape}; expected N x 4 numbers, up to {_MAX_COORDINATE:.0e} pixels"
        )
    return array


def _rounded_outwards(boxes: Any, corners: bool, name: str) -> np.ndarray:
    """Round boxes outwards to whole pixels, int32 N x 4 x, y, w, h. Sums are rounded first, as for COCO's annotations."""
    array = numbers_of(boxes, name)
    low = np.floor(np.round(array[:, :2], 3))
    high = np.ceil(np.round(array[:, 2:] if corners else array[:, :2] + array[:, 2:], 3))
    return np.concatenate([low, high - low], 1).astype(np.int32)
