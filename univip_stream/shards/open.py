"""Open a list of shards by their manifests. Shards of other programs are indexed on first use.

Letter: S shards.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from univip_stream.errors import InputError, why
from univip_stream.filetypes import too_large
from univip_stream.images import MAX_PIXELS, MAX_SIDE
from univip_stream.shards.cache import Cache, checked_hash
from univip_stream.shards.entry import EntryTable, ShardEntry, hashes, numbers, tar_names
from univip_stream.shards.foreign import EXAMPLE, foreign_index
from univip_stream.shards.format import index_name
from univip_stream.shards.index import Layout, ShardIndex, ShardSet
from univip_stream.shards.manifest import JOB, Manifest, being_added, has_manifest, is_there, read_manifest
from univip_stream.shards.rows import read_samples, rows_of, samples_of
from univip_stream.storage import is_remote, join, name_of, opened, parent

_AT_ONCE = 8
"""Number of indexes that are read at the same time."""
_MOST_CHECKED = 4096
"""The most shards on a disk whose files are checked before anything is read; of more, each is checked when it is opened."""


def open_index(shards: list[str], cache: Cache | None = None, *, max_pixels: int = MAX_PIXELS) -> ShardIndex:
    """Open shards and read all their indexes into memory; arguments and errors are those of `open_shards`."""
    return open_shards(shards, cache, max_pixels=max_pixels).whole()


def open_shards(shards: list[str], cache: Cache | None = None, *, max_pixels: int = MAX_PIXELS) -> ShardSet:
    """Open shards: read their manifests but not their indexes, and index WebDataset shards of other programs on first use.

    Args:
        shards: paths and URLs of tars, as `expand_shards` returns them.
        cache: cache that remote files are fetched to; None for the default one.
        max_pixels: larger images (width times height) in shards of other programs are left out and counted. Our own shards
            hold what mining's `--max-pixels` allowed, and all of that is read.

    Raises:
        InputError: a shard has no index, or another size than its manifest states (checked for up to 4,096 shards on a disk,
            without reading them); or no shard holds a sample.

    """
    cache = cache or Cache()
    folders, names = _folders_and_names(shards)
    manifests: dict[str, Manifest] = {}
    strangers: set[str] = set()
    for folder in dict.fromkeys(folders):
        if has_manifest(folder):
            manifests[folder] = read_manifest(folder)
        elif _unfinished(folder, [shard for shard, of in zip(shards, folders, strict=True) if of == folder]):
            read_manifest(folder)
        else:
            strangers.add(folder)
    place, tables = _layout_of(shards, folders, names, manifests), {}
    known = list(manifests.values())
    ignored: dict[int, dict[str, int]] = {}
    sizes = _numbers_of(place, known, "bytes")
    tar_sha256 = _values_of(place, [hashes(manifest.shards) for manifest in known])
    if strangers:

        def indexed(number: int) -> None:
            found = foreign_index(shards[number], cache, max_pixels)
            table, ignored[number] = _without_large_images(found.table, max_pixels, found.ignored)
            tables[number] = samples_of(shards[number], table)
            sizes[number], tar_sha256[number] = found.size, found.sha256

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(indexed, np.flatnonzero(place.manifest < 0).tolist()))
        place.foreign.update(sorted(tables.items()))
    counts, pixels, boxes = (_numbers_of(place, known, name) for name in ("samples", "pixels", "boxes"))
    for number, table in place.foreign.items():
        rows = rows_of([table])
        counts[number], boxes[number] = len(rows), len(rows.boxes)
        pixels[number] = int((rows.width.astype(np.int64) * rows.height).sum())
    of_folder = {folder: is_remote(folder) for folder in dict.fromkeys(folders)}
    limits = [*(max(max_pixels, manifest.mined_limit) for manifest in known), max_pixels]  # the last for -1
    found = ShardSet(
        shards,
        place,
        counts=counts,
        pixels=pixels,
        boxes=None if (boxes < 0).any() else int(boxes.sum()),
        tar_bytes=sizes.tolist(),
        tar_sha256=tar_sha256,
        max_pixels=[limits[of] for of in place.manifest.tolist()],
        remote=np.fromiter((of_folder[folder] for folder in folders), bool, len(folders)),
        notes=[*_partial_notes(_named(folders, names), manifests), *_ignored_notes(shards, ignored)],
        cache=cache,
    )
    if not len(found):
        raise InputError(
            f"none of {len(shards)} shards holds a sample ({', '.join(map(str, shards[:3]))}{', ...' * (len(shards) > 3)}); "
            + ("; ".join(found.notes) or "expected tars of images; of mined ones the .parquet beside each says why")
        )
    if len(shards) <= _MOST_CHECKED:
        _check_sizes(found, place)
    return found


def _folders_and_names(shards: list[str]) -> tuple[list[str], list[str]]:
    """Return the folder and the file name of each shard; the folder is looked up once for shards that share it."""
    parents: dict[str, str] = {}
    folders, names = [], []
    for shard in shards:
        head, _, name = shard.rpartition("/")
        if "?" in shard:
            head, name = shard, name_of(shard)
        if head not in parents:
            parents[head] = parent(shard)
        folders.append(parents[head])
        names.append(name)
    return folders, names


def _named(folders: list[str], names: list[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for folder, name in zip(folders, names, strict=True):
        found.setdefault(folder, set()).add(name)
    return found


def _layout_of(shards: list[str], folders: list[str], names: list[str], manifests: dict[str, Manifest]) -> Layout:
    """Return which entry of which manifest each shard is."""
    known = list(manifests.values())
    if len(known) == 1 and len(set(folders)) == 1 and names == tar_names(known[0].shards):  # a whole set, the usual case
        place = Layout(manifests=known, manifest=np.zeros(len(shards), np.int32), entry=np.arange(len(shards)), foreign={})
        return _with_checked_hashes(place, shards)
    number_of = {folder: number for number, folder in enumerate(manifests)}
    entries = {
        folder: {name: at for at, name in enumerate(tar_names(manifest.shards))} for folder, manifest in manifests.items()
    }
    manifest = np.full(len(shards), -1, np.int32)
    entry = np.full(len(shards), -1, np.int64)
    for at, (folder, name) in enumerate(zip(folders, names, strict=True)):
        if folder not in entries:
            continue
        manifest[at], found = number_of[folder], entries[folder].get(name)
        if found is None:
            if name in being_added(folder):
                raise InputError(
                    f"{shards[at]} belongs to a part that `mine --add` has not finished; name the folder, which means the "
                    "finished shards, or run that command again"
                )
            raise InputError(f"{shards[at]}: the manifest of its folder does not name it; mine it, or leave it out")
        entry[at] = found
    return _with_checked_hashes(Layout(manifests=known, manifest=manifest, entry=entry, foreign={}), shards)


def _with_checked_hashes(place: Layout, shards: list[str]) -> Layout:
    """Return `place` after checking that the hashes of its entries are hashes; in a table of entries they always are."""
    tables = [isinstance(manifest.shards, EntryTable) for manifest in place.manifests]
    for at, of in enumerate(place.manifest.tolist()):
        if of >= 0 and not tables[of]:
            _check_hashes(shards[at], place.manifests[of].shards[int(place.entry[at])])
    return place


def _values_of(place: Layout, values: list[list[str]]) -> list[str]:
    """Return the value for each shard's entry; the empty text for shards of other programs."""
    if len(values) == 1 and len(values[0]) == len(place.entry) and (place.entry == np.arange(len(place.entry))).all():
        return values[0]
    return [values[of][at] if of >= 0 else "" for of, at in zip(place.manifest.tolist(), place.entry.tolist(), strict=True)]


