"""Pairs of similar regions in different images, which `univip-stream retrieve` writes and ORL trains on.

The file is described in shards/README.md: one row per image and neighbour, with `sample`, `other` and `pairs`, and the fingerprint
of the shards in its metadata. Samples are named by their number, because keys may repeat if several folders are joined. Boxes are
x, y, w, h in pixels.

Letters: N samples, R rows, P pairs.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from univip_stream.boxes import nearby_box
from univip_stream.errors import InputError, why
from univip_stream.files import sha256_of
from univip_stream.shards import ShardIndex

_SHARDS = b"univip-stream.shards"
_COLUMNS = {"sample": pa.int32(), "other": pa.int32(), "pairs": pa.list_(pa.list_(pa.int16(), 8))}


def regions_of(index: ShardIndex, sample: int) -> np.ndarray:
    """Return the boxes of a sample, int32, at least 1 x 4; the whole image if it has none."""
    boxes = index.boxes_of(sample)
    return boxes if len(boxes) else np.array([[0, 0, index.width[sample], index.height[sample]]], np.int32)


def pairs_table(index: ShardIndex, rows: list[tuple[int, int, np.ndarray]], facts: Mapping[str, str]) -> pa.Table:
    """Return rows of a file of pairs as a table.

    Args:
        index: index of the shards.
        rows: (sample, the other sample, P x 8: the boxes in the one and in the other).
        facts: further metadata.

    """
    metadata = {_SHARDS: index.fingerprint.encode(), **{name.encode(): value.encode() for name, value in facts.items()}}
    return pa.Table.from_arrays(
        [
            pa.array([sample for sample, _, _ in rows], pa.int32()),
            pa.array([other for _, other, _ in rows], pa.int32()),
            pa.array([pairs.tolist() for _, _, pairs in rows], _COLUMNS["pairs"]),
        ],
        schema=pa.schema(_COLUMNS, metadata=metadata),
    )


class Pairs:
    """The pairs of an index's samples, in memory: 16 bytes per pair.

    Raises:
        InputError: the file does not exist, is of other shards, or was damaged.

    """

    def __init__(self, path: str | Path, index: ShardIndex):
        table = _read(path, index)
        self.fingerprint = sha256_of(Path(path))
        """SHA-256 of the file."""
        self.index = index
        own, self._other = (_sample_numbers(table.column(name), index, path) for name in ("sample", "other"))
        if len(missing := np.setdiff1d(np.arange(len(index)), own)):
            raise InputError(f"{path} has no row for {len(missing)} samples, such as {index.text('key', int(missing[0]))}")
        self._rows = np.argsort(own, kind="stable")
        self._start = np.searchsorted(own[self._rows], np.arange(len(index) + 1))
        pairs = table.column("pairs").combine_chunks()
        self._first = np.concatenate([[0], np.cumsum(pc.list_value_length(pairs).to_numpy())])
        self._boxes = pairs.flatten().flatten().to_numpy().reshape(-1, 2, 4)
        if (empty := np.flatnonzero(np.diff(self._first) == 0)).size:
            raise InputError(f"{path} has rows without a pair, such as row {empty[0]}; expected at least one in each")
        for side, samples in enumerate((own, self._other)):
            x, y, w, h = self._boxes[:, side].astype(np.int32).T
            of_pair = np.repeat(samples, np.diff(self._first))
            bad = (x < 0) | (y < 0) | (w < 1) | (h < 1) | (x + w > index.width[of_pair]) | (y + h > index.height[of_pair])
            if bad.any():
                key = index.text("key", int(of_pair[bad.argmax()]))
                raise InputError(f"{path} has {bad.sum()} boxes outside their images, the first in sample {key}")

    def draw(self, sample: int, rng: np.random.Generator) -> tuple[int, np.ndarray]:
        """Draw the regions that ORL uses beside two views of an image (Jiahao000/ORL @ 2ad64f7, `COCOORLJson`, `ORLDataset`).

        Returns:
            (one of the sample's neighbours; int32 4 x 4: a region of the sample at random, one near it (`boxes.nearby_box`),
            and one of the pairs at random: a region of the sample, and its match in the neighbour).

        """
        regions = regions_of(self.index, sample)
        region = regions[rng.integers(len(regions))]
        near = nearby_box(region, int(self.index.width[sample]), int(self.index.height[sample]), rng)
        row = self._rows[rng.integers(self._start[sample], self._start[sample + 1])]
        pair = self._boxes[rng.integers(self._first[row], self._first[row + 1])]
        return int(self._other[row]), np.stack([region, near, *pair.astype(np.int32)])


def _read(path: str | Path, index: ShardIndex) -> pa.Table:
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:  # Arrow's error only gives the name
        raise InputError(f"{path}: there is no such file of pairs; `univip-stream retrieve` makes one") from error
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"{path} cannot be read as pairs of regions ({why(error)}); `univip-stream retrieve` makes them"
        ) from error
    if (table.schema.metadata or {}).get(_SHARDS, b"").decode(errors="replace") != index.fingerprint:
        raise InputError(
            f"{path} holds no pairs of these shards but of others; `univip-stream retrieve` makes them for these"
        )
    try:
        table = table.select(list(_COLUMNS)).cast(pa.schema(_COLUMNS))
    except (KeyError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path} is not a file of pairs ({why(error)}); expected the columns of shards/README.md") from error
    flat = table.column("pairs").combine_chunks().flatten()
    if any(table.column(name).null_count for name in _COLUMNS) or flat.null_count or flat.flatten().null_count:
        raise InputError(f"{path} has rows that lack something; expected sample, other and pairs in each")
    return table


def _sample_numbers(column: pa.ChunkedArray, index: ShardIndex, path: str | Path) -> np.ndarray:
    """Return sample numbers as int64, checked against the index."""
    found: np.ndarray = column.to_numpy().astype(np.int64)
    wrong = (found < 0) | (found >= len(index))
    if wrong.any():
        raise InputError(
            f"{path} names {wrong.sum()} samples of {len(index)} that the shards lack, such as {found[wrong.argmax()]}"
        )
    return found
