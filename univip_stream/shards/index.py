"""The index of a list of shards, in memory: where each sample lies, and its boxes.

Letters: N samples, M boxes in all.
"""

import hashlib
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from univip_stream.errors import InputError, why
from univip_stream.files import sha256_of
from univip_stream.filetypes import too_large
from univip_stream.images import MAX_PIXELS, MAX_SIDE
from univip_stream.parquet import table_of
from univip_stream.shards.cache import Cache, Remote, checked_hash
from univip_stream.shards.foreign import EXAMPLE, foreign_index
from univip_stream.shards.format import FORMAT, HELD, INDEX_COLUMNS, as_index, index_name
from univip_stream.shards.manifest import JOB, being_added, has_manifest, is_there, mined_limit, read_manifest
from univip_stream.storage import is_remote, join, name_of, opened, parent, size_of

_AT_ONCE = 8
"""Shards whose index is read at a time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardIndex:
    """Samples of all shards, in the order of the shards and of their keys. Arrays are shared when processes fork."""

    shards: list[str]
    """Paths of the tars."""
    shard: np.ndarray
    """int32 N: which shard a sample lies in."""
    offset: np.ndarray
    """int64 N: first byte of the image in its tar."""
    size: np.ndarray
    """int64 N: bytes of the image."""
    width: np.ndarray
    """int32 N: pixels, upright."""
    height: np.ndarray
    """int32 N."""
    boxes: np.ndarray
    """int16 M x 4: all boxes, sample after sample."""
    box_start: np.ndarray
    """int64 N + 1: sample i has boxes[box_start[i] : box_start[i + 1]]."""
    key: pa.ChunkedArray
    """string N."""
    source: pa.ChunkedArray
    """string N."""
    label: pa.ChunkedArray
    """string N, null where there is none."""
    sha256: pa.ChunkedArray
    """string N: of the image's bytes."""
    tar_bytes: list[int]
    """Of each shard."""
    tar_sha256: list[str]
    """Of each shard."""
    max_pixels: list[int]
    """Of each shard: width times height up to which its images are decoded."""
    foreign: list[bool]
    """Whether a shard was written by another program: its images may need turning upright."""
    notes: list[str]
    """What a person should know: that only a part of a set was named, and what of foreign shards is no sample, counted."""
    cache: Cache
    """Where remote shards come to."""
    fingerprint: str
    """Of the shards' contents: the same wherever the folder lies."""

    def __len__(self) -> int:
        return len(self.offset)

    def boxes_of(self, sample: int) -> np.ndarray:
        """int32, boxes of a sample x 4 xywh, best first."""
        return self.boxes[self.box_start[sample] : self.box_start[sample + 1]].astype(np.int32)

    def remote(self, shard: int) -> Remote | None:
        """What to fetch for a shard; None where it is local."""
        location = self.shards[shard]
        if not is_remote(location):
            return None
        return Remote(location=location, size=self.tar_bytes[shard], sha256=self.tar_sha256[shard])

    def text(self, column: str, sample: int) -> Any:
        """`key`, `source`, `label` or `sha256` of a sample."""
        return getattr(self, column)[sample].as_py()


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """What is known of one shard."""

    table: pa.Table
    size: int
    sha256: str
    max_pixels: int
    foreign: bool = False
    ignored: dict[str, int] = field(default_factory=dict)


