"""What lies in a folder of shards, read with pyarrow alone: for tests to compare with."""

from pathlib import Path

import pyarrow.parquet as pq


def indexes(folder):
    """The files of the index, in order."""
    found = (path for path in sorted(Path(folder).glob("*.parquet")) if path.with_suffix(".tar").name.count(".") == 1)
    return [path for path in found if not path.name.startswith("manifest-")]


def table_with_candidates(path):
    """The index `path` with the candidates of the file beside it as its last column."""
    path = Path(path)
    candidates = pq.read_table(path.with_name(path.name.removesuffix(".parquet") + ".candidates.parquet"))
    table = pq.read_table(path)
    assert candidates.column("key").equals(table.column("key"))
    return table.append_column("candidates", candidates.column("candidates"))


def rows_of(path):
    """The rows of one index, with their candidates."""
    return table_with_candidates(path).to_pylist()


def all_rows(folder):
    """The rows of all indexes of a folder, in order, with their candidates."""
    return [row for path in indexes(folder) for row in rows_of(path)]
