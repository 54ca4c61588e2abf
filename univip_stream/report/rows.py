"""What the indexes say beside where the samples lie: what became of every image, and why. No pixels are read."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from univip_stream.errors import InputError, why
from univip_stream.parquet import table_of
from univip_stream.shards import ShardIndex
from univip_stream.shards.cache import Cache, Remote
from univip_stream.shards.entry import ShardEntry
from univip_stream.shards.foreign import foreign_index
from univip_stream.shards.format import HELD_VALUES, STATUSES, as_index, index_name
from univip_stream.shards.manifest import has_manifest, read_manifest
from univip_stream.storage import is_remote, name_of, parent

_COLUMNS = ["key", "source", "label", "width", "height", "status", "reason", "converted"]
_AT_ONCE = 8
"""Indexes that are read at a time."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An image that is no sample, and why."""

    shard: str
    """File name of the tar."""
    key: str
    """In its shard."""
    source: str
    """Its name in the source."""
    status: str
    """`unreadable`, `too_small`, `too_large` or `opted_out`."""
    reason: str
    """Why, in words."""


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """What became of the images of some shards."""

    by_status: dict[str, int]
    """Images by status, failures too; only those that occur, in the format's order."""
    failures: list[Failure]
    """The first `most` of them."""
    reasons: dict[int, str]
    """Why a sample has no boxes, by its number in the index; only where its row says so."""
    converted: dict[int, str]
    """Why a sample's stored bytes are not the source's, by its number."""

    @property
    def images(self) -> int:
        """All of them."""
        return sum(self.by_status.values())


def read_outcomes(index: ShardIndex, most: int) -> Outcomes:
    """Read status and reason of every row of every index; `most` failures are kept with their names.

    Raises:
        InputError: an index that cannot be read.

    """

    def load(number: int) -> pa.Table:
        shard = index.shards[number]
        if index.foreign[number]:
            return foreign_index(shard, index.cache).table.select(_COLUMNS)
        path = index_name(shard)
        try:
            with _index_file(path, name_of(shard), entries.get(parent(shard)), index.cache) as file:
                return as_index(table_of(file.read(), _COLUMNS), _COLUMNS)
        except (pa.ArrowException, KeyError) as error:
            raise InputError(f"{path}: not an index that can be read ({why(error)}); mine this shard again") from error

    remote = dict.fromkeys(map(parent, filter(is_remote, index.shards)))
    entries = {
        folder: {entry.name: entry for entry in read_manifest(folder).shards}
        for folder in remote if has_manifest(folder)
    }  # fmt: skip
    statuses: Counter[str] = Counter()
    failures: list[Failure] = []
    reasons: dict[int, str] = {}
    converted: dict[int, str] = {}
    first = 0
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for number, table in enumerate(pool.map(load, range(len(index.shards)))):
            statuses.update(table.column("status").to_pylist())
            held = pc.is_in(table.column("status"), HELD_VALUES)
            samples, others = table.filter(held), table.filter(pc.invert(held))
            failures += [_failure(index.shards[number], row) for row in others.slice(0, most - len(failures)).to_pylist()]
            for name, found in (("reason", reasons), ("converted", converted)):
                column = samples.column(name)
                places = pc.indices_nonzero(pc.is_valid(column)).to_pylist()
                found.update(zip([first + place for place in places], column.drop_null().to_pylist(), strict=True))
            first += samples.num_rows
    known = {status: statuses[status] for status in (*STATUSES, *sorted(statuses)) if statuses[status]}
    return Outcomes(by_status=known, failures=failures, reasons=reasons, converted=converted)


def mining_facts(index: ShardIndex) -> list[tuple[str, str]]:
    """(what, value) of how the shards were mined, from their manifests; nothing for foreign ones."""
    own = [parent(shard) for shard, foreign in zip(index.shards, index.foreign, strict=True) if not foreign]
    facts: list[tuple[str, str]] = []
    for folder in dict.fromkeys(own):
        if not has_manifest(folder):
            continue
        manifest = read_manifest(folder)
        said = manifest.parameters
        version = manifest.created_by.get("univip-stream")
        limit = said.get("max_boxes")
        facts += [
            ("Folder", folder),
            ("Sources", ", ".join(map(str, said.get("sources") or ["?"]))),
            ("Proposals", f"{said.get('proposals', '?')} (version {said.get('proposals_version', '?')})"),
            ("Filter", f"shortest side {said.get('min_scale', '?')} px, aspect up to {said.get('max_aspect', '?')}, "
             f"IoU up to {said.get('max_iou', '?')}, {'any number of' if limit is None else f'at most {limit}'} boxes"),
            ("Seed of mining", str(said.get("seed", "?"))),
            ("Mined by", f"univip-stream {version or '?'}"),
        ]  # fmt: skip
    foreign = [name_of(shard) for shard, other in zip(index.shards, index.foreign, strict=True) if other]
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        facts.append(("Of another program", ", ".join(foreign[:3]) + more))
    return facts


def _index_file(path: str, shard: str, entries: dict[str, ShardEntry] | None, cache: Cache) -> BinaryIO:
    """An index, from the cache where it is remote: it was fetched there when the shards were opened."""
    if entries is None:
        return open(path, "rb")
    expected = entries[shard].index
    remote = Remote(location=path, size=expected.bytes, sha256=expected.sha256)
    return os.fdopen(cache.open(remote), "rb")


def _failure(shard: str, row: dict[str, Any]) -> Failure:
    return Failure(
        shard=name_of(shard), key=str(row["key"]), source=str(row["source"]), status=str(row["status"]),
        reason=str(row["reason"] or "no reason given"),
    )  # fmt: skip