def open_index(shards: list[str], cache: Cache | None = None, *, max_pixels: int = MAX_PIXELS) -> ShardIndex:
    """Read the Parquet beside every shard, and check it against the manifest; index foreign WebDataset shards on first use.

    Args:
        shards: paths and URLs of tars, as `expand_shards` gives them.
        cache: where remote files come to; None for the default one.
        max_pixels: larger images in shards of other programs are left out and counted. Our own shards hold what mining's
            `--max-pixels` allowed, and that is read.

    Raises:
        InputError: a shard without index, of another size than its index says, or with no sample in all of them.

    """
    cache = cache or Cache()
    entries: dict[tuple[str, str], Any] = {}
    limits: dict[str, int] = {}
    foreign = set()
    for folder in dict.fromkeys(map(parent, shards)):
        if has_manifest(folder):
            manifest = read_manifest(folder)
            limits[folder] = mined_limit(manifest)
            entries |= {(folder, entry["name"]): entry for entry in manifest["shards"]}
        elif _unfinished(folder, [shard for shard in shards if parent(shard) == folder]):
            read_manifest(folder)
        else:
            foreign.add(folder)

    def load(shard: str) -> _Shard:
        if parent(shard) in foreign:
            found = foreign_index(shard, cache, max_pixels)
            table, ignored = _within(found.table, max_pixels, found.ignored)
            return _Shard(table=_samples_of(shard, table), size=found.size, sha256=found.sha256, max_pixels=max_pixels,
                          foreign=True, ignored=ignored)  # fmt: skip
        entry = entries.get((parent(shard), name_of(shard)))
        if entry is None:
            if name_of(shard) in being_added(parent(shard)):
                raise InputError(
                    f"{shard} belongs to a part that `mine --add` has not finished; name the folder, which means the finished "
                    "shards, or run that command again"
                )
            raise InputError(f"{shard}: the manifest of its folder does not name it; mine it, or leave it out")
        return _load(shard, entry, cache, max(max_pixels, limits[parent(shard)]))

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        loaded = list(pool.map(load, shards))
    rows = pa.concat_tables(shard.table for shard in loaded)
    notes = [*_parts(shards, entries), *_notes(shards, loaded)]
    if rows.num_rows == 0:
        raise InputError(
            f"none of {len(shards)} shards holds a sample ({', '.join(map(str, shards[:3]))}{', ...' * (len(shards) > 3)}); "
            + ("; ".join(notes) or "expected tars of images; of mined ones the .parquet beside each says why")
        )
    boxes = rows.column("boxes").combine_chunks()
    return ShardIndex(
        shards=shards,
        shard=np.repeat(np.arange(len(shards), dtype=np.int32), [shard.table.num_rows for shard in loaded]),
        offset=_numbers(rows, "offset", np.int64),
        size=_numbers(rows, "size", np.int64),
        width=_numbers(rows, "width", np.int32),
        height=_numbers(rows, "height", np.int32),
        boxes=_flat(boxes),
        box_start=_starts(boxes),
        key=rows.column("key"),
        source=rows.column("source"),
        label=rows.column("label"),
        sha256=rows.column("sha256"),
        tar_bytes=[shard.size for shard in loaded],
        tar_sha256=[shard.sha256 for shard in loaded],
        max_pixels=[shard.max_pixels for shard in loaded],
        foreign=[shard.foreign for shard in loaded],
        notes=notes,
        cache=cache,
        fingerprint=hashlib.sha256("\n".join(shard.sha256 for shard in loaded).encode()).hexdigest(),
    )


def _unfinished(folder: str, shards: list[str]) -> bool:
    """Whether shards without a manifest are our own: those of a job that did not end must not pass for complete ones."""
    if is_there(join(folder, JOB)):
        return True
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return any(pool.map(_is_ours, map(index_name, shards)))


def _is_ours(path: str) -> bool:
    """Whether a file is an index of ours; other programs (img2dataset) put Parquet files beside tars too."""
    if not is_there(path):
        return False
    try:
        with opened(path) as file:
            facts = pq.read_schema(file).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path} cannot be read ({why(error)}), so whose shard it lies beside cannot be told; remove or mend it"
        ) from error
    return bytes(facts.get(b"format", b"")).startswith(b"univip-stream/")


def _within(table: pa.Table, max_pixels: int, ignored: dict[str, int]) -> tuple[pa.Table, dict[str, int]]:
    """The rows of a foreign shard without images beyond the limit, and what is ignored with these counted."""
    pixels = pc.multiply(pc.cast(table.column("width"), pa.int64()), pc.cast(table.column("height"), pa.int64()))
    large = pc.fill_null(pc.greater(pixels, max_pixels), False)
    rows = table.filter(large).select(["source", "width", "height"])
    if not rows.num_rows:
        return table, ignored
    first = rows.slice(0, 1).to_pylist()[0]
    reason = f"{first['source']}: {too_large(first['width'], first['height'], max_pixels, MAX_SIDE)}"
    return table.filter(pc.invert(large)), {**ignored, f"images too large{EXAMPLE}{reason}": rows.num_rows}


