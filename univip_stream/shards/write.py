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
import pyarrow.parquet as pq

from univip_stream.files import sha256_of, written_atomically
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


def write_shard(samples: Iterable[Sample], tar_path: Path, fingerprint: str) -> dict[str, Any]:
    """Write `NNN.tar` and then `NNN.parquet` beside it, and return the shard's entry for the manifest.

    Samples are taken one after the other, so memory holds one image. The index is the shard's completion mark: it comes
    second, and carries the fingerprint of the job and the tar's size and hash.

    Args:
        samples: in key order.
        tar_path: where; existing files are replaced whole.
        fingerprint: of the parameters that made the samples.

    """
    rows: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    with written_atomically(tar_path) as file:
        hashed = _Hashed(file)
        with tarfile.open(fileobj=hashed, mode="w", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
            for sample in samples:
                offset = _add_sample(tar, hashed, sample) if sample.status in HELD else None
                _add_row(rows, sample, offset)

    table = pa.table([_column(name, values) for name, values in rows.items()], schema=SCHEMA)
    digest = hashed.sha256.hexdigest()
    facts = {"format": FORMAT, "fingerprint": fingerprint, "tar_bytes": str(hashed.size), "tar_sha256": digest}
    index_path = Path(index_name(str(tar_path)))
    with written_atomically(index_path) as file:
        pq.write_table(table.replace_schema_metadata(facts), file, compression="zstd", row_group_size=ROWS_A_GROUP)
    return shard_entry(tar_path, table, {"bytes": hashed.size, "sha256": digest})


def shard_entry(tar_path: Path, table: pa.Table, tar_entry: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of a shard: its files' bytes and hashes, and the images by what became of them."""
    totals = Counter(table.column("status").to_pylist())
    index_path = Path(index_name(str(tar_path)))
    return {
        "name": tar_path.name,
        "images": table.num_rows,
        "samples": sum(totals[status] for status in HELD),
        **tar_entry,
        "index": {"bytes": index_path.stat().st_size, "sha256": sha256_of(index_path)},
        "totals": dict(sorted(totals.items())),
    }


def finished_shard(tar_path: Path, fingerprint: str) -> dict[str, Any] | None:
    """The manifest entry of a shard that an earlier run finished with these parameters; None if there is none.

    Hashes are not taken again here: `verify` does that, and a rename that reached the disk holds what was synced before.
    """
    index_path = Path(index_name(str(tar_path)))
    if not index_path.exists() or not tar_path.exists():
        return None
    try:
        table = pq.read_table(index_path, columns=["status"])
    except (pa.ArrowInvalid, OSError):
        return None
    metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items() if k != b"ARROW:schema"}
    size = tar_path.stat().st_size
    if metadata.get("fingerprint") != fingerprint or metadata.get("tar_bytes") != str(size):
        return None
    return shard_entry(tar_path, table, {"bytes": size, "sha256": metadata["tar_sha256"]})


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


def _add_row(rows: dict[str, list[Any]], sample: Sample, offset: int | None) -> None:
    held = offset is not None
    for name in ("key", "source", "width", "height", "label", "status", "reason", "suffix", "sha256", "converted"):
        rows[name].append(getattr(sample, name))
    rows["offset"].append(offset)
    rows["size"].append(len(sample.data) if held else None)
    rows["boxes"].append(sample.boxes if held else None)
    rows["candidates"].append(sample.candidates if held else None)


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