def _check_hashes(shard: str, entry: ShardEntry) -> None:
    try:
        checked_hash(entry.index.sha256)
        checked_hash(entry.sha256)
    except ValueError as error:
        raise InputError(f"the manifest's entry of {shard} cannot be used ({why(error)})") from error


def _numbers_of(place: Layout, manifests: list[Manifest], name: str) -> np.ndarray:
    """Return a number of each shard's entry, int64 S; 0 for shards of other programs."""
    found = np.zeros(len(place.manifest), np.int64)
    for number, manifest in enumerate(manifests):
        here = place.manifest == number
        found[here] = numbers(manifest.shards, name)[place.entry[here]]
    return found


def _check_sizes(found: ShardSet, place: Layout) -> None:
    """Raise ShardError if a local shard or index is missing or has another size than its manifest states."""
    for number in np.flatnonzero((place.manifest >= 0) & ~found.is_remote).tolist():
        shard, index = found.shards[number], Path(index_name(found.shards[number]))
        entry = place.manifests[int(place.manifest[number])].shards[int(place.entry[number])]
        try:
            sizes = Path(shard).stat().st_size, index.stat().st_size
        except OSError:
            sizes = (-1, -1)
        if sizes != (entry.bytes, entry.index.bytes):
            read_samples(shard, entry, found.cache)  # raises the error that says what is wrong


