"""Read Parquet from memory, in this thread alone.

`pq.read_table` reads in Arrow's threads, which may release their input late: even after the call has returned, while Python ends.
If the input is Python's memory (a BytesIO, bytes in a BufferReader), the process is then aborted with status 134, after all work
is done. A path is opened and closed by Arrow itself, and is safe to give to `pq.read_table`.
"""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq


def table_of(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file as a table.

    Args:
        data: the whole file.
        columns: columns to read, in this order; None for all.

    Raises:
        pa.ArrowException: it is not Parquet.
        KeyError: it lacks a column.

    """
    with _opened(data, columns) as file:
        table = file.read(columns=None if columns is None else list(columns), use_threads=False)
    return table if columns is None else table.select(list(columns))


def batches_of(data: bytes, size: int = 65536, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Read a Parquet file in batches of at most `size` rows; columns that it lacks are ignored."""
    with _opened(data, None) as file:
        there = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
        yield from file.iter_batches(size, columns=there, use_threads=False)


def _opened(data: bytes, columns: Sequence[str] | None) -> pq.ParquetFile:
    file = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False)
    if missing := sorted(set(columns or ()) - set(file.schema_arrow.names)):
        raise KeyError(f"no column {', '.join(missing)}")
    return file
