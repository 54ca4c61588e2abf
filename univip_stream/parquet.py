"""Read Parquet from memory, in this thread alone.

`pq.read_table` reads in Arrow's threads, which may release their input late: even after the call has returned, while Python
ends. If the input is Python's memory (a BytesIO, bytes in a BufferReader), the process is then aborted with status 134, after
all work is done. A path is opened and closed by Arrow itself, and is safe to give to `pq.read_table`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_SCHEMA = b"ARROW:schema"
"""Arrow's own copy of the schema, which some writers add."""


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


def table_in_pieces(data: bytes, columns: Sequence[str], size: int = 1024) -> pa.Table:
    """Read a Parquet file as `table_of` does, `size` rows at a time: decoding them takes a quarter of the memory."""
    with _opened(data, columns) as file:
        read = file.iter_batches(size, columns=list(columns), use_threads=False)
        schema = pa.schema([file.schema_arrow.field(name) for name in columns], file.schema_arrow.metadata)
        batches = [pa.record_batch([batch.column(name) for name in columns], schema=schema) for batch in read]
        return pa.Table.from_batches(batches, schema).combine_chunks()


@contextmanager
def memory_given_back() -> Iterator[None]:
    """While inside: what Arrow takes beyond its results goes back to the system.

    Otherwise Arrow's own pool keeps it for the next time, in each thread: as much again as the results, or twice.
    """
    before, pool = pa.default_memory_pool(), pa.system_memory_pool()
    pa.set_memory_pool(pool)
    try:
        yield
    finally:
        pa.set_memory_pool(before)
        pool.release_unused()


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array."""
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.nulls(0, column.type)


def whole_numbers(array: pa.Array, null: int = 0) -> np.ndarray:
    """Return whole numbers as a numpy array, with `null` in place of nulls.

    They are read from the bytes, because Arrow's `to_numpy` imports pandas if that is installed, which costs every process
    that reads an index half a second and 40 MB.
    """
    kind, (valid, values) = np.dtype(str(array.type)), array.buffers()
    if values is None:
        return np.full(len(array), null, kind)
    here = slice(array.offset, array.offset + len(array))
    found = np.frombuffer(values, kind)[here]
    if not array.null_count or valid is None:
        return found
    return np.where(np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")[here], found, kind.type(null))


def metadata_of(data: bytes) -> dict[str, str]:
    """Return the metadata of a Parquet file.

    Raises:
        pa.ArrowException: the bytes are not Parquet.

    """
    with _opened(data, None) as file:
        found = file.schema_arrow.metadata or {}
    return {key.decode(errors="replace"): value.decode(errors="replace") for key, value in found.items() if key != _SCHEMA}


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
