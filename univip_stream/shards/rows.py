"""The index of a shard in memory: the position of each sample, and its boxes.

Letters: N samples, M boxes in all.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from univip_stream.errors import InputError, why
from univip_stream.files import sha256_of
from univip_stream.parquet import one_array, table_in_pieces, whole_numbers
from univip_stream.shards.cache import Cache, Remote
from univip_stream.shards.entry import ShardEntry
from univip_stream.shards.format import FORMATS, HELD_VALUES, INDEX_COLUMNS, STAGED, as_index, index_name
from univip_stream.storage import is_remote, size_of

_CHECKED = 1024
"""Number of samples whose boxes are checked at a time."""


class ShardError(InputError):
    """A shard or its index is not as its manifest states. Its samples are not replaced by others: the next would fail too."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """The samples of a shard in the order of their keys, or of several shards one after the other."""

    offset: np.ndarray
    """int64 N: first byte of the image in its tar."""
    size: np.ndarray
    """int64 N: size of the image in bytes."""
    width: np.ndarray
    """int32 N: width of the upright image in pixels."""
    height: np.ndarray
    """int32 N: height of the upright image in pixels."""
    boxes: np.ndarray
    """int16 M x 4: all boxes, xywh in pixels, sample after sample."""
    box_start: np.ndarray
    """int64 N + 1: sample i has boxes[box_start[i] : box_start[i + 1]]."""
    key: pa.ChunkedArray
    """string N: key of the sample."""
    source: pa.ChunkedArray
    """string N: name of the image in its source."""
    label: pa.ChunkedArray
    """string N: class of the image, null where there is none."""
    sha256: pa.ChunkedArray
    """string N: SHA-256 of the image's bytes, hexadecimal."""

    def __len__(self) -> int:
        return len(self.offset)

    def boxes_of(self, at: int) -> np.ndarray:
        """Return the boxes of a sample: int32, N x 4, xywh in pixels, best first."""
        return self.boxes[self.box_start[at] : self.box_start[at + 1]].astype(np.int32)

    def text(self, column: str, at: int) -> Any:
        """Return the value of `key`, `source`, `label` or `sha256` of a sample."""
        return getattr(self, column)[at].as_py()


def rows_of(tables: Sequence[pa.Table]) -> Rows:
    """Return the samples of some indexes, as `samples_of` returns them, one after the other."""
    rows = pa.concat_tables(tables)
    boxes = one_array(rows.column("boxes"))
    return Rows(
        offset=_numbers(rows, "offset", np.int64),
        size=_numbers(rows, "size", np.int64),
        width=_numbers(rows, "width", np.int32),
        height=_numbers(rows, "height", np.int32),
        boxes=_flat(boxes),
        box_start=_starts(boxes),
        **{name: rows.column(name) for name in ("key", "source", "label", "sha256")},
    )


def read_samples(shard: str, entry: ShardEntry, cache: Cache) -> pa.Table:
    """Return the samples of a shard's index. It holds the boxes, so it must be the index that the manifest names.

    Args:
        shard: location of the tar.
        entry: its entry in the manifest.
        cache: cache that a remote index is fetched to.

    Raises:
        InputError: the index or tar is missing, or is not the one that the manifest names; the message names it.

    """
    path = index_name(shard)
    if is_remote(path):
        remote = Remote(location=path, size=entry.index.bytes, sha256=entry.index.sha256)
        with _open_remote(remote, cache) as file:
            table = _read_table(path, file)
    else:
        if not Path(path).is_file():
            raise ShardError(
                f"{shard} has no index {Path(path).name} beside it; `univip-stream mine` writes both: copy it, or mine again"
            )
        if sha256_of(Path(path)) != entry.index.sha256:
            if Path(path + STAGED).exists():
                raise ShardError(
                    f"{path} is not the index its manifest was written for: an `upgrade` of this folder was stopped or is under "
                    "way; run `univip-stream upgrade` on it again"
                )
            raise ShardError(
                f"{path} is not the index its manifest was written for (SHA-256 differs): it was changed or damaged; "
                "`univip-stream verify` lists what differs, mining again repairs it"
            )
        with open(path, "rb") as file:
            table = _read_table(path, file)
    facts = {k: v.decode(errors="replace") for k, v in (table.schema.metadata or {}).items()}
    if facts.get(b"format") not in FORMATS:
        raise ShardError(
            f"{path} has format {facts.get(b'format')!r}; this version reads {' and '.join(map(repr, FORMATS))}: use the one that "
            "made it, or mine again"
        )
    found = entry.bytes if is_remote(shard) else size_of(shard)  # a remote one is checked when it is fetched
    if facts.get(b"tar_bytes") != str(found) or entry.bytes != found:
        raise ShardError(
            f"{shard} has {found} bytes but its index says {facts.get(b'tar_bytes')}: it was cut off or replaced; "
            "`univip-stream verify` lists every such shard, mining again repairs them"
        )
    samples = samples_of(shard, table)
    if len(samples) != entry.samples:
        raise ShardError(
            f"the index of {shard} has {len(samples)} samples, its manifest says {entry.samples}: one of the two was changed; "
            "`univip-stream verify` says more"
        )
    return samples


