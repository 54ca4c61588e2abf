"""The manifest's entry of a shard; and the entries of very many shards, as columns instead of one object each.

A manifest of a hundred thousand shards would be 60 MB of JSON and take a second to parse. So the entries of more than
`MOST_IN_JSON` shards are in a Parquet file beside the manifest, which is read directly into columns.

Letter: S shards.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from univip_stream.errors import why
from univip_stream.parquet import memory_given_back, one_array, table_of, whole_numbers
from univip_stream.shards.format import FORMAT_1, FORMAT_2, STATUSES

MOST_IN_JSON = 4096
"""The most shards that a manifest lists in its JSON; for more, it names a Parquet file that lists them."""
MOST_IMAGES = 1 << 24
"""The most images of a shard. A manifest that states more is wrong, and the order of images would be made from its number."""
_MOST = 1 << 62
"""Upper bound of whole numbers."""
_NAME = r"[^/\\\x00-\x1f.][^/\\\x00-\x1f]*\.tar"
"""Pattern of a shard's file name: in the manifest's folder, and not hidden."""
_NAME_WHOLE = re.compile(_NAME)
_WORDS = {str: "text", int: "a whole number", list: "a list", dict: "an object"}
_ENTRY: Mapping[str, Any] = {
    "name": str,
    "images": int,
    "samples": int,
    "bytes": int,
    "sha256": str,
    "index": {"bytes": int, "sha256": str},
    "totals": dict,
}
_MAY_HAVE: Mapping[str, Any] = {"boxes": int, "pixels": int, "candidates": {"bytes": int, "sha256": str}}


@dataclass(frozen=True, kw_only=True, slots=True)
class FileFacts:
    """The size and hash that a file must have."""

    bytes: int
    """Size of the file in bytes."""
    sha256: str
    """SHA-256 of the file, hexadecimal."""

    def as_json(self) -> dict[str, Any]:
        """Return the object of the manifest's JSON."""
        return {"bytes": self.bytes, "sha256": self.sha256}


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEntry:
    """What a manifest states about one shard: its contents, and the sizes and hashes of its files."""

    name: str
    """File name of its tar."""
    images: int
    """Number of rows of its index, one for each image of the source."""
    samples: int
    """Number of images in the tar."""
    bytes: int
    """Size of the tar in bytes."""
    sha256: str
    """SHA-256 of the tar, hexadecimal."""
    index: FileFacts
    """Size and hash of its index, the Parquet file beside the tar."""
    boxes: int | None = None
    """Number of boxes of all its samples; None if the manifest does not state it."""
    pixels: int | None = None
    """Sum of width times height of its samples; None in version 1, which does not state it."""
    candidates: FileFacts | None = None
    """Size and hash of the file of candidates; None in version 1, where the index holds them."""
    totals: Mapping[str, int] = field(default_factory=dict)
    """Number of images by status."""

    @property
    def format(self) -> str:
        """Version of the layout of its files: FORMAT_1 or FORMAT_2."""
        return FORMAT_1 if self.candidates is None else FORMAT_2

    def as_json(self) -> dict[str, Any]:
        """Return the object of the manifest's JSON."""
        return {
            "name": self.name,
            "images": self.images,
            "samples": self.samples,
            **({} if self.boxes is None else {"boxes": self.boxes}),
            **({} if self.pixels is None else {"pixels": self.pixels}),
            "bytes": self.bytes,
            "sha256": self.sha256,
            "index": self.index.as_json(),
            **({} if self.candidates is None else {"candidates": self.candidates.as_json()}),
            "totals": dict(self.totals),
        }

    @classmethod
    def of(cls, fields: Any) -> "ShardEntry":
        """Make an entry from the object of a manifest's JSON.

        Raises:
            ValueError: it is not an entry; the message says why.

        """
        if problem := problem_in(fields, _ENTRY) or problem_in(
            fields, {n: kind for n, kind in _MAY_HAVE.items() if n in fields}
        ):
            raise ValueError(problem)
        if not fields["samples"] <= fields["images"] <= MOST_IMAGES:
            raise ValueError(_too_many(fields["samples"], fields["images"]))
        return cls(
            **{name: fields[name] for name in ("name", "images", "samples", "bytes", "sha256")},
            boxes=fields.get("boxes"),
            pixels=fields.get("pixels"),
            index=_facts(fields["index"]),
            candidates=_facts(fields["candidates"]) if "candidates" in fields else None,
            totals=dict(fields["totals"]),
        )


