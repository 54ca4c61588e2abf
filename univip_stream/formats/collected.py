"""Boxes as a format's reader finds them, image after image: they lie on disk, in a file without a name; in memory are the names."""

import hashlib
import os
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

from univip_stream.errors import InputError
from univip_stream.files import Scratch

_FURTHEST = 1e6
"""Pixels; a coordinate beyond is none."""


class Boxes:
    """Boxes of one file or folder, by what its format calls the images."""

    def __init__(self, location: str):
        self.location = location
        self._file = Scratch()
        self._close = weakref.finalize(self, self._file.close)
        self._end = 0
        self._places: dict[str, tuple[int, int]] = {}
        self._digest = hashlib.sha256()
        self.by_id = False
        """Whether it calls images by COCO's ids, not by the format's names."""
        self.sizes: dict[str, tuple[int, int]] = {}
        """Width and height that the file says of an image."""
        self.left_out: dict[str, int] = {}
        """Objects of the file without a box that can be used, counted by what they lack."""

    def __len__(self) -> int:
        return len(self._places)

    @property
    def names(self) -> Mapping[str, tuple[int, int]]:
        """The images that were added, in their order; each with the place of its boxes on disk."""
        return self._places

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

    def of(self, name: str) -> np.ndarray | None:
        """int32 N x 4 x, y, w, h of an image; None where there is no entry."""
        place = self._places.get(name)
        if place is None:
            return None
        return np.frombuffer(os.pread(self._file.fileno(), place[1], place[0]), np.int32).reshape(-1, 4)


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
