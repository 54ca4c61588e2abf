"""Write one shard: tar and index, each whole or not there, the same bytes for the same samples."""

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

from univip_stream.files import written_atomically
from univip_stream.parquet import table_of
from univip_stream.shards.format import BOXES, FORMAT, HELD, SCHEMA, Sample, index_name

_BLOCK = 512
"""Bytes of a tar header and the unit its members are padded to."""
ROWS_A_GROUP = 1024
"""Rows an index group holds: small enough to read one shard's boxes without its neighbours'."""


class _Hashed:
    """A file that hashes what passes through; the tar is written front to back, never sought."""

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
    """Rows of the index that are not written yet."""

    def __init__(self) -> None:
        self.columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
        self.totals: Counter[str] = Counter()
        self.boxes = 0

    def __len__(self) -> int:
        return len(self.columns["key"])

    def add(self, sample: Sample, offset: int | None) -> None:
        held = offset is not None
        for name in SCHEMA.names:
            if name not in ("offset", "size", "boxes", "candidates"):
                self.columns[name].append(getattr(sample, name))
        self.columns["offset"].append(offset)
        self.columns["size"].append(len(sample.data) if held else None)
        self.columns["boxes"].append(sample.boxes if held else None)
        self.columns["candidates"].append(sample.candidates if held else None)
        self.totals[sample.status] += 1
        self.boxes += len(sample.boxes) if held and sample.boxes is not None else 0

    def taken(self) -> pa.Table:
        table = pa.table([_column(name, values) for name, values in self.columns.items()], schema=SCHEMA)
        self.columns = {name: [] for name in SCHEMA.names}
        return table


def write_shard(samples: Iterable[Sample], tar_path: Path, fingerprint: str) -> dict[str, Any]:
    """Write `NNN.tar` and then `NNN.parquet` beside it, and return the shard's entry for the manifest.

    Samples are taken one after the other, so memory holds one image and the rows of one group. The index is the shard's
    completion mark: it appears second, and carries the fingerprint of the job and the tar's size and hash.

    Args:
        samples: in key order.
        tar_path: where; existing files are replaced whole.
        fingerprint: of the parameters that made the samples.

    """
    index_path = Path(index_name(str(tar_path)))
    rows = _Rows()
    with written_atomically(index_path) as index_file, _index_writer(index_file) as index:
        with written_atomically(tar_path) as file:
            hashed = _Hashed(file)
            with tarfile.open(fileobj=hashed, mode="w", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
                for sample in samples:
                    rows.add(sample, _add_sample(tar, hashed, sample) if sample.status in HELD else None)
                    if len(rows) == ROWS_A_GROUP:
                        index.write_table(rows.taken())
        index.write_table(rows.taken())
        digest = hashed.sha256.hexdigest()
        facts = {"format": FORMAT, "fingerprint": fingerprint, "tar_bytes": str(hashed.size), "tar_sha256": digest}
        index.add_key_value_metadata(facts)
    return _entry(tar_path.name, rows.totals, rows.boxes, index_path.read_bytes(), {"bytes": hashed.size, "sha256": digest})


def _index_writer(file: BinaryIO) -> pq.ParquetWriter:
    # With Arrow's own copy of the schema in the file, pyarrow does not give back facts that were added after the rows.
    return pq.ParquetWriter(file, SCHEMA, compression="zstd", store_schema=False)


def finished_shard(name: str, index: bytes | None, tar_bytes: int | None, fingerprint: str) -> dict[str, Any] | None:
    """The manifest entry of a shard that an earlier run finished with these parameters; None if it did not.

    Hashes of tars are not taken again here: `verify` does that, and a rename that reached the disk holds what was synced
    before.

    Args:
        name: of the tar.
        index: bytes of the file beside it, None if there is none.
        tar_bytes: size of the tar, None if there is none.
        fingerprint: of the job.

    """
    if index is None or tar_bytes is None:
        return None
    try:
        table = table_of(index, ["status", "boxes"])
    except (pa.ArrowException, OSError, KeyError):
        return None
    metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items() if k != b"ARROW:schema"}
    if metadata.get("fingerprint") != fingerprint or metadata.get("tar_bytes") != str(tar_bytes):
        return None
    totals = Counter(table.column("status").to_pylist())
    boxes = int(pc.sum(pc.list_value_length(table.column("boxes"))).as_py() or 0)
    return _entry(name, totals, boxes, index, {"bytes": tar_bytes, "sha256": metadata["tar_sha256"]})


def _entry(name: str, totals: Counter[str], boxes: int, index: bytes, tar_entry: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of a shard: its files' bytes and hashes, and the images by what became of them."""
    return {
        "name": name,
        "images": totals.total(),
        "samples": sum(totals[status] for status in HELD),
        "boxes": boxes,
        **tar_entry,
        "index": {"bytes": len(index), "sha256": hashlib.sha256(index).hexdigest()},
        "totals": dict(sorted(totals.items())),
    }


def _add_sample(tar: tarfile.TarFile, file: _Hashed, sample: Sample) -> int:
    """Append image and JSON side by side; return the offset of the image's first byte."""
    for suffix, data in ((sample.suffix, sample.data), ("json", sample.as_json())):
        member = tarfile.TarInfo(f"{sample.key}.{suffix}")
        member.size = len(data)
        member.mode = 0o644  # with TarInfo's owner 0 and mtime 0: the same bytes from anyone at any time
        if suffix != "json":
            offset = file.tell() + _BLOCK
        tar.addfile(member, io.BytesIO(data))
    return offset


def _column(name: str, values: list[Any]) -> pa.Array:
    if SCHEMA.field(name).type != BOXES:
        return pa.array(values, SCHEMA.field(name).type)
    counts = [0 if boxes is None else len(boxes) for boxes in values]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    filled = [boxes for boxes in values if boxes is not None and len(boxes)]
    flat = np.concatenate(filled).astype(np.int16).ravel() if filled else np.empty(0, np.int16)
    return pa.ListArray.from_arrays(
        starts, pa.FixedSizeListArray.from_arrays(pa.array(flat), 4), type=BOXES, mask=pa.array([b is None for b in values])
    )
