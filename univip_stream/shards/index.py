"""The index of a list of shards, in memory: where each sample lies, and its boxes.

Letters: N samples, M boxes in all.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from univip_stream.errors import InputError
from univip_stream.files import sha256_of
from univip_stream.shards.format import FORMAT, HELD, index_name
from univip_stream.shards.manifest import read_manifest

_COLUMNS = ["key", "source", "width", "height", "label", "status", "offset", "size", "sha256", "boxes"]


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
    fingerprint: str
    """Of the shards' contents: the same wherever the folder lies."""

    def __len__(self) -> int:
        return len(self.offset)

    def boxes_of(self, sample: int) -> np.ndarray:
        """int32, boxes of a sample x 4 xywh, best first."""
        return self.boxes[self.box_start[sample] : self.box_start[sample + 1]].astype(np.int32)

    def text(self, column: str, sample: int) -> Any:
        """`key`, `source`, `label` or `sha256` of a sample."""
        return getattr(self, column)[sample].as_py()


def open_index(shards: list[str]) -> ShardIndex:
    """Read the Parquet beside every shard, and check sizes against it and the manifest.

    Args:
        shards: paths of tars, as `expand_shards` gives them.

    Raises:
        InputError: a shard without index, of another size than its index says, or with no sample in all of them.

    """
    tables, shard_of, hashes = [], [], []
    folders = dict.fromkeys(Path(shard).parent for shard in shards)
    entries = {str(folder / entry["name"]): entry for folder in folders for entry in read_manifest(folder)["shards"]}
    for number, shard in enumerate(shards):
        _check_index(shard, entries)
        table, tar_hash = _read_one(shard)
        tables.append(table)
        hashes.append(tar_hash)
        shard_of.append(np.full(table.num_rows, number, np.int32))
    rows = pa.concat_tables(tables)
    if rows.num_rows == 0:
        raise InputError(f"the {len(shards)} shards hold no sample; see the reasons in their .parquet files")
    boxes = rows.column("boxes").combine_chunks()
    boxes = boxes.fill_null([]) if boxes.null_count else boxes
    starts = np.concatenate([[0], np.cumsum(pc.list_value_length(boxes).to_numpy(zero_copy_only=False))]).astype(np.int64)
    flat = boxes.flatten().flatten().to_numpy(zero_copy_only=False).astype(np.int16, copy=False).reshape(-1, 4)
    return ShardIndex(
        shards=shards,
        shard=np.concatenate(shard_of),
        offset=_numbers(rows, "offset", np.int64),
        size=_numbers(rows, "size", np.int64),
        width=_numbers(rows, "width", np.int32),
        height=_numbers(rows, "height", np.int32),
        boxes=flat,
        box_start=starts,
        key=rows.column("key"),
        source=rows.column("source"),
        label=rows.column("label"),
        sha256=rows.column("sha256"),
        fingerprint=_digest(hashes),
    )


def _check_index(shard: str, entries: dict[str, Any]) -> None:
    """The index holds the boxes: it must be the one that the manifest was written for."""
    path = Path(index_name(shard))
    entry = entries.get(str(Path(shard)))
    if entry is None:
        raise InputError(f"{shard}: the manifest of its folder does not name it; mine it, or leave it out")
    if path.is_file() and sha256_of(path) != entry["index"]["sha256"]:
        raise InputError(
            f"{path} is not the index its manifest was written for (SHA-256 differs): it was changed or damaged; "
            "`univip-stream verify` lists what differs, mining again mends it"
        )


def _read_one(shard: str) -> tuple[pa.Table, str]:
    path = Path(index_name(shard))
    if not path.is_file():
        raise InputError(
            f"{shard} has no index {path.name} beside it; `univip-stream mine` writes both: copy it, or mine again"
        )
    try:
        table = pq.read_table(path, columns=_COLUMNS)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(f"{path}: not an index that can be read ({error}); mine this shard again") from error
    facts = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items() if k != b"ARROW:schema"}
    if facts.get("format") != FORMAT:
        raise InputError(f"{path} has format {facts.get('format')!r}; this version reads {FORMAT!r}")
    found = Path(shard).stat().st_size
    if facts["tar_bytes"] != str(found):
        raise InputError(
            f"{shard} has {found} bytes but its index says {facts['tar_bytes']}: it was cut off or replaced; "
            "`univip-stream verify` lists every such shard, mining again mends them"
        )
    return table.filter(pc.is_in(table.column("status"), pa.array(sorted(HELD)))), facts["tar_sha256"]


def _numbers(rows: pa.Table, name: str, kind: Any) -> np.ndarray:
    return np.asarray(rows.column(name).to_numpy(), kind)


def _digest(hashes: list[str]) -> str:
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
