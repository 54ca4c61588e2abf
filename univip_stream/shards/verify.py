"""Check shards against their manifest: every byte, every member and every box."""

import contextlib
import hashlib
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from univip_stream import storage
from univip_stream.boxes import validate_boxes
from univip_stream.errors import InputError
from univip_stream.files import sha256_of, system_file
from univip_stream.filetypes import too_large
from univip_stream.images import MAX_BYTES, MAX_SIDE
from univip_stream.parquet import metadata_of, table_of
from univip_stream.shards.candidates import rows_with_candidates
from univip_stream.shards.entry import FileFacts, ShardEntry, numbers, tar_names
from univip_stream.shards.format import HELD, SCHEMA, as_index, candidates_name, files_of, index_name
from univip_stream.shards.manifest import MANIFEST, Manifest, being_added, read_manifest
from univip_stream.shards.samples import MOST_JSON_BYTES

_ROWS = 256
"""Number of images whose candidates are in memory at a time; each may have thousands."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is not as the manifest states."""

    shard: str
    """File name of the shard, or of the manifest."""
    problem: str
    """Description of what was found and what was expected."""


@dataclass(frozen=True, kw_only=True)
class CheckTask:
    """One shard that is to be checked."""

    folder: str
    """Folder of the shard, local or remote."""
    entry: ShardEntry
    """Its entry in the manifest."""
    fingerprint: str
    """Fingerprint of the parameters that the manifest states for it."""
    max_pixels: int
    """Largest width times height that mining took."""

    @property
    def name(self) -> str:
        """File name of its tar."""
        return self.entry.name


def verify_folder(folder: str | Path, progress: Callable[[int], None] = lambda images: None) -> list[Finding]:
    """Check every shard that the manifest of `folder` names, and that there are no others.

    Args:
        folder: folder of the shards, local or remote.
        progress: called after each shard with the number of its images.

    Returns:
        What is wrong; [] if nothing is.

    Raises:
        InputError: the manifest is missing or cannot be read.

    """
    manifest = read_manifest(folder)
    findings = [finding for task in check_tasks(folder, manifest) for finding in check_shard(task, progress)]
    return findings + check_totals(folder, manifest)


def check_tasks(folder: str | Path, manifest: Manifest) -> Iterator[CheckTask]:
    """Yield a task for each shard that a manifest names, for `check_shard`, which any process may call."""
    of, place, limit = manifest.fingerprints, storage.absolute(folder), manifest.mined_limit
    for entry in manifest.shards:
        yield CheckTask(folder=place, entry=entry, fingerprint=of[entry.name], max_pixels=limit)


def check_totals(folder: str | Path, manifest: Manifest) -> list[Finding]:
    """Return what is wrong with the folder as a whole: tars that the manifest does not name, counts that do not add up.

    Shards of an unfinished `mine --add` are not wrong: the set consists of the shards that the manifest names.
    """
    named = set(tar_names(manifest.shards)) | set(being_added(folder))
    there = _tars(folder)
    findings = [
        Finding(shard=name, problem="exists, but the manifest does not name it") for name in there if name not in named
    ]
    totals = manifest.totals
    images = int(numbers(manifest.shards, "images").sum())
    by_reason = sum(count for name, count in totals.items() if name not in ("images", "samples", "bytes"))
    if not images == totals["images"] == by_reason:
        problem = f"shards hold {images} images, totals say {totals['images']}, counts by reason add up to {by_reason}"
        findings.append(Finding(shard=MANIFEST, problem=problem))
    return findings