def _load(shard: str, entry: dict[str, Any], cache: Cache, max_pixels: int) -> _Shard:
    """The index holds the boxes: it must be the one that the manifest was written for."""
    path = index_name(shard)
    try:
        expected, size, sha256 = entry["index"], int(entry["bytes"]), str(entry["sha256"])
        remote = Remote(location=path, size=int(expected["bytes"]), sha256=checked_hash(expected["sha256"]))
        checked_hash(sha256)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the manifest's entry of {shard} cannot be used ({why(error)})") from error
    if is_remote(path):
        with _fetched(remote, cache) as file:
            table = _read_table(path, file)
    else:
        if not Path(path).is_file():
            raise InputError(
                f"{shard} has no index {Path(path).name} beside it; `univip-stream mine` writes both: copy it, or mine again"
            )
        if sha256_of(Path(path)) != remote.sha256:
            raise InputError(
                f"{path} is not the index its manifest was written for (SHA-256 differs): it was changed or damaged; "
                "`univip-stream verify` lists what differs, mining again mends it"
            )
        with open(path, "rb") as file:
            table = _read_table(path, file)
    facts = {k: v.decode(errors="replace") for k, v in (table.schema.metadata or {}).items()}
    if facts.get(b"format") != FORMAT:
        raise InputError(
            f"{path} has format {facts.get(b'format')!r}; this version reads {FORMAT!r}: use the one that made it, or mine again"
        )
    found = size_of(shard)
    if facts.get(b"tar_bytes") != str(found) or size != found:
        raise InputError(
            f"{shard} has {found} bytes but its index says {facts.get(b'tar_bytes')}: it was cut off or replaced; "
            "`univip-stream verify` lists every such shard, mining again mends them"
        )
    return _Shard(table=_samples_of(shard, table), size=size, sha256=sha256, max_pixels=max_pixels)


def _fetched(remote: Remote, cache: Cache) -> BinaryIO:
    """A remote index. Its boxes have no hashes of their own, so a copy that lay in the cache is hashed again."""
    for last in (False, True):
        file = os.fdopen(cache.open(remote), "rb")
        if hashlib.file_digest(file, "sha256").hexdigest() == remote.sha256:
            file.seek(0)
            return file
        file.close()
        if not last:
            cache.forget(remote)
    raise InputError(f"{remote.location}: its copy in {cache.folder} changes while it is read; use another stream.cache")


def _read_table(path: str, file: BinaryIO) -> pa.Table:
    try:
        return as_index(table_of(file.read(), INDEX_COLUMNS), INDEX_COLUMNS)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(f"{path}: not an index that can be read ({why(error)}); mine this shard again") from error


def _samples_of(shard: str, table: pa.Table) -> pa.Table:
    """The rows that are samples; their numbers are looked at here, because everything after relies on them."""
    rows = table.filter(pc.is_in(table.column("status"), pa.array(sorted(HELD))))
    for name in ("key", "width", "height", "offset", "size", "sha256"):
        if rows.column(name).null_count:
            raise InputError(f"the index of {shard} has samples without {name}; mine this shard again")
    boxes = rows.column("boxes").combine_chunks()
    x, y, w, h = _flat(boxes).astype(np.int32).T
    counts = np.diff(_starts(boxes))
    width, height = (np.repeat(_numbers(rows, name, np.int32), counts) for name in ("width", "height"))
    bad = np.flatnonzero((x < 0) | (y < 0) | (w < 1) | (h < 1) | (x + w > width) | (y + h > height))
    if len(bad):
        sample = int(np.searchsorted(_starts(boxes), bad[0], side="right")) - 1
        raise InputError(
            f"the index of {shard} has {len(bad)} boxes outside their images, the first in sample "
            f"{rows.column('key')[sample].as_py()}; mine this shard again"
        )
    return rows


def _parts(shards: list[str], entries: dict[tuple[str, str], Any]) -> list[str]:
    """One line a folder of which not all shards were named: right for a trial, and easily a slip of a range."""
    named = {(parent(shard), name_of(shard)) for shard in shards}
    found = []
    for folder in dict.fromkeys(folder for folder, _ in entries):
        whole = [place for place in entries if place[0] == folder]
        part = [place for place in whole if place in named]
        if len(part) < len(whole):
            images, of = (sum(entries[place]["samples"] for place in places) for places in (part, whole))
            found.append(f"{images} of {of} images: {len(part)} of {len(whole)} shards of {folder} named")
    return found


def _notes(shards: list[str], loaded: list[_Shard]) -> list[str]:
    """One line a kind of thing that foreign shards hold and no sample came of."""
    totals: Counter[str] = Counter()
    first: dict[str, str] = {}
    for name, shard in zip(shards, loaded, strict=True):
        for text, count in shard.ignored.items():
            kind, _, example = text.partition(EXAMPLE)
            totals[kind] += count
            first.setdefault(kind, f"{name}: {example}" if example else name)
    return [f"{count} {kind} (first in {first[kind]})" for kind, count in sorted(totals.items())]


def _starts(boxes: pa.Array) -> np.ndarray:
    counts = pc.fill_null(pc.list_value_length(boxes), 0).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _flat(boxes: pa.Array) -> np.ndarray:
    """int16, boxes of all rows x 4."""
    return np.asarray(boxes.flatten().flatten().to_numpy(zero_copy_only=False), np.int16).reshape(-1, 4)


def _numbers(rows: pa.Table, name: str, kind: Any) -> np.ndarray:
    return np.asarray(rows.column(name).to_numpy(), kind)
