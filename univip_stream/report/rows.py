"""Read the status of every image, and the reasons, from the indexes of shards. No pixels are read."""

import os
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from univip_stream.errors import InputError, why
from univip_stream.parquet import table_of
from univip_stream.shards import ShardSet
from univip_stream.shards.cache import Cache, Remote
from univip_stream.shards.entry import ShardEntry
from univip_stream.shards.foreign import foreign_index
from univip_stream.shards.format import HELD_VALUES, STATUSES, as_index, index_name
from univip_stream.shards.manifest import has_manifest, read_manifest
from univip_stream.storage import is_remote, name_of, parent

_COLUMNS = ["key", "source", "label", "width", "height", "status", "reason", "converted"]
_AT_ONCE = 8
"""Number of indexes read at a time."""


@dataclass(frozen=True, kw_only=True)
class FailedRow:
    """A row of an index for an image that is not a sample, with the reason."""

    shard: str
    """File name of the tar."""
    key: str
    """Key in its shard."""
    source: str
    """Name in the source."""
    status: str
    """`unreadable`, `too_small`, `too_large` or `opted_out`."""
    reason: str
    """The reason in words."""


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Status of the images of some shards, with reasons."""

    by_status: dict[str, int]
    """Number of images by status, including failures; only statuses that occur, in the format's order."""
    failures: list[FailedRow]
    """The first `most` failures."""
    reasons: dict[int, str]
    """The reason why a sample that is shown has no boxes, by its number, if its row gives one."""
    converted: dict[int, str]
    """The reason why the stored bytes of a sample that is shown differ from the source's, by its number."""

    @property
    def images(self) -> int:
        """Return the number of all images."""
        return sum(self.by_status.values())


def read_outcomes(index: ShardSet, most: int, shown: Collection[int]) -> Outcomes:
    """Read status and reason of every row of every index, a few indexes in memory at a time.

    Args:
        index: the shards.
        most: how many failures are kept with their names.
        shown: samples whose reasons are kept.

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
    failures: list[FailedRow] = []
    reasons: dict[int, str] = {}
    converted: dict[int, str] = {}
    first = 0
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for number, table in enumerate(_ahead(pool, load, len(index.shards))):
            statuses.update(table.column("status").to_pylist())
            held = pc.is_in(table.column("status"), HELD_VALUES)
            samples, others = table.filter(held), table.filter(pc.invert(held))
            failures += [_failed_row(index.shards[number], row) for row in others.slice(0, most - len(failures)).to_pylist()]
            for name, found in (("reason", reasons), ("converted", converted)):
                column = samples.column(name)
                places = [sample - first for sample in shown if first <= sample < first + samples.num_rows]
                found.update({first + at: text for at in places if (text := column[at].as_py()) is not None})
            first += samples.num_rows
    known = {status: statuses[status] for status in (*STATUSES, *sorted(statuses)) if statuses[status]}
    return Outcomes(by_status=known, failures=failures, reasons=reasons, converted=converted)


def _ahead(pool: ThreadPoolExecutor, load: Callable[[int], pa.Table], count: int) -> Iterator[pa.Table]:
    """Yield the results of `load` for 0, 1, ... in order, with few of them loaded ahead."""
    coming: deque[Future[pa.Table]] = deque()
    for number in range(count):
        coming.append(pool.submit(load, number))
        if len(coming) > _AT_ONCE:
            yield coming.popleft().result()
    while coming:
        yield coming.popleft().result()


def mining_facts(index: ShardSet) -> list[tuple[str, str]]:
    """Return (name, value) pairs that say how the shards were mined, from their manifests; none for foreign shards."""
    own = [parent(shard) for shard, foreign in zip(index.shards, index.foreign, strict=True) if not foreign]
    facts: list[tuple[str, str]] = []
    for folder in dict.fromkeys(own):
        if not has_manifest(folder):
            continue
        manifest = read_manifest(folder)
        parameters = manifest.parameters
        version = manifest.created_by.get("univip-stream")
        limit = parameters.get("max_boxes")
        facts += [
            ("Folder", folder),
            ("Sources", ", ".join(map(str, parameters.get("sources") or ["?"]))),
            ("Proposals", f"{parameters.get('proposals', '?')} (version {parameters.get('proposals_version', '?')})"),
            ("Filter", f"shortest side {parameters.get('min_scale', '?')} px, aspect up to {parameters.get('max_aspect', '?')}, "
             f"IoU up to {parameters.get('max_iou', '?')}, {'any number of' if limit is None else f'at most {limit}'} boxes"),
            *_ranked_by(parameters.get("ranked_by")),
            ("Seed of mining", str(parameters.get("seed", "?"))),
            ("Mined by", f"univip-stream {version or '?'}"),
        ]  # fmt: skip
    foreign = [name_of(shard) for shard, other in zip(index.shards, index.foreign, strict=True) if other]
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        facts.append(("Of another program", ", ".join(foreign[:3]) + more))
    return facts


def _ranked_by(rankings: Any) -> list[tuple[str, str]]:
    """Return the runs that `refilter --rank-by` ranked the candidates by, as a fact; nothing if there are none."""
    if not isinstance(rankings, list):
        return []
    named = [one for one in rankings if isinstance(one, dict)]
    return [
        ("Ranked by", ", then ".join(f"{one.get('run', '?')} ({str(one.get('weights_sha256', '?'))[:12]})" for one in named))
    ]


def _index_file(path: str, shard: str, entries: dict[str, ShardEntry] | None, cache: Cache) -> BinaryIO:
    """Open an index; a remote one is in the cache, since the shards were opened."""
    if entries is None:
        return open(path, "rb")
    expected = entries[shard].index
    remote = Remote(location=path, size=expected.bytes, sha256=expected.sha256)
    return os.fdopen(cache.open(remote), "rb")


def _failed_row(shard: str, row: dict[str, Any]) -> FailedRow:
    return FailedRow(
        shard=name_of(shard), key=str(row["key"]), source=str(row["source"]), status=str(row["status"]),
        reason=str(row["reason"] or "no reason given"),
    )  # fmt: skip
