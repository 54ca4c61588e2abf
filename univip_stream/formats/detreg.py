"""DETReg (amirbar/DETReg): one .npy per image, named by the stem of its file name."""

import io
import os
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from univip_stream.errors import InputError, why
from univip_stream.formats.arrays import FolderOfArrays, arrays_below
from univip_stream.formats.base import stem_of
from univip_stream.formats.collected import Boxes
from univip_stream.sources.listing import text_of
from univip_stream.sources.names import path_of


class DETRegFormat(FolderOfArrays):
    """`{stem}.npy`: float32 N x 4, x1, y1, x2, y2."""

    name = "detreg"
    summary = "DETReg: a .npy an image, unfiltered"

    def image_name(self, source: str, image_id: int | None, sources: Sequence[str]) -> str:
        return stem_of(path_of(source, sources))

    def read(self, boxes: Boxes, annotations: tuple[str, ...]) -> None:
        for path in arrays_below(boxes):
            with open(os.path.join(boxes.location, path), "rb") as file:
                found = _array(file, os.path.join(boxes.location, path))
            boxes.add(text_of(path.removesuffix(".npy").rpartition("/")[2]), found, corners=True)

    def save(self, file: BinaryIO, corners: np.ndarray) -> None:
        array = io.BytesIO()  # numpy bypasses Python when it writes to a real file, and hides that a disk is full
        np.save(array, corners.astype(np.float32), allow_pickle=False)
        file.write(array.getbuffer())


def _array(file: Any, name: str) -> np.ndarray:
    try:
        array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        return array
    except OSError:
        raise
    except Exception as error:  # MemoryError too, if a damaged header promises more than there is
        raise InputError(f"{name} is not a .npy file of numbers ({why(error)}); a pickled one is siamesedetr's") from error
