"""Mine a source for real and read the shards back: what the tests of each kind of source compare with."""

from pathlib import Path

import pyarrow.parquet as pq

from univip_stream.mining import MiningConfig, mine
from univip_stream.shards.verify import verify_folder


def mined(out, *sources, **changes):
    """Rows of the index in order, each with its image's bytes in the tar as `data`; and the report."""
    settings = {"proposals": "none", "inline": True, "num_shards": 2, "max_failures": "100%"} | changes
    report = mine(MiningConfig(sources=sources, out=out, **settings))
    assert verify_folder(out) == []
    rows = []
    for path in sorted(Path(out).glob("*.parquet")):
        tar = path.with_suffix(".tar").read_bytes()
        for row in pq.read_table(path).to_pylist():
            held = row["offset"] is not None
            rows.append({**row, "data": tar[row["offset"] : row["offset"] + row["size"]] if held else None})
    assert len(rows) == report.manifest["totals"]["images"]
    return rows, report


def column(rows, *names):
    """Tuples of these fields of every row."""
    return [tuple(row[name] for name in names) for row in rows]
