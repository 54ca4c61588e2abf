"""Folders with one .npy file per image, as in DETReg and SiameseDETR."""

import os
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from univip_stream.errors import InputError, why
from univip_stream.files import folder_written_atomically
from univip_stream.formats.base import Export, Format, corners_of
from univip_stream.formats.collected import Boxes


class FolderOfArrays(Format):
    """A folder of .npy files; subclasses define their content and names."""

    folder = True
    annotations = "unused"

    @abstractmethod
    def save(self, file: BinaryIO, corners: np.ndarray) -> None:
        """Write an image's boxes, int64 N x 4 x1, y1, x2, y2."""

    def write(self, export: Export) -> None:
        for fact in export.facts():
            if name := _escaping(export.named(fact)):
                raise InputError(f"{fact.source}: its name {name!r} leads out of --out; rename it and mine again")
        with folder_written_atomically(export.out) as folder:
            made: set[Path] = set()
            for fact, candidates in export.rows():
                kept = export.chosen(fact, candidates)
                path = folder / f"{export.named(fact)}.npy"
                if path.parent not in made:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    made.add(path.parent)
                with path.open("xb") as file:
                    self.save(file, corners_of(kept))
                export.written.count(kept)
        export.written.files = [str(export.out)]


def arrays_below(boxes: Boxes) -> Iterator[str]:
    """Yield the paths of the .npy files below the folder, in a fixed order."""
    for folder, folders, names in os.walk(boxes.location):
        folders.sort()
        for name in sorted(names):
            if name.endswith(".npy"):
                yield os.path.relpath(os.path.join(folder, name), boxes.location)


def read_dtype(file: Any, name: str) -> np.dtype[Any]:
    """Read the header of a .npy file and return the type of its array; the file is then positioned behind the header.

    Raises:
        InputError: it is not a .npy file.

    """
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(file)[2]
    except OSError:
        raise
    except Exception as error:  # a damaged header can cause any error
        raise InputError(f"{name} is not a .npy file ({why(error)})") from error


def _escaping(name: str) -> str | None:
    return name if name.startswith("/") or ".." in name.split("/") else None
