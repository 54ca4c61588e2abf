"""SiameseDETR (Zx55/SiameseDETR): one pickled .npy per image, named by its path up to the first dot."""

import os
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from univip_stream.errors import InputError
from univip_stream.formats.arrays import FolderOfArrays, arrays_below, read_dtype
from univip_stream.formats.collected import Boxes
from univip_stream.formats.pickles import load_plain, pickled
from univip_stream.sources.listing import text_of
from univip_stream.sources.names import path_of


class SiameseDETRFormat(FolderOfArrays):
    """`{path up to its first dot}.npy`: a pickled dictionary, `box` int64 N x 4 x1, y1, x2, y2, `score` float64 N x 1.

    Mining gives no scores: those written fall from 1 in the order of the boxes. Only `box` is read.
    """

    name = "siamesedetr"
    summary = "SiameseDETR: a pickled .npy an image, unfiltered"

    def image_name(self, source: str, image_id: int | None, sources: Sequence[str]) -> str:
        return path_of(source, sources).partition(".")[0]  # it cuts the whole path, also at a dot in a folder's name

    def read(self, boxes: Boxes, annotations: tuple[str, ...]) -> None:
        for path in arrays_below(boxes):
            whole = os.path.join(boxes.location, path)
            with open(whole, "rb") as file:
                if not read_dtype(file, whole).hasobject:
                    raise InputError(f"{whole} holds numbers; expected SiameseDETR's pickled dictionary with `box` (detreg?)")
                fields = load_plain(file, whole)
            if not isinstance(fields, dict) or "box" not in fields:
                raise InputError(f"{whole} holds no dictionary with `box`; expected SiameseDETR's")
            boxes.add(text_of(path.removesuffix(".npy")), fields["box"], corners=True)

    def save(self, file: BinaryIO, corners: np.ndarray) -> None:
        count = len(corners)
        scores = (np.arange(count, 0, -1) / max(count, 1)).reshape(-1, 1)
        whole = np.empty((), object)
        whole[()] = {"box": corners, "score": scores}
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(pickled(whole))
