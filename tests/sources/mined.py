"""Mine a source for real and read the shards back: what the tests of each kind of source compare with."""

from shard_rows import indexes, rows_of

from univip_stream.mining import MiningConfig, mine
from univip_stream.shards.verify import verify_folder


def mined(out, *sources, **changes):
    """Rows of the index in order, each with its members' bytes in the tar as `data` and `json`; and the report."""
    settings = {"proposals": "none", "inline": True, "num_shards": 2, "max_failures": "100%"} | changes
    report = mine(MiningConfig(sources=sources, out=out, **settings))
    assert verify_folder(out) == []
    rows = []
    for path in indexes(out):
        tar = path.with_suffix(".tar").read_bytes()
        for row in rows_of(path):
            row |= {"data": None, "json": None}
            if row["offset"] is not None:
                end = row["offset"] + row["size"]
                row["data"] = tar[row["offset"] : end]
                row["json"] = tar[-(-end // 512) * 512 + 512 :].split(b"\0", 1)[0]  # the member after it
            rows.append(row)
    assert len(rows) == report.manifest.totals["images"]
    return rows, report


def column(rows, *names):
    """Tuples of these fields of every row."""
    return [tuple(row[name] for name in names) for row in rows]
