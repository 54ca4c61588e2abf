"""WebDataset shards that another program wrote, such as img2dataset. Each is indexed once, by reading the whole tar.

Only members with known suffixes are read: images, and the `json` and `cls` beside them (see `samples` for the rule). All
others are only counted. Nothing is extracted, so the name of a member cannot lead outside the tar.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from univip_stream import storage
from univip_stream.errors import InputError
from univip_stream.files import system_file, written_atomically
from univip_stream.images import MAX_BYTES, MAX_PIXELS, BadImageError, upright_size
from univip_stream.shards.cache import Cache, Remote
from univip_stream.shards.format import NO_BOXES, OK, SCHEMA, SCHEMA_1, TOO_LARGE
from univip_stream.shards.samples import (
    MOST_JSON_BYTES,
    MOST_LABEL_BYTES,
    SamplePart,
    class_of,
    grouped,
    is_picture,
    key_and_suffix,
    label_of,
    parts_of,
)

_FORMAT = "univip-stream-foreign/2"
"""Version of the index; if it differs, the tar is read again."""
_ENDING = ".univip-index.parquet"
MOST_BOXES = 10_000
"""The most boxes of an image; further ones are left out."""
EXAMPLE = ", such as "
"""Text between a kind of thing that is ignored and the first example of it."""
_MOST_HEADER_BYTES = 1 << 20
_BLOCK = 512
_CAPTIONS = frozenset({"txt", "caption", "text"})
"""Endings of captions. Any image-text set has them, so they are not reported."""


@dataclass(frozen=True, kw_only=True)
class ForeignIndex:
    """What was found in a foreign shard."""

    table: pa.Table
    """Rows as in the index of our own shards, without candidates."""
    size: int
    """Size of the tar in bytes."""
    sha256: str
    """SHA-256 of the tar, hexadecimal."""
    ignored: dict[str, int]
    """Number of things that did not become samples, by kind."""


def foreign_index(shard: str, cache: Cache, max_pixels: int = MAX_PIXELS) -> ForeignIndex:
    """Return the index of a foreign shard: the stored one if the tar has not changed, otherwise a new one, which is stored.

    It is stored beside the tar as `<name>.univip-index.parquet`, or in the cache folder if the tar's folder cannot be
    written.

    Args:
        shard: location of the tar.
        cache: cache that a remote tar is fetched to.
        max_pixels: images of up to this width times height are samples; larger ones may be among them if the stored index was
            made for a higher limit.

    Raises:
        InputError: the tar is compressed, cut off or damaged, or cannot be read.

    """
    try:
        facts, places = _identity(shard, cache)
        lock = hashlib.sha256(str(places[-1]).encode()).hexdigest()
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(InputError):  # without a writable cache folder, several processes may do the same work
                stack.enter_context(cache.locked(f"index-{lock}"))
            for place in places:
                if found := _load_index(place, facts, max_pixels):
                    return found
            made = _make_index(shard, int(facts["bytes"]), cache, max_pixels)
            _store_index(made, places, facts, max_pixels)
            return made
    except OSError as error:
        raise InputError(f"{shard} cannot be indexed: {error.strerror or error}") from error


def _identity(shard: str, cache: Cache) -> tuple[dict[str, str], list[Path]]:
    """Return the facts by which a tar is recognised without reading it, and the places where its index may be stored."""
    if storage.is_remote(shard):
        facts = {"name": shard, "bytes": str(storage.size_of(shard)), "mtime_ns": ""}
        return facts, [_path_in_cache(shard, cache)]
    path = Path(shard)
    stat = path.stat()
    facts = {"name": path.name, "bytes": str(stat.st_size), "mtime_ns": str(stat.st_mtime_ns)}
    return facts, [path.with_name(path.name.removesuffix(".tar") + _ENDING), _path_in_cache(str(path.resolve()), cache)]


def _path_in_cache(name: str, cache: Cache) -> Path:
    return cache.folder / "indexes" / f"{hashlib.sha256(name.encode()).hexdigest()}{_ENDING}"


def _load_index(place: Path, facts: dict[str, str], max_pixels: int) -> ForeignIndex | None:
    try:
        table = pq.read_table(place)
        metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        same = metadata.get("format") == _FORMAT and all(metadata.get(name) == value for name, value in facts.items())
        enough = int(metadata["max_pixels"]) >= max_pixels or TOO_LARGE not in table.column("status").to_pylist()
        # Indexes from before version 2 have one more column, which is empty.
        if same and enough and (table.schema.equals(SCHEMA) or table.schema.equals(SCHEMA_1)):
            table = table.select(SCHEMA.names)
            ignored = {str(kind): int(count) for kind, count in json.loads(metadata["ignored"]).items()}
            return ForeignIndex(table=table, size=int(metadata["bytes"]), sha256=metadata["tar_sha256"], ignored=ignored)
    except (pa.ArrowException, OSError, ValueError, KeyError, AttributeError):
        pass  # it is missing, or not what we wrote: make a new one
    return None


def _store_index(made: ForeignIndex, places: list[Path], facts: dict[str, str], max_pixels: int) -> None:
    metadata = {
        **facts,
        "max_pixels": str(max_pixels),
        "format": _FORMAT,
        "tar_sha256": made.sha256,
        "ignored": json.dumps(made.ignored),
    }
    for place in places:
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            with written_atomically(place) as file:
                pq.write_table(made.table.replace_schema_metadata(metadata), file, compression="zstd")
            return


def _make_index(shard: str, size: int, cache: Cache, max_pixels: int) -> ForeignIndex:
    if storage.is_remote(shard):
        descriptor = cache.open(Remote(location=shard, size=size, sha256=None))
    else:
        descriptor = os.open(shard, os.O_RDONLY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        try:
            scan = _Scan(file, storage.name_of(shard), max_pixels)
        except InputError as error:
            raise InputError(f"{shard}: {error}") from error
    rows = {name: pa.array([row.get(name) for row in scan.rows], SCHEMA.field(name).type) for name in SCHEMA.names}
    return ForeignIndex(
        table=pa.table(rows, schema=SCHEMA), size=size, sha256=sha256, ignored=dict(sorted(scan.ignored.items()))
    )


class _Scan:
    """Reads a tar once from front to back, and collects its rows and what was ignored."""

    def __init__(self, file: BinaryIO, shard: str, max_pixels: int = MAX_PIXELS):
        self.file, self.shard, self.max_pixels = file, shard, max_pixels
        self.rows: list[dict[str, Any]] = []
        self.ignored: Counter[str] = Counter()
        for key, group in grouped(self._readable(), _path_of):
            parts = parts_of(key, group, self._left_out)
            if not parts:
                self.ignored["samples without an image"] += 1
            for suffix, member in group:
                self._count_unread(suffix, member)
            for part in parts:
                self._row(part)

    def _readable(self) -> Iterator[tarfile.TarInfo]:
        """Yield the members that may be part of a sample."""
        for member in tar_members(self.file):
            if member.isdir():
                continue
            path = PurePosixPath(member.name)
            if not member.isreg() or member.issparse():
                self.ignored["links, devices or other special members, not followed"] += 1
            elif path.is_absolute() or ".." in path.parts or "\\" in member.name:
                self.ignored["members whose names lead outside the tar, not read"] += 1
            elif (kind := system_file(member.name)) is not None:
                self.ignored[f"files {kind}, not read" if kind.startswith("in ") else f"{kind}, not read"] += 1
            elif key_and_suffix(_path_of(member)) is None:
                self.ignored["members without a key and a suffix, not read"] += 1
            else:
                yield member

    def _left_out(self, why: str, suffix: str) -> None:
        if why == "second" and "." not in suffix:
            self.ignored["second images of a sample, not read"] += 1
        else:  # `seg.png`
            self.ignored[f"members ending in .{self._known(suffix)}, not read"] += 1

    def _count_unread(self, suffix: str, member: tarfile.TarInfo) -> None:
        if suffix == "cls" and member.size > MOST_LABEL_BYTES:
            self.ignored["class members over 4 KiB, not read"] += 1
        last = suffix.rpartition(".")[2]
        if not is_picture(suffix) and last not in ("json", "cls") and last not in _CAPTIONS:
            self.ignored[f"members ending in .{self._known(suffix)}, not read"] += 1

    def _known(self, suffix: str) -> str:
        """Return a suffix as it is reported: `?` for strange ones, and once many kinds of things were reported."""
        return suffix if re.fullmatch(r"[a-z0-9_.-]{1,20}", suffix) and len(self.ignored) < 40 else "?"

    def _json(self, member: tarfile.TarInfo) -> dict[str, Any]:
        if member.size > MOST_JSON_BYTES:
            self.ignored[f"JSON members over {MOST_JSON_BYTES >> 20} MiB, not read"] += 1
            return {}
        try:
            fields = json.loads(self._bytes(member))
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            self.ignored["JSON members that hold no JSON object"] += 1
            return {}
        return fields

    def _bytes(self, member: tarfile.TarInfo) -> bytes:
        self.file.seek(member.offset_data)
        data = self.file.read(member.size)
        if len(data) != member.size:
            raise InputError(f"it ends within its member {member.name!r}: it was cut off")
        return data

    def _row(self, part: SamplePart[tarfile.TarInfo]) -> None:
        """Append the row of a sample."""
        key = part.key.encode("utf-8", "backslashreplace").decode()
        row: dict[str, Any] = {"key": key, "source": f"{self.shard}/{key}.{part.suffix}"}
        self.rows.append(row)
        fields = self._json(part.beside["json"]) if "json" in part.beside else {}
        member = part.beside.get("cls")
        label = class_of(self._bytes(member)) if member is not None and member.size <= MOST_LABEL_BYTES else None
        if label is None:
            label = label_of(fields.get("label"))
            if label is None and fields.get("label") not in (None, ""):
                self.ignored["labels in JSON that are no text or whole number, left out"] += 1
        image = part.image
        try:
            if image.size > MAX_BYTES:
                raise BadImageError(TOO_LARGE, f"{image.size} bytes; the limit is {MAX_BYTES}")
            data = self._bytes(image)
            width, height = upright_size(data, max_pixels=self.max_pixels)
        except BadImageError as error:
            row |= {"status": error.status, "reason": str(error)}
            kind = f"images {error.status.replace('_', ' ')}"
            known = next(
                (text for text in self.ignored if text.startswith(kind)), f"{kind}{EXAMPLE}{row['source']}: {error}"[:200]
            )
            self.ignored[known] += 1
            return
        boxes = self._boxes(fields.get("boxes"), width, height)
        row |= {
            "status": OK if boxes else NO_BOXES,
            "reason": None if boxes else "its JSON has no boxes",
            "width": width,
            "height": height,
            "label": label,
            "suffix": part.suffix,
            "offset": image.offset_data,
            "size": image.size,
            "sha256": hashlib.sha256(data).hexdigest(),
            "boxes": boxes,
        }

    def _boxes(self, found: Any, width: int, height: int) -> list[list[int]]:
        """Return the boxes that are inside the image, xywh in whole pixels; count the others as ignored."""
        if found is None:
            return []
        if not isinstance(found, list):
            self.ignored["JSON members whose boxes are no list"] += 1
            return []
        kept = [box for item in found[:MOST_BOXES] if (box := _box(item, width, height))]
        if len(kept) < len(found):
            self.ignored["boxes that are none inside their image, or too many, left out"] += len(found) - len(kept)
        return kept


def _path_of(member: tarfile.TarInfo) -> str:
    return str(PurePosixPath(member.name))


def _box(item: Any, width: int, height: int) -> list[int] | None:
    if not isinstance(item, list) or len(item) != 4:
        return None
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e6 for v in item):  # this excludes NaN
        return None
    x, y, w, h = item
    left, top, right, bottom = (math.floor(v + 0.5) for v in (x, y, x + w, y + h))
    inside = 0 <= left < right <= width and 0 <= top < bottom <= height
    return [left, top, right - left, bottom - top] if inside else None


class _Bounded:
    """The tar for `tarfile`, which reads only headers: a read larger than any header would be an attack on memory."""

    def __init__(self, file: BinaryIO):
        self.tell, self.seek = file.tell, file.seek
        self._read = file.read

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MOST_HEADER_BYTES:
            raise InputError(f"it has a header of {size} bytes; expected at most {_MOST_HEADER_BYTES}")
        return self._read(size)


def tar_members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield every member of an uncompressed tar up to its end mark.

    Raises:
        InputError: the tar is compressed, damaged or cut off.

    """
    file.seek(0)
    if file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        raise InputError("it is compressed; shards are read by offsets, so decompress it to a plain .tar")
    file.seek(0)
    last = -1
    try:
        with tarfile.open(fileobj=_Bounded(file), mode="r:", errors="surrogateescape") as tar:  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                if member.offset <= last or member.size < 0:
                    raise InputError(f"the header of {member.name!r} leads backwards: it is damaged")
                last = member.offset
                tar.members.clear()  # tarfile would keep all of them
                yield member
            end = tar.offset
    except InputError:
        raise
    except (tarfile.TarError, EOFError, OverflowError, RecursionError, ValueError) as error:  # ValueError: pax headers
        raise InputError(f"not a whole plain tar ({error}): it was cut off or damaged") from error
    # tarfile takes any header that it cannot read for the end.
    file.seek(end)
    mark = file.read(_BLOCK)
    if len(mark) < _BLOCK:
        raise InputError(f"it ends at byte {end} without a tar's end mark: it was cut off")
    if any(mark):
        raise InputError(f"the header at byte {end} is damaged")
    while piece := file.read(_MOST_HEADER_BYTES):
        if piece.count(0) != len(piece):
            raise InputError("it goes on after its end mark: two tars in one, or damaged; unpack it and pack it again")
