"""Parquet that lies in memory, read by this thread alone.

`pq.read_table` reads in threads of Arrow's, which let go of what they read from when they like: also after the call has returned,
while Python ends. If that is memory of Python's (a BytesIO, bytes in a BufferReader), the process is aborted with all work done:
status 134. A path is Arrow's own to open and close, and may be given to `pq.read_table`.
"""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq


def table_of(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """A file of Parquet as a table.

    Args:
        data: the whole file.
        columns: which to read, in this order; None: all.

    Raises:
        pa.ArrowException: no Parquet.
        KeyError: a column that it lacks.

    """
    with _opened(data, columns) as file:
        table = file.read(columns=None if columns is None else list(columns), use_threads=False)
    return table if columns is None else table.select(list(columns))


def batches_of(data: bytes, size: int = 65536, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The same in batches of at most `size` rows; of the columns, those that it has."""
    with _opened(data, None) as file:
        there = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
        yield from file.iter_batches(size, columns=there, use_threads=False)


def _opened(data: bytes, columns: Sequence[str] | None) -> pq.ParquetFile:
    file = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False)
    if missing := sorted(set(columns or ()) - set(file.schema_arrow.names)):
        raise KeyError(f"no column {', '.join(missing)}")
    return file
