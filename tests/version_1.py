"""A folder of shards as version 1 laid it out: the bytes that the last release of that version wrote."""

import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq
from shard_rows import indexes, table_with_candidates

ROWS_A_GROUP = 1024


def to_version_1(folder):
    """Turn a folder of version 2, finished or not, into one of version 1, in its place."""
    folder = Path(folder)
    entries = {}
    for path in indexes(folder):
        table = table_with_candidates(path)
        said = {k.decode(): v.decode() for k, v in pq.read_metadata(path).metadata.items()}
        facts = {"format": "univip-stream/1", **{name: said[name] for name in ("fingerprint", "tar_bytes", "tar_sha256")}}
        with pq.ParquetWriter(path, table.schema.remove_metadata(), compression="zstd", store_schema=False) as writer:
            for first in range(0, len(table) + 1, ROWS_A_GROUP):
                writer.write_table(table.slice(first, ROWS_A_GROUP).replace_schema_metadata())
            writer.add_key_value_metadata(facts)
        path.with_suffix(".candidates.parquet").unlink()
        data = path.read_bytes()
        entries[path.with_suffix(".tar").name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest = folder / "manifest.json"
    if manifest.exists():
        said = json.loads(manifest.read_text())
        said["format"] = "univip-stream/1"
        for entry in said["shards"]:
            del entry["candidates"], entry["pixels"]
            entry["index"] = entries[entry["name"]]
        manifest.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n")
    return folder
