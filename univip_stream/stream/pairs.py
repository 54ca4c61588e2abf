"""Pairs of regions in different images that look alike: what `univip-stream retrieve` writes and ORL trains on.

One Parquet row an image and neighbour: `key` and `other`, keys of samples, and `pairs`, eight int32 a pair: x, y, w, h in the
image, then in the neighbour. The schema's metadata holds the fingerprint of the shards whose boxes they are.

Letters: N samples, R rows, P pairs.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from univip_stream.errors import InputError
from univip_stream.files import written_atomically
from univip_stream.shards import ShardIndex

_FINGERPRINT = b"univip-stream.shards"
_SCHEMA = {"key": pa.string(), "other": pa.string(), "pairs": pa.list_(pa.int32())}
_ROWS = 65536
"""Rows that are written at a time."""


def write_pairs(path: Path, index: ShardIndex, rows: Iterable[tuple[int, int, np.ndarray]]) -> None:
    """Write (sample, other sample, int32 P x 8) rows of an index, whole or not at all."""
    schema = pa.schema(_SCHEMA, metadata={_FINGERPRINT: index.fingerprint.encode()})
    with written_atomically(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for part in _parts(rows):
            columns = [
                pa.array([index.text("key", sample) for sample, _, _ in part], pa.string()),
                pa.array([index.text("key", other) for _, other, _ in part], pa.string()),
                pa.array([pairs.ravel().astype(np.int32) for _, _, pairs in part], pa.list_(pa.int32())),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


class Pairs:
    """The pairs of an index's samples, in memory.

    Raises:
        InputError: no such file, one of other shards, or one that lacks a sample.

    """

    def __init__(self, path: str | Path, index: ShardIndex):
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(
                f"{path} cannot be read as pairs of regions: {error}; `univip-stream retrieve` makes it"
            ) from error
        if not set(_SCHEMA) <= set(table.column_names):
            raise InputError(f"{path} has the columns {', '.join(table.column_names)}; expected {', '.join(_SCHEMA)}")
        if (table.schema.metadata or {}).get(_FINGERPRINT, b"").decode() != index.fingerprint:
            raise InputError(f"{path} holds pairs of other shards than these; `univip-stream retrieve` makes them for these")
        place = {key: sample for sample, key in enumerate(index.key.to_pylist())}
        own = np.array([place[key] for key in table.column("key").to_pylist()], np.int64)
        order = np.argsort(own, kind="stable")
        others = np.array([place[key] for key in table.column("other").to_pylist()], np.int64)
        pairs = table.column("pairs").combine_chunks()
        self._start = np.searchsorted(own[order], np.arange(len(index) + 1))
        if (missing := np.flatnonzero(np.diff(self._start) == 0)).size:
            raise InputError(f"{path} has no pair for {missing.size} samples, such as {index.text('key', int(missing[0]))}")
        self._other, self._row = others[order], order
        self._first = np.asarray(pairs.offsets) // 8
        self._boxes = np.asarray(pairs.values, np.int32).reshape(-1, 8)

    def draw(self, sample: int, rng: np.random.Generator) -> tuple[int, np.ndarray, np.ndarray]:
        """(a neighbour at random, then of its pairs one at random: the box in the sample, the box in the neighbour)."""
        place = int(rng.integers(self._start[sample], self._start[sample + 1]))
        row = int(self._row[place])
        pair = self._boxes[rng.integers(self._first[row], self._first[row + 1])]
        return int(self._other[place]), pair[:4], pair[4:]


def _parts(rows: Iterable[tuple[int, int, np.ndarray]]) -> Iterator[list[tuple[int, int, np.ndarray]]]:
    part = []
    for row in rows:
        part.append(row)
        if len(part) == _ROWS:
            yield part
            part = []
    if part:
        yield part