def _unfinished(folder: str, shards: list[str]) -> bool:
    """Return whether shards without a manifest are our own: shards of an unfinished job must not pass as complete."""
    if is_there(join(folder, JOB)):
        return True
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return any(pool.map(_is_ours, map(index_name, shards)))


def _is_ours(path: str) -> bool:
    """Return whether a file is an index of ours; other programs, like img2dataset, put Parquet files beside tars too."""
    if not is_there(path):
        return False
    try:
        with opened(path) as file:
            facts = pq.read_schema(file).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path} cannot be read ({why(error)}), so it is not known which program wrote the shard beside it; remove or repair it"
        ) from error
    return bytes(facts.get(b"format", b"")).startswith(b"univip-stream/")


def _without_large_images(table: pa.Table, max_pixels: int, ignored: dict[str, int]) -> tuple[pa.Table, dict[str, int]]:
    """Return the rows of a foreign shard without images beyond the limit, and the ignored things with these images counted."""
    pixels = pc.multiply(pc.cast(table.column("width"), pa.int64()), pc.cast(table.column("height"), pa.int64()))
    large = pc.fill_null(pc.greater(pixels, max_pixels), False)
    rows = table.filter(large).select(["source", "width", "height"])
    if not rows.num_rows:
        return table, ignored
    first = rows.slice(0, 1).to_pylist()[0]
    reason = f"{first['source']}: {too_large(first['width'], first['height'], max_pixels, MAX_SIDE)}"
    return table.filter(pc.invert(large)), {**ignored, f"images too large{EXAMPLE}{reason}": rows.num_rows}


def _partial_notes(places: dict[str, set[str]], manifests: dict[str, Manifest]) -> list[str]:
    """Return a note for each folder of which only some shards were named: fine for a trial, but it may be a wrong range."""
    found = []
    for folder, manifest in manifests.items():
        named = places[folder]
        if len(named) < len(manifest.shards):
            samples = numbers(manifest.shards, "samples")
            images = sum(
                count for name, count in zip(tar_names(manifest.shards), samples.tolist(), strict=True) if name in named
            )
            found.append(
                f"{images} of {samples.sum()} images: {len(named)} of {len(manifest.shards)} shards of {folder} named"
            )
    return found


def _ignored_notes(shards: list[str], ignored: dict[int, dict[str, int]]) -> list[str]:
    """Return a note for each kind of thing in foreign shards that did not become a sample."""
    totals: Counter[str] = Counter()
    first: dict[str, str] = {}
    for number in sorted(ignored):
        for text, count in ignored[number].items():
            kind, _, example = text.partition(EXAMPLE)
            totals[kind] += count
            first.setdefault(kind, f"{shards[number]}: {example}" if example else shards[number])
    return [f"{count} {kind} (first in {first[kind]})" for kind, count in sorted(totals.items())]
