"""Read names, sizes, boxes and candidates from a folder of shards, a few hundred images at a time."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from univip_stream import storage
from univip_stream.boxes import to_stored
from univip_stream.errors import InputError, why
from univip_stream.parquet import batches_of
from univip_stream.shards.candidates import candidates_beside, rows_with_candidates
from univip_stream.shards.entry import ShardEntry
from univip_stream.shards.format import HELD, as_index, index_name
from univip_stream.shards.manifest import read_manifest
from univip_stream.sources.names import ByName, path_below

_FACTS = ["source", "label", "image_id", "width", "height", "status", "reason", "converted"]
_ROWS = 256
"""Images in memory at a time; each can have thousands of candidates."""
_TURNED = re.compile(r"EXIF orientation ([2-8])")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """One image of the shards, without its boxes."""

    source: str
    """Name of the image."""
    label: str | None
    image_id: int | None
    """COCO's id, from the shards or the given annotations."""
    width: int
    """Width in pixels of the upright image; 0 if it is not a sample."""
    height: int
    held: bool
    """Whether it is a sample, that is, could be read."""
    reason: str | None
    """Reason why it is not a sample."""
    orientation: int
    """EXIF orientation of the source's file, 1 to 8; 1 if `converted` gives another reason, which hides it."""

    def size(self, upright: bool) -> tuple[int, int]:
        """Return width and height, of the upright image or of the stored one."""
        turned = not upright and self.orientation >= 5
        return (self.height, self.width) if turned else (self.width, self.height)

    def framed(self, boxes: np.ndarray, upright: bool) -> np.ndarray:
        """Return boxes of the upright image in that frame, or moved to the stored pixels; int64 N x 4 x, y, w, h."""
        array = np.asarray(boxes, np.int64).reshape(-1, 4)
        if upright or self.orientation == 1:
            return array
        size = (self.width, self.height)
        low, high = to_stored(array[:, :2], array[:, :2] + array[:, 2:], size, self.orientation)
        return np.concatenate([low, high - low], axis=1)


class Shards:
    """A finished folder of shards, local or remote."""

    def __init__(self, folder: str | Path, ids: Mapping[str, int | None] | None = None):
        """Read the manifest of a folder.

        Args:
            folder: folder of shards.
            ids: COCO's image ids by path below the source, for images whose shards have none.

        Raises:
            InputError: the folder is not finished, or was mined without proposals.

        """
        text = str(folder).rstrip("/")
        if text.endswith(".tar") or (not storage.is_remote(text) and not Path(text).is_dir()):
            raise InputError(f"{folder} is not a folder; expected a folder of finished shards, with manifest.json")
        self.folder = text
        self.manifest = read_manifest(text)
        self.parameters = self.manifest.parameters
        self.ids = ByName(ids or {})
        sources = self.parameters.get("sources")
        if not isinstance(sources, list) or not all(isinstance(source, str) for source in sources):
            raise InputError(f"{folder}: its manifest names no sources; it was changed or damaged: mine again")
        self.sources: list[str] = sources
        if self.parameters.get("proposals") == "none":
            raise InputError(f"{folder} was mined with --proposals none, so it holds no boxes; mine it with proposals")

    @property
    def images(self) -> int:
        """Number of images."""
        return self.manifest.totals["images"]

    @property
    def classes(self) -> list[str]:
        """Sorted labels."""
        return list(self.manifest.classes or [])

    def facts(self) -> Iterator[Fact]:
        """Yield every image, in source order."""
        for entry in self.manifest.shards:
            for batch in self._batches(entry, _FACTS):
                yield from map(self._fact, batch.to_pylist())

    def rows(self, column: str) -> Iterator[tuple[Fact, np.ndarray]]:
        """Yield every sample with its `boxes` or `candidates`, int64 N x 4 x, y, w, h of the upright image."""
        for entry in self.manifest.shards:
            for batch in self._batches(entry, [*_FACTS, column]):
                facts = map(self._fact, batch.drop_columns([column]).to_pylist())
                lists = batch.column(column)
                numbers = lists.flatten().flatten().to_numpy(zero_copy_only=False).astype(np.int64).reshape(-1, 4)
                ends = np.cumsum(lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False))
                for fact, boxes in zip(facts, np.split(numbers, ends[:-1]), strict=True):
                    if fact.held:
                        yield fact, boxes

    def _batches(self, entry: ShardEntry, columns: list[str]) -> Iterator[pa.RecordBatch]:
        path = storage.join(self.folder, index_name(entry.name))
        try:
            with storage.opened(path) as opened:
                # All files opened here have `readinto`, which the type BinaryIO lacks.
                found = hashlib.file_digest(opened, "sha256").hexdigest()  # type: ignore[arg-type]
                if found != entry.index.sha256:
                    raise InputError(f"{path} is not the index that its manifest names; `univip-stream verify` says more")
                opened.seek(0)
                yield from self._rows_of(entry, opened.read(), columns)
        except FileNotFoundError as error:
            raise InputError(f"{path} is missing, and it holds the boxes; `univip-stream verify` says more") from error
        except (pa.ArrowException, KeyError) as error:
            raise InputError(f"{path} cannot be read ({why(error)}); mine this shard again") from error

    def _rows_of(self, entry: ShardEntry, index: bytes, columns: list[str]) -> Iterator[pa.RecordBatch]:
        if "candidates" not in columns:
            for batch in batches_of(index, _ROWS, columns):
                yield as_index(batch, columns)
            return
        beside = candidates_beside(index, storage.join(self.folder, entry.name), storage.read)
        yield from rows_with_candidates(index, beside, _ROWS, [name for name in columns if name != "candidates"])

    def _fact(self, row: dict[str, Any]) -> Fact:
        turned = _TURNED.fullmatch(row["converted"] or "")
        number = row.get("image_id")
        return Fact(
            source=row["source"],
            label=row["label"],
            image_id=self.ids.get(path_below(row["source"], self.sources)) if number is None else number,
            width=row["width"] or 0,
            height=row["height"] or 0,
            held=row["status"] in HELD,
            reason=row["reason"],
            orientation=int(turned[1]) if turned else 1,
        )
