"""The listing of a source's images: kept on disk in a fixed order, so that there can be any number of them."""

import hashlib
import json
import mmap
import os
import stat
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from univip_stream import storage
from univip_stream.files import Scratch
from univip_stream.filetypes import UNREAD_SUFFIXES
from univip_stream.images import MAX_BYTES, BadImageError

Boxes = tuple[tuple[int, int, int, int], ...]
"""x, y, w, h of each box in whole pixels; boxes may extend beyond the image."""
_ROWS = 4096
"""Images per batch, of which one is in memory at a time."""
_AS_LINE = json.JSONEncoder(separators=(",", ":")).encode
"""Made once: `json.dumps` would make an encoder for every image."""
_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("path", pa.binary()),
        ("label", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("image_id", pa.int64()),
        ("boxes", pa.list_(pa.list_(pa.int32(), 4))),
        ("fault", pa.string()),
        ("absent", pa.bool_()),
        ("size_said", pa.list_(pa.int32(), 2)),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceImage:
    """One image of a source."""

    source: str
    """Name for people: the source's name and the path below it, with forward slashes, valid UTF-8."""
    path: str
    """Location (local path or URL) of the file, or of the tar that contains it; bytes that are not UTF-8 are kept as escapes."""
    label: str | None = None
    """Class of the image, if the source gives one."""
    offset: int | None = None
    """First byte in `path` if the image is a member of a tar; None if it is the whole file."""
    size: int | None = None
    """Size in bytes; set together with `offset`."""
    image_id: int | None = None
    """COCO's image id."""
    boxes: Boxes | np.ndarray | None = None
    """Ground truth in the frame of the stored pixels, if the source has it and it was asked for; or, as an array, boxes that
    others published, which listings never hold."""
    fault: str | None = None
    """Reason why it cannot be read, if the source knows already."""
    absent: bool = False
    """Whether an annotation file names it but its folder does not contain it."""
    size_said: tuple[int, int] | None = None
    """Width and height in pixels according to an annotation file with boxes."""


class Spool:
    """Images on disk, in the order in which they are added, in an unnamed file that disappears with the process."""

    def __init__(self) -> None:
        self.count = 0
        self._file = Scratch()
        self._close_file = weakref.finalize(self, self._file.close)
        self._writer = pa.ipc.new_file(self._file, _SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd"))
        self._reader: Any = None
        self._rows: list[SourceImage] = []

    def add(self, image: SourceImage) -> None:
        """Append an image; not allowed after the first reading."""
        self.count += 1
        self._rows.append(image)
        if len(self._rows) == _ROWS:
            self._flush()

    def read(self, first: int, last: int) -> Iterator[SourceImage]:
        """Yield the images from `first` up to but without `last`, with one batch in memory at a time."""
        if self._reader is None:
            self._flush()
            self._writer.close()
            # Mapped, so that threads and forked processes read without sharing a position in the file.
            mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            self._reader = pa.ipc.open_file(pa.py_buffer(mapped))
        while first < last:
            number, row = divmod(first, _ROWS)
            batch = self._reader.get_batch(number).slice(row, min(last - first, _ROWS - row))
            yield from map(_image, batch.to_pylist())
            first += batch.num_rows

    def close(self) -> None:
        """Close the file; nothing can be read afterwards."""
        self._reader = None
        self._close_file()

    def _flush(self) -> None:
        if self._rows:
            # A column at a time: this is a large part of what listing an image costs.
            values = {field.name: list(map(attrgetter(field.name), self._rows)) for field in _SCHEMA}
            values["path"] = list(map(os.fsencode, values["path"]))
            columns = [pa.array(values[field.name], field.type) for field in _SCHEMA]
            self._writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))
            self._rows = []