def samples_of(shard: str, table: pa.Table) -> pa.Table:
    """Return the rows that are samples, after checking their numbers, because everything later relies on them.

    Raises:
        ShardError: a sample lacks a number, or has boxes outside its image.

    """
    held = pc.is_in(table.column("status"), HELD_VALUES)
    rows = table if pc.all(held).as_py() else table.filter(held)
    for name in ("key", "width", "height", "offset", "size", "sha256"):
        if rows.column(name).null_count:
            raise ShardError(f"the index of {shard} has samples without {name}; mine this shard again")
    if len(bad := _boxes_outside(rows)):
        sample = int(np.searchsorted(_starts(one_array(rows.column("boxes"))), bad[0], side="right")) - 1
        raise ShardError(
            f"the index of {shard} has {len(bad)} boxes outside their images, the first in sample "
            f"{rows.column('key')[sample].as_py()}; mine this shard again"
        )
    return rows.select([name for name in INDEX_COLUMNS if name != "status"])


def _boxes_outside(rows: pa.Table) -> np.ndarray:
    """Return the numbers of the boxes that are not inside their images, int64."""
    boxes = one_array(rows.column("boxes"))
    flat, starts = _flat(boxes), _starts(boxes)
    sizes = [_numbers(rows, name, np.int32) for name in ("width", "height")]
    found = [np.empty(0, np.int64)]
    for first in range(0, len(rows), _CHECKED):  # so that this takes no more memory than the boxes themselves
        here = slice(first, first + _CHECKED)
        begin, counts = int(starts[first]), np.diff(starts[first : first + _CHECKED + 1])
        x, y, w, h = flat[begin : begin + int(counts.sum())].astype(np.int32).T
        width, height = (np.repeat(size[here], counts) for size in sizes)
        bad = (x < 0) | (y < 0) | (w < 1) | (h < 1) | (x + w > width) | (y + h > height)
        found.append(begin + np.flatnonzero(bad))
    return np.concatenate(found)


def _open_remote(remote: Remote, cache: Cache) -> BinaryIO:
    """Open a remote index. Its boxes have no hashes of their own, so a copy from the cache is hashed again."""
    for last in (False, True):
        file = os.fdopen(cache.open(remote), "rb")
        if hashlib.file_digest(file, "sha256").hexdigest() == remote.sha256:
            file.seek(0)
            return file
        file.close()
        if not last:
            cache.forget(remote)
    raise ShardError(f"{remote.location}: its copy in {cache.folder} changes while it is read; use another stream.cache")


def _read_table(path: str, file: BinaryIO) -> pa.Table:
    try:
        return as_index(table_in_pieces(file.read(), INDEX_COLUMNS), INDEX_COLUMNS)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ShardError(f"{path}: not an index that can be read ({why(error)}); mine this shard again") from error


def _starts(boxes: pa.Array) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(whole_numbers(boxes.value_lengths()), dtype=np.int64)])


def _flat(boxes: pa.Array) -> np.ndarray:
    """Return the boxes of all rows: int16, M x 4."""
    return whole_numbers(boxes.flatten().flatten()).reshape(-1, 4)


def _numbers(rows: pa.Table, name: str, kind: Any) -> np.ndarray:
    return np.asarray(whole_numbers(one_array(rows.column(name))), kind)
