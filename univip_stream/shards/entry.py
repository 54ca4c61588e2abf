"""What a manifest says of one shard; and of very many, as columns instead of an object each.

A manifest of a hundred thousand shards would be 60 MB of JSON and a second of parsing: beyond `MOST_IN_JSON` they lie in a Parquet
file beside it, which is read into columns at once.

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
from univip_stream.parquet import one_array, table_of, whole_numbers
from univip_stream.shards.format import FORMAT_1, FORMAT_2, STATUSES

MOST_IN_JSON = 4096
"""Shards that a manifest lists in its JSON; of more it names the Parquet file that does."""
MOST_IMAGES = 1 << 24
"""Images of a shard; a manifest that says more lies, and the order is made of what it says."""
_MOST = 1 << 62
"""Whole numbers are below this."""
_NAME = r"[^/\\\x00-\x1f.][^/\\\x00-\x1f]*\.tar"
"""A shard's file name: of its own folder, and not hidden."""
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
    """What a file must be."""

    bytes: int
    """Its size."""
    sha256: str
    """Of its bytes, hexadecimal."""

    def as_json(self) -> dict[str, Any]:
        """As the manifest has it."""
        return {"bytes": self.bytes, "sha256": self.sha256}


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEntry:
    """One shard: what is in it, and what its files must be."""

    name: str
    """Of its tar."""
    images: int
    """Rows of its index: images of the source."""
    samples: int
    """Images in the tar."""
    bytes: int
    """Size of the tar."""
    sha256: str
    """Of the tar, hexadecimal."""
    index: FileFacts
    """The Parquet file beside it."""
    boxes: int | None = None
    """Boxes of all its samples."""
    pixels: int | None = None
    """Width times height of all its samples together; version 1 does not say it."""
    candidates: FileFacts | None = None
    """The file of candidates; None in version 1, where the index has them."""
    totals: Mapping[str, int] = field(default_factory=dict)
    """Images by what became of them."""

    @property
    def format(self) -> str:
        """Version of the layout of its files."""
        return FORMAT_1 if self.candidates is None else FORMAT_2

    def as_json(self) -> dict[str, Any]:
        """As the manifest has it."""
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
        """From JSON.

        Raises:
            ValueError: it is no entry; why, in words.

        """
        if problem := wrong(fields, _ENTRY) or wrong(fields, {n: kind for n, kind in _MAY_HAVE.items() if n in fields}):
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


def wrong(fields: Any, expected: Mapping[str, Any]) -> str | None:
    """What is not as `expected` says: a type, or for an object its fields' types; None if all is."""
    if not isinstance(fields, dict):
        return f"found {type(fields).__name__}, expected an object"
    for name, kind in expected.items():
        if name not in fields:
            return f"{name} is missing"
        value: Any = fields[name]
        if isinstance(kind, dict):
            if problem := wrong(value, kind):
                return f"{name}: {problem}"
        elif not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and not 0 <= value < _MOST):
            return f"{name} is {str(value)[:40]!r}, expected {_WORDS[kind]}"
        if name == "totals" and not all(isinstance(count, int) for count in dict(value).values()):
            return "totals holds something that is no number"
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
"""Of the Parquet file: hashes as their 32 bytes, the totals a column a status."""


class EntryTable(Sequence[ShardEntry]):
    """Entries as columns: of a hundred thousand shards they take 20 MB, and an entry is made when it is asked for."""

    def __init__(self, table: pa.Table):
        self.table = table

    @classmethod
    def of(cls, data: bytes) -> "EntryTable":
        """From the file's bytes.

        Raises:
            ValueError: it is none; why, in words.

        """
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
        return cls(table.select(_COLUMNS.names).combine_chunks())

    @classmethod
    def from_entries(cls, entries: Sequence[ShardEntry]) -> "EntryTable":
        """The same entries, as columns."""
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
        """The file; the same bytes for the same entries."""
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
                raise ValueError("entries are taken in their order")
            return EntryTable(self.table.slice(first, max(0, last - first)))
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        (row,) = self.table.slice(at % len(self), 1).to_pylist()
        return _entry(row)

    def __iter__(self) -> Iterator[ShardEntry]:
        for batch in self.table.to_batches(4096):
            yield from map(_entry, batch.to_pylist())


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
    """int64 S: `images`, `samples`, `bytes`, `boxes` or `pixels` of each; -1 where an entry does not say it."""
    if isinstance(entries, EntryTable):
        return np.asarray(whole_numbers(one_array(entries.table.column(name)), null=-1), np.int64)
    found = (getattr(entry, name) for entry in entries)
    return np.fromiter((-1 if value is None else value for value in found), np.int64, len(entries))


def tar_names(entries: Sequence[ShardEntry]) -> list[str]:
    """Of the tars, in order."""
    if isinstance(entries, EntryTable):
        found: list[str] = entries.table.column("name").to_pylist()
        return found
    return [entry.name for entry in entries]


def _bytes_of(column: pa.FixedSizeBinaryArray) -> bytes:
    """The values of a column of hashes, one after the other."""
    width = column.type.byte_width
    return bytes(column.buffers()[1])[column.offset * width : (column.offset + len(column)) * width]


def first_odd_name(entries: Sequence[ShardEntry]) -> str | None:
    """A name that is none of a shard beside its manifest; None if there is none."""
    if isinstance(entries, EntryTable):
        odd = pc.invert(pc.match_substring_regex(entries.table.column("name"), f"^(?:{_NAME})$"))
        found: list[str] = entries.table.column("name").filter(odd).slice(0, 1).to_pylist()
        return found[0] if found else None
    return next((entry.name for entry in entries if not _NAME_WHOLE.fullmatch(entry.name)), None)


def hashes(entries: Sequence[ShardEntry]) -> list[str]:
    """SHA-256 of the tars, hexadecimal."""
    if isinstance(entries, EntryTable):
        text = _bytes_of(one_array(entries.table.column("sha256"))).hex()
        return [text[at : at + 64] for at in range(0, len(text), 64)]
    return [entry.sha256 for entry in entries]