class Listing:
    """The images of all sources, in the order in which the sources were named; kept on disk, not in memory."""

    def __init__(self, sources: list[str]) -> None:
        self.sources = sources
        """Name of each source, which is the first part of its images' names."""
        self.ignored: dict[str, int] = {}
        """Number of files that are left out, by suffix or kind."""
        self.boxes_left_out: Counter[str] = Counter()
        """Number of objects in annotation files without a usable box, by reason."""
        self.named = 0
        """Number of images that annotation files name."""
        self.absent: list[str] = []
        """Images that annotation files name but that do not exist; `present` is the listing without them."""
        self.rows_of_absent = True
        """Whether absent images are in the listing."""
        self.notes: list[str] = []
        """Remarks on how sources were read, if that was unusual."""
        self._spool = Spool()
        self._labels: set[str] = set()
        self._digest = hashlib.sha256()

    def add(self, image: SourceImage) -> None:
        """Append an image; not allowed after the first reading."""
        self._spool.add(image)
        if image.absent:
            self.absent.append(image.source)
        if image.label is not None:
            self._labels.add(image.label)
        line = _AS_LINE([image.source, image.label, image.image_id, image.boxes])
        self._digest.update(line.encode() + b"\n")

    def __len__(self) -> int:
        return self._spool.count

    def __iter__(self) -> Iterator[SourceImage]:
        return self._spool.read(0, len(self))

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self)

    @property
    def classes(self) -> list[str] | None:
        """Sorted labels; None if no image has one."""
        return sorted(self._labels) or None

    @property
    def remarks(self) -> list[str]:
        """Lines for people: how sources were read, and what is left out."""
        unread = {kind: count for kind, count in self.ignored.items() if kind[1:] in UNREAD_SUFFIXES}
        others = {kind: count for kind, count in self.ignored.items() if kind not in unread}
        lines = list(self.notes)
        for found, what in ((others, "left out"), (unread, "images of kinds that are not read, left out")):
            if found:
                lines.append(f"{what}: " + ", ".join(f"{count} {kind}" for kind, count in found.items()))
        return lines

    @property
    def digest(self) -> str:
        """SHA-256 over source, label, image id and boxes of every image, in order."""
        return self._digest.hexdigest()

    def present(self) -> "Listing":
        """Return this listing without its absent images, which `absent` still names; itself if there are none."""
        if not self.absent:
            return self
        fewer = Listing(self.sources)
        for image in self:
            if not image.absent:
                fewer.add(image)
        fewer.ignored, fewer.notes, fewer.boxes_left_out = self.ignored, self.notes, self.boxes_left_out
        fewer.named, fewer.absent = self.named, self.absent
        fewer.rows_of_absent = False
        return fewer

    def from_number(self, first: int) -> Iterator[SourceImage]:
        """Yield the images from `first` on."""
        return self._spool.read(first, len(self))

    def slice(self, first: int, last: int) -> list[SourceImage]:
        """Return the images from `first` up to but without `last`."""
        return list(self._spool.read(max(first, 0), min(last, len(self))))

    def close(self) -> None:
        """Close the file; this also happens when the last reference is gone."""
        self._spool.close()

    def __enter__(self) -> "Listing":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read_bytes(image: SourceImage) -> bytes:
    """Read the image's bytes: a file, or a range of a tar.

    Raises:
        BadImageError: it cannot be read, is larger than any image, or its server asks that it is not used (`unreadable`,
            `too_large`, `opted_out`).

    """
    if image.fault is not None:
        raise BadImageError("unreadable", image.fault)
    try:
        if image.offset is not None:
            size = int(image.size or 0)
            _check_size(size)
            data = storage.member(image.path, image.offset, size)
            if len(data) != size:
                where = storage.name_of(image.path)
                raise BadImageError("unreadable", f"{where} ends inside it: {len(data)} of {size} bytes are there")
            return data
        if storage.is_remote(image.path):
            return storage.image(image.path, MAX_BYTES)
        status = os.stat(image.path)
        if not stat.S_ISREG(status.st_mode):
            raise BadImageError("unreadable", "it is no regular file")
        _check_size(status.st_size)
        return storage.read(image.path)
    except storage.TooLongError as error:
        _check_size(error.size)
        raise
    except storage.OptedOutError as error:
        raise BadImageError("opted_out", str(error.strerror)) from error
    except OSError as error:
        # Without the path: the reason becomes part of the shard, whose bytes must not depend on the location of the source.
        raise BadImageError("unreadable", f"{type(error).__name__}: {error.strerror or error}") from error
    except BadImageError:
        raise
    except ValueError as error:  # a name with a zero byte
        raise BadImageError("unreadable", str(error)) from error


def text_of(name: str) -> str:
    """Return a file name as valid UTF-8; other bytes are written as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise BadImageError("too_large", f"at least {size} bytes; the limit is {MAX_BYTES}")


def _image(row: dict[str, Any]) -> SourceImage:
    row["path"] = os.fsdecode(row["path"])
    if row["boxes"] is not None:
        row["boxes"] = tuple(map(tuple, row["boxes"]))
    if row["size_said"] is not None:
        row["size_said"] = tuple(row["size_said"])
    return SourceImage(**row)
