"""Read the samples of a finished shard as they were written, to choose other boxes or write it again without mining."""

import hashlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from univip_stream import storage
from univip_stream.errors import InputError, why
from univip_stream.images import MAX_BYTES
from univip_stream.shards.candidates import candidates_beside, rows_with_candidates
from univip_stream.shards.format import HELD, StoredImage, index_name


def stored_samples(folder: str, name: str, proposals: str, index_sha256: str | None = None) -> Iterator[StoredImage]:
    """Yield every row of a shard in order, with its image and all candidates; memory holds a group of rows at a time.

    Args:
        folder: folder of the shard, local or remote (then the tar is copied to a temporary file first).
        name: file name of its tar.
        proposals: name of the engine that proposed its candidates.
        index_sha256: SHA-256 of the index that is expected; None for any.

    Raises:
        InputError: the tar, index or file of candidates is not as it was written; the message names it.

    """
    index = storage.read(storage.join(folder, index_name(name)))
    if index_sha256 is not None and hashlib.sha256(index).hexdigest() != index_sha256:
        raise InputError(f"{index_name(name)} is not the index that its manifest names; `univip-stream verify` says more")
    candidates_there = candidates_beside(index, storage.join(folder, name), storage.read)
    with tempfile.TemporaryDirectory() as place:
        tar = storage.join(folder, name)
        if storage.is_remote(tar):
            storage.copy_in(tar, Path(place, name))
            tar = str(Path(place, name))
        with open(tar, "rb") as file:
            for batch in _rows_of(index, candidates_there, name):
                lists = zip(_boxes(batch.column("boxes")), _boxes(batch.column("candidates")), strict=True)
                rows = batch.drop_columns(["boxes", "candidates"]).to_pylist()
                for row, (boxes, candidates) in zip(rows, lists, strict=True):
                    yield _sample(row, boxes, candidates, file, name, proposals)


def _rows_of(index: bytes, candidates: bytes | None, name: str) -> Iterator[pa.RecordBatch]:
    try:
        yield from rows_with_candidates(index, candidates)
    except (pa.ArrowException, KeyError) as error:
        raise InputError(
            f"{index_name(name)}: not an index that can be read ({why(error)}); mine this shard again"
        ) from error


def _sample(
    row: dict[str, Any], boxes: np.ndarray, candidates: np.ndarray, tar: io.BufferedReader, name: str, proposals: str
) -> StoredImage:
    held = row["status"] in HELD
    data = b""
    if held:
        tar.seek(row["offset"])
        data = tar.read(row["size"]) if row["size"] <= MAX_BYTES else b""
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            raise InputError(
                f"{name}: image {row['key']} ({row['source']}) has other bytes than were mined (SHA-256 differs); "
                "`univip-stream verify` lists what differs, mining again repairs it"
            )
    return StoredImage(
        key=row["key"],
        source=row["source"],
        status=row["status"],
        reason=row["reason"],
        label=row["label"],
        image_id=row.get("image_id"),  # the first shards lack this column
        width=row["width"],
        height=row["height"],
        data=data,
        suffix=row["suffix"],
        sha256=row["sha256"],
        converted=row["converted"],
        proposals=proposals,
        boxes=boxes if held else None,
        candidates=candidates if held else None,
    )


def _boxes(column: pa.ListArray) -> list[np.ndarray]:
    """Return the boxes of each row, int16 N x 4, without making a Python object for each number."""
    flat = column.flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, 4)
    counts = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return np.split(flat, np.cumsum(counts)[:-1]) if len(counts) else []