def _too_many(samples: int, images: int) -> str:
    return f"samples is {samples} of {images} images, expected at most all, and {MOST_IMAGES} images a shard"


def _facts(fields: Mapping[str, Any]) -> FileFacts:
    return FileFacts(bytes=fields["bytes"], sha256=fields["sha256"])


def problem_in(fields: Any, expected: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the fields of a JSON object; None if nothing is.

    Args:
        fields: the object.
        expected: the type of each field; for a field that is an object, the types of its fields.

    """
    if not isinstance(fields, dict):
        return f"found {type(fields).__name__}, expected an object"
    for name, kind in expected.items():
        if name not in fields:
            return f"{name} is missing"
        value: Any = fields[name]
        if isinstance(kind, dict):
            if problem := problem_in(value, kind):
                return f"{name}: {problem}"
        elif not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and not 0 <= value < _MOST):
            return f"{name} is {str(value)[:40]!r}, expected {_WORDS[kind]}"
        if name == "totals" and not all(isinstance(count, int) for count in dict(value).values()):
            return "totals holds something that is not a number"
    return None


_HASH = pa.binary(32)
_COLUMNS = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        *(pa.field(name, pa.int64(), nullable=False) for name in ("images", "samples", "bytes")),
        pa.field("sha256", _HASH, nullable=False),
        pa.field("index_bytes", pa.int64(), nullable=False),
        pa.field("index_sha256", _HASH, nullable=False),
        *(pa.field(name, pa.int64()) for name in ("boxes", "pixels", "candidates_bytes")),
        pa.field("candidates_sha256", _HASH),
        *(pa.field(status, pa.int64()) for status in STATUSES),
    ]
)
"""Columns of the Parquet file: a hash is its 32 bytes, and each status of the totals has a column."""


class EntryTable(Sequence[ShardEntry]):
    """Entries stored as columns. A hundred thousand take 20 MB, and an entry object is made only when it is asked for."""

    def __init__(self, table: pa.Table):
        self.table = table

    @classmethod
    def of(cls, data: bytes) -> "EntryTable":
        """Make a table from the bytes of the Parquet file.

        Raises:
            ValueError: it is not a list of shards; the message says why.

        """
        with memory_given_back():
            return cls(_checked(data))

    @classmethod
    def from_entries(cls, entries: Sequence[ShardEntry]) -> "EntryTable":
        """Return the same entries as columns."""
        if isinstance(entries, EntryTable):
            return entries
        rows: dict[str, list[Any]] = {name: [] for name in _COLUMNS.names}
        for entry in entries:
            for name in ("name", "images", "samples", "boxes", "pixels", "bytes"):
                rows[name].append(getattr(entry, name))
            rows["sha256"].append(bytes.fromhex(entry.sha256))
            for name, facts in (("index", entry.index), ("candidates", entry.candidates)):
                rows[f"{name}_bytes"].append(None if facts is None else facts.bytes)
                rows[f"{name}_sha256"].append(None if facts is None else bytes.fromhex(facts.sha256))
            for status in STATUSES:
                rows[status].append(entry.totals.get(status))
        return cls(pa.table(rows, schema=_COLUMNS))

    def as_bytes(self) -> bytes:
        """Return the bytes of the Parquet file, which are the same for the same entries."""
        file = io.BytesIO()
        with pq.ParquetWriter(file, _COLUMNS, compression="zstd", use_dictionary=False, store_schema=False) as writer:
            writer.write_table(self.table, row_group_size=1 << 16)
        return file.getvalue()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, at: int) -> ShardEntry: ...
    @overload
    def __getitem__(self, at: slice) -> "EntryTable": ...
    def __getitem__(self, at: int | slice) -> "ShardEntry | EntryTable":
        if isinstance(at, slice):
            first, last, step = at.indices(len(self))
            if step != 1:
                raise ValueError(f"a slice of entries has the step {step}; expected 1")
            return EntryTable(self.table.slice(first, max(0, last - first)))
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        (row,) = self.table.slice(at % len(self), 1).to_pylist()
        return _entry(row)

    def __iter__(self) -> Iterator[ShardEntry]:
        for batch in self.table.to_batches(4096):
            yield from map(_entry, batch.to_pylist())


def _checked(data: bytes) -> pa.Table:
    """Return the columns of the Parquet file, after checking their types and numbers."""
    try:
        found = table_of(data)
        named = [field for field in _COLUMNS if field.name in found.schema.names]
        table = found.select([field.name for field in named]).cast(pa.schema(named))
        for field_ in _COLUMNS:
            if field_.name not in found.schema.names:
                if not field_.nullable:
                    raise ValueError(f"it lacks the column {field_.name}")
                table = table.append_column(field_, pa.nulls(len(table), field_.type))
    except (pa.ArrowException, KeyError, OSError) as error:
        raise ValueError(why(error)) from error
    for field_ in _COLUMNS:
        column = table.column(field_.name)
        if not field_.nullable and column.null_count:
            raise ValueError(f"its column {field_.name} has rows without a value")
        if field_.type == pa.int64() and (pc.min(column).as_py() or 0) < 0:
            raise ValueError(f"its column {field_.name} has numbers below 0")
    images, samples = (whole_numbers(one_array(table.column(name))) for name in ("images", "samples"))
    if len(odd := np.flatnonzero((samples > images) | (images > MOST_IMAGES))):
        raise ValueError(f"shard {odd[0]}: {_too_many(int(samples[odd[0]]), int(images[odd[0]]))}")
    return table.select(_COLUMNS.names).combine_chunks()


def _entry(row: dict[str, Any]) -> ShardEntry:
    candidates = row["candidates_bytes"] is not None
    return ShardEntry(
        **{name: row[name] for name in ("name", "images", "samples", "boxes", "pixels", "bytes")},
        sha256=row["sha256"].hex(),
        index=FileFacts(bytes=row["index_bytes"], sha256=row["index_sha256"].hex()),
        candidates=FileFacts(bytes=row["candidates_bytes"], sha256=row["candidates_sha256"].hex()) if candidates else None,
        totals={status: row[status] for status in sorted(STATUSES) if row[status] is not None},
    )


def numbers(entries: Sequence[ShardEntry], name: str) -> np.ndarray:
    """Return `images`, `samples`, `bytes`, `boxes` or `pixels` of each entry, int64 S; -1 where it is not stated."""
    if isinstance(entries, EntryTable):
        return np.asarray(whole_numbers(one_array(entries.table.column(name)), null=-1), np.int64)
    found = (getattr(entry, name) for entry in entries)
    return np.fromiter((-1 if value is None else value for value in found), np.int64, len(entries))


def tar_names(entries: Sequence[ShardEntry]) -> list[str]:
    """Return the file names of the tars, in order."""
    if isinstance(entries, EntryTable):
        found: list[str] = entries.table.column("name").to_pylist()
        return found
    return [entry.name for entry in entries]


def _bytes_of(column: pa.FixedSizeBinaryArray) -> bytes:
    """Return the concatenated values of a column of hashes."""
    width = column.type.byte_width
    return bytes(column.buffers()[1])[column.offset * width : (column.offset + len(column)) * width]


def first_bad_name(entries: Sequence[ShardEntry]) -> str | None:
    """Return the first name that cannot be that of a shard beside its manifest; None if all can."""
    if isinstance(entries, EntryTable):
        odd = pc.invert(pc.match_substring_regex(entries.table.column("name"), f"^(?:{_NAME})$"))
        found: list[str] = entries.table.column("name").filter(odd).slice(0, 1).to_pylist()
        return found[0] if found else None
    return next((entry.name for entry in entries if not _NAME_WHOLE.fullmatch(entry.name)), None)


def hashes(entries: Sequence[ShardEntry]) -> list[str]:
    """Return the SHA-256 of each tar, hexadecimal."""
    if isinstance(entries, EntryTable):
        text = _bytes_of(one_array(entries.table.column("sha256"))).hex()
        return [text[at : at + 64] for at in range(0, len(text), 64)]
    return [entry.sha256 for entry in entries]