def check_shard(task: CheckTask, progress: Callable[[int], None] = lambda images: None) -> list[Finding]:
    """Check one shard and return what is wrong with it; a remote one is copied to a temporary folder first."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(task.folder)
        if storage.is_remote(task.folder):
            folder = Path(place)
            for name in files_of(task.name):
                with contextlib.suppress(FileNotFoundError):  # found missing below
                    storage.copy_in(storage.join(task.folder, name), folder / name)
        problems = list(_problems(folder, task.entry, task.fingerprint, task.max_pixels))
    progress(task.entry.images)
    return [Finding(shard=task.name, problem=problem) for problem in problems]


def _tars(folder: str | Path) -> list[str]:
    if not storage.is_remote(folder):
        return sorted(path.name for path in Path(folder).glob("*.tar") if system_file(path.name) is None)
    if storage.scheme_of(folder) in storage.WEB:
        return []  # web servers do not list folders
    return [name for name, _ in storage.files_below(folder) if name.endswith(".tar") and "/" not in name]


def _problems(folder: Path, entry: ShardEntry, fingerprint: str, max_pixels: int) -> Iterator[str]:
    """Yield the problems of one shard. A file with another hash is still read, to say where it differs."""
    tar_path, index_path, candidates_path = (folder / of(entry.name) for of in (str, index_name, candidates_name))
    expected_of: list[tuple[Path, ShardEntry | FileFacts]] = [(tar_path, entry), (index_path, entry.index)]
    if entry.candidates is not None:
        expected_of.append((candidates_path, entry.candidates))
    for path, expected in expected_of:
        if not path.is_file():
            yield f"{path.name} is missing"
            continue
        size = path.stat().st_size
        if size != expected.bytes:
            yield f"{path.name} has {size} bytes, expected {expected.bytes}"
        elif sha256_of(path) != expected.sha256:
            yield f"{path.name} has another SHA-256 than the manifest states: its bytes changed"
    if not (tar_path.is_file() and index_path.is_file()):
        return
    try:
        index = index_path.read_bytes()
        # It is checked before any of it is used.
        table = as_index(table_of(index), SCHEMA.names)
        rows = table.select([name for name in SCHEMA.names if name in table.schema.names]).to_pylist()
        facts = metadata_of(index)
    except (pa.ArrowException, OSError, UnicodeDecodeError, ValueError) as error:
        yield f"{index_path.name} cannot be read: {(str(error) or type(error).__name__).splitlines()[0]}"
        return
    if facts.get("fingerprint") != fingerprint:
        yield f"{index_path.name} was made with other parameters than the manifest states"
    if len(rows) != entry.images:
        yield f"{index_path.name} has {len(rows)} rows, expected {entry.images}"
    if sum(row["status"] in HELD for row in rows) != entry.samples:
        yield f"{index_path.name} has {sum(row['status'] in HELD for row in rows)} samples, expected {entry.samples}"
    yield from _check_candidates(index, candidates_path, entry)
    for row in rows:
        if row["status"] in HELD and (row["width"] or 0) * (row["height"] or 0) > max_pixels:
            yield f"image {row['key']} ({row['source']}) is {too_large(row['width'], row['height'], max_pixels, MAX_SIDE)}"
    try:
        yield from _check_members(tar_path, [row for row in rows if row["status"] in HELD])
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        yield f"{tar_path.name} cannot be read to its end: {error}"


def _check_candidates(index: bytes, path: Path, entry: ShardEntry) -> Iterator[str]:
    """Check that every row has candidates inside its image; those of a few hundred images are in memory at a time."""
    if entry.candidates is not None and not path.is_file():
        return
    try:
        beside = None if entry.candidates is None else path.read_bytes()
        for batch in rows_with_candidates(index, beside, _ROWS, ["key", "width", "height", "status"]):
            of_row = batch.column("candidates").value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
            boxes = batch.column("candidates").flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, 4).astype(int)
            of_box = np.repeat(np.arange(batch.num_rows), of_row)
            width, height = (batch.column(name).fill_null(0).to_numpy()[of_box] for name in ("width", "height"))
            x, y, w, h = boxes.T
            bad = np.flatnonzero((x < 0) | (y < 0) | (w < 1) | (h < 1) | (x + w > width) | (y + h > height))
            if len(bad):
                key = batch.column("key")[int(of_box[bad[0]])].as_py()
                yield f"{len(bad)} candidates lie outside their images, the first in sample {key}"
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        name = index_name(entry.name) if entry.candidates is None else path.name
        yield f"{name} cannot be read: {(str(error) or type(error).__name__).splitlines()[0]}"


def _check_members(tar_path: Path, rows: list[dict[str, Any]]) -> Iterator[str]:
    """Check the members of the tar against the index: names, bytes of images, fields of the JSON, boxes."""
    expected = {row["key"]: row for row in rows}
    seen: set[str] = set()
    with tarfile.open(tar_path, "r:") as tar:
        while (member := tar.next()) is not None:
            key, _, suffix = member.name.partition(".")
            row = expected.get(key)
            if row is None or suffix not in ("json", row["suffix"]):
                yield f"member {member.name!r} at byte {member.offset} is not in the index"
                continue
            seen.add(member.name)
            if member.size > (MOST_JSON_BYTES if suffix == "json" else MAX_BYTES):
                yield f"member {member.name!r} has {member.size} bytes, more than is read"
                continue
            file = tar.extractfile(member)
            data = file.read() if file is not None else b""
            if suffix != "json":
                if hashlib.sha256(data).hexdigest() != row["sha256"]:
                    yield f"image {member.name} has another SHA-256 than its row states"
                if member.offset_data != row["offset"] or member.size != row["size"]:
                    yield f"image {member.name} lies at byte {member.offset_data}, its row says {row['offset']}"
            else:
                yield from _check_json(member.name, data, row)
    for key, row in expected.items():
        for name in (f"{key}.{row['suffix']}", f"{key}.json"):
            if name not in seen:
                yield f"member {name} ({row['source']}) is missing"


def _check_json(name: str, data: bytes, row: dict[str, Any]) -> Iterator[str]:
    try:
        fields = json.loads(data)
        for column in ("key", "source", "width", "height", "label", "boxes", "converted", "sha256"):
            if fields[column] != row[column]:
                yield f"{name}: {column} is not what the index says"
        if fields.get("image_id") != row.get("image_id"):
            yield f"{name}: image_id is not what the index says"
        validate_boxes(fields["boxes"], row["width"], row["height"])
    except InputError as error:
        yield f"{name}: {error}"
    except (ValueError, KeyError, TypeError) as error:
        yield f"{name} is not the JSON of a sample: {type(error).__name__}: {error}"
