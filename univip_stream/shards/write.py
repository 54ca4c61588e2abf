"""Write one shard: tar, candidates and index. Each file is complete or absent; the same samples give the same bytes."""

import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from univip_stream.files import sha256_of, written_atomically
from univip_stream.parquet import metadata_of, table_of
from univip_stream.shards.entry import FileFacts, ShardEntry
from univip_stream.shards.format import (
    BOXES,
    CANDIDATES,
    FORMAT_1,
    FORMAT_2,
    HELD,
    HELD_VALUES,
    SCHEMA,
    SCHEMA_1,
    StoredImage,
    candidates_name,
    index_name,
)

_BLOCK = 512
"""Bytes of a tar header, and the unit to which members are padded."""
ROWS_A_GROUP = 1024
"""Rows of a row group of the index: few enough that not all boxes of a shard have to be in memory at once."""


class _Hashed:
    """A file that hashes what is written to it. The tar is written from front to back, without seeking."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.size += len(data)
        return self.file.write(data)

    def tell(self) -> int:
        return self.size


class _Rows:
    """Rows of the index and the candidates that are not written yet."""

    def __init__(self) -> None:
        self.columns: dict[str, list[Any]] = {name: [] for name in SCHEMA_1.names}
        self.totals: Counter[str] = Counter()
        self.boxes = self.pixels = 0

    def __len__(self) -> int:
        return len(self.columns["key"])

    def add(self, sample: StoredImage, offset: int | None) -> None:
        held = offset is not None
        for name in SCHEMA_1.names:
            if name not in ("offset", "size", "boxes", "candidates"):
                self.columns[name].append(getattr(sample, name))
        self.columns["offset"].append(offset)
        self.columns["size"].append(len(sample.data) if held else None)
        self.columns["boxes"].append(sample.boxes if held else None)
        self.columns["candidates"].append(sample.candidates if held else None)
        self.totals[sample.status] += 1
        self.boxes += len(sample.boxes) if held and sample.boxes is not None else 0
        self.pixels += (sample.width or 0) * (sample.height or 0) if held else 0

    def take(self) -> tuple[pa.Table, pa.Table]:
        """Return (rows of the index, rows of the candidates), and start with empty rows again."""
        arrays = {name: _column(name, values) for name, values in self.columns.items()}
        self.columns = {name: [] for name in SCHEMA_1.names}
        index, candidates = (pa.table([arrays[n] for n in kind.names], schema=kind) for kind in (SCHEMA, CANDIDATES))
        return index, candidates


def write_shard(samples: Iterable[StoredImage], tar_path: Path, fingerprint: str) -> ShardEntry:
    """Write `NNN.tar`, `NNN.candidates.parquet` and then `NNN.parquet`, and return the shard's entry for the manifest.

    Samples are taken one after the other, so memory holds one image and the rows of one group. The index is the shard's
    completion mark: it appears last, and carries the fingerprint of the job and the other files' sizes and hashes.

    Args:
        samples: the images in the order of their keys.
        tar_path: path of the tar; existing files are replaced as a whole.
        fingerprint: fingerprint of the parameters of the job.

    """
    index_path, candidates_path = (Path(name(str(tar_path))) for name in (index_name, candidates_name))
    rows = _Rows()
    with written_atomically(index_path) as index_file, parquet_writer(index_file, SCHEMA) as index:
        with (
            written_atomically(candidates_path) as candidates_file,
            parquet_writer(candidates_file, CANDIDATES) as candidates,
        ):

            def put() -> None:
                for writer, table in zip((index, candidates), rows.take(), strict=True):
                    writer.write_table(table)

            with written_atomically(tar_path) as file:
                hashed = _Hashed(file)
                with tarfile.open(fileobj=hashed, mode="w", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
                    for sample in samples:
                        rows.add(sample, _add_sample(tar, hashed, sample) if sample.status in HELD else None)
                        if len(rows) == ROWS_A_GROUP:
                            put()
            put()
            tar_facts = FileFacts(bytes=hashed.size, sha256=hashed.sha256.hexdigest())
            candidates.add_key_value_metadata(candidates_facts(fingerprint, tar_facts.sha256))
        beside = FileFacts(bytes=candidates_path.stat().st_size, sha256=sha256_of(candidates_path))
        index.add_key_value_metadata(index_facts(fingerprint, tar_facts, beside))
    return _entry(
        tar_path.name, index_path.read_bytes(), tar_facts, beside, totals=rows.totals, boxes=rows.boxes, pixels=rows.pixels
    )


def parquet_writer(file: BinaryIO, schema: pa.Schema) -> pq.ParquetWriter:
    """Return a Parquet writer whose metadata can be added after the rows."""
    # With Arrow's own copy of the schema in the file, pyarrow does not return metadata that was added after the rows.
    return pq.ParquetWriter(file, schema, compression="zstd", store_schema=False)


def candidates_facts(fingerprint: str, tar_sha256: str) -> dict[str, str]:
    """Return the metadata of a file of candidates: which job and which tar it belongs to."""
    return {"format": FORMAT_2, "fingerprint": fingerprint, "tar_sha256": tar_sha256}


def index_facts(fingerprint: str, tar: FileFacts, candidates: FileFacts) -> dict[str, str]:
    """Return the metadata of an index: its job, and the sizes and hashes of the files that it completes."""
    return {
        **{"format": FORMAT_2, "fingerprint": fingerprint, "tar_bytes": str(tar.bytes), "tar_sha256": tar.sha256},
        **{"candidates_bytes": str(candidates.bytes), "candidates_sha256": candidates.sha256},
    }


def finished_shard(
    name: str, index: bytes | None, tar_bytes: int | None, candidates_bytes: int | None, fingerprint: str
) -> ShardEntry | None:
    """Return the manifest entry of a shard that an earlier run finished with these parameters; None if it did not.

    Tars and candidates are not hashed again here: `verify` does that, and a file that was renamed on the disk holds what was
    synced before.

    Args:
        name: file name of the tar.
        index: bytes of the index; None if there is none.
        tar_bytes: size of the tar; None if there is none.
        candidates_bytes: size of the file of candidates; None if there is none. Shards of version 1 have none.
        fingerprint: fingerprint of the job.

    """
    if index is None or tar_bytes is None:
        return None
    try:
        table = table_of(index, ["status", "boxes", "width", "height"])
    except (pa.ArrowException, OSError, KeyError):
        return None
    metadata = metadata_of(index)
    if metadata.get("fingerprint") != fingerprint or metadata.get("tar_bytes") != str(tar_bytes):
        return None
    beside = None
    if metadata.get("format") != FORMAT_1:
        if metadata.get("candidates_bytes") != str(candidates_bytes):
            return None
        beside = FileFacts(bytes=int(metadata["candidates_bytes"]), sha256=metadata["candidates_sha256"])
    totals = Counter(table.column("status").to_pylist())
    boxes = int(pc.sum(pc.list_value_length(table.column("boxes"))).as_py() or 0)
    pixels = None if beside is None else pixels_of(table)
    tar = FileFacts(bytes=tar_bytes, sha256=metadata["tar_sha256"])
    return _entry(name, index, tar, beside, totals=totals, boxes=boxes, pixels=pixels)


def pixels_of(table: pa.Table) -> int:
    """Return the sum of width times height of the samples of an index."""
    rows = table.filter(pc.is_in(table.column("status"), HELD_VALUES))
    width, height = (np.asarray(rows.column(name).to_numpy(), np.int64) for name in ("width", "height"))
    return int((width * height).sum())


def _entry(
    name: str,
    index: bytes,
    tar: FileFacts,
    candidates: FileFacts | None,
    *,
    totals: Counter[str],
    boxes: int,
    pixels: int | None,
) -> ShardEntry:
    """Return the manifest entry of a shard: sizes and hashes of its files, and the number of images by status."""
    return ShardEntry(
        name=name,
        images=totals.total(),
        samples=sum(totals[status] for status in HELD),
        boxes=boxes,
        pixels=pixels,
        bytes=tar.bytes,
        sha256=tar.sha256,
        index=FileFacts(bytes=len(index), sha256=hashlib.sha256(index).hexdigest()),
        candidates=candidates,
        totals=dict(sorted(totals.items())),
    )


def _add_sample(tar: tarfile.TarFile, file: _Hashed, sample: StoredImage) -> int:
    """Append image and JSON to the tar, and return the offset of the image's first byte."""
    for suffix, data in ((sample.suffix, sample.data), ("json", sample.as_json())):
        member = tarfile.TarInfo(f"{sample.key}.{suffix}")
        member.size = len(data)
        member.mode = 0o644  # with TarInfo's owner 0 and mtime 0: the same bytes from anyone at any time
        if suffix != "json":
            offset = file.tell() + _BLOCK
        tar.addfile(member, io.BytesIO(data))
    return offset


def _column(name: str, values: list[Any]) -> pa.Array:
    if SCHEMA_1.field(name).type != BOXES:
        return pa.array(values, SCHEMA_1.field(name).type)
    counts = [0 if boxes is None else len(boxes) for boxes in values]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    filled = [boxes for boxes in values if boxes is not None and len(boxes)]
    flat = np.concatenate(filled).astype(np.int16).ravel() if filled else np.empty(0, np.int16)
    return pa.ListArray.from_arrays(
        starts, pa.FixedSizeListArray.from_arrays(pa.array(flat), 4), type=BOXES, mask=pa.array([b is None for b in values])
    )
