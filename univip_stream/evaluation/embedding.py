"""Write features of any images to Parquet, in chunks that are complete or absent, so that a killed job can continue on any ranks.

Shape letters: N images in all, D width of a feature.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from univip_stream.distributed import ALONE, Process, wait_for_all
from univip_stream.errors import InputError, why
from univip_stream.evaluation.subject import Subject
from univip_stream.failures import MAX_FAILURES, Failure, listed, stop_if_too_many
from univip_stream.files import remove_leftovers, written_atomically
from univip_stream.images import BadImageError
from univip_stream.probe.features import vectors
from univip_stream.probe.labelled import ImageSource
from univip_stream.shards.format import OK

CHUNK = 4096
"""Images per chunk: 32 MB at 2048 floats each."""
_ABANDONED_AFTER = 86_400.0
"""Seconds without a write after which a temporary file belongs to a process that was killed."""
_FINGERPRINT = b"univip-stream.features"
_IMAGES = b"univip-stream.images"


def embed(
    subject: Subject,
    source: ImageSource,
    out: Path,
    *,
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device,
    process: Process = ALONE,
    max_failures: str = MAX_FAILURES,
    progress: Callable[[int], None] = lambda images: None,
) -> list[Failure]:
    """Write the features of a source to one Parquet file: one row per image, in the source's order.

    Columns: `key`, `label`, `vector`, `status` and `reason`. An image that cannot be read has a reason and no `vector` (null);
    the status of all others is `ok`. Finished work is kept in chunks beside the file (`FILE.parts/`); after an interruption,
    the same call does what is missing, and tries unreadable images again.

    Args:
        subject: backbone that computes the features.
        source: images, with labels if it has them.
        out: file to write; an existing one is replaced as a whole.
        batch_size: images per forward pass.
        workers: processes that read images.
        device: device of the backbone.
        process: this process among those that share the chunks.
        max_failures: images that may be unreadable, a share or a number, before it stops.
        progress: called with the number of images just finished, including those of existing chunks.

    Returns:
        The images without features; [] on all ranks but the first.

    Raises:
        InputError: there are more unreadable images than allowed, none can be read, or `out` is a folder.

    """
    if out.is_dir():
        raise InputError(f"--out {out} is a folder; expected the name of a file, such as {out / 'features.parquet'}")
    parts = out.with_name(out.name + ".parts")
    make_chunks(
        subject, source, parts, max_failures=max_failures,
        batch_size=batch_size, workers=workers, device=device, process=process, progress=progress,
    )  # fmt: skip
    wait_for_all(process)
    if not process.is_first:
        return []
    wanted = fingerprint(subject, source)
    failed = list(_failed(source, chunks(parts, wanted)).values())
    stop_if_hopeless(failed, source, len(source), max_failures)
    with written_atomically(out) as file:
        writer = None
        for table in chunks(parts, wanted):
            writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
            writer.write_table(table)
        if writer is not None:
            writer.close()
    shutil.rmtree(parts)
    return failed


def fingerprint(subject: Subject, source: ImageSource) -> str:
    """Return a hash of all that features depend on: weights, crop, normalisation and images."""
    pixels = subject.config.augment
    facts = [subject.weights_hash(), subject.size, pixels.mean, pixels.std, source.fingerprint]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def make_chunks(
    subject: Subject,
    source: ImageSource,
    folder: Path,
    *,
    max_failures: str,
    batch_size: int,
    workers: int,
    device: torch.device,
    process: Process = ALONE,
    progress: Callable[[int], None] = lambda images: None,
) -> None:
    """Write this rank's share of the missing chunks; see `embed`."""
    if not len(source):
        raise InputError(f"{source.name} holds no image")
    wanted = fingerprint(subject, source)
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder, older=_ABANDONED_AFTER)  # younger files may belong to other evaluations that are running
    if process.is_first:  # chunks of a larger source whose embedding was interrupted here
        for path in folder.glob("*.parquet"):
            if path.stem.isdecimal() and int(path.stem) * CHUNK >= len(source):
                path.unlink()
    failed: list[Failure] = []
    looked_at = 0
    for number, first in enumerate(range(0, len(source), CHUNK)):
        last = min(first + CHUNK, len(source))
        if number % process.world_size != process.rank:
            continue
        path = folder / f"{number:06d}.parquet"
        kept = _read(path, wanted)
        values = np.full((last - first, subject.backbone.width), np.nan, np.float32) if kept is None else _matrix(kept)
        todo = first + np.flatnonzero(np.isnan(values[:, 0]))  # of an existing chunk, those that could not be read
        progress(last - first - len(todo))
        bad: dict[int, Failure] = {}
        if len(todo):
            for batch in vectors(
                subject.backbone,
                source,
                todo,
                size=subject.size,
                pixels=subject.config.augment,
                batch_size=batch_size,
                device=device,
                workers=workers,
            ):
                if len(batch.numbers):
                    values[batch.numbers - first] = batch.vectors_BD
                bad |= batch.failed
                progress(len(batch))
        if kept is None or len(bad) < len(todo):
            table = _table(source, first, values, bad)
            table = table.replace_schema_metadata({_FINGERPRINT: wanted.encode(), _IMAGES: source.fingerprint.encode()})
            with written_atomically(path) as file:
                pq.write_table(table, file, compression="zstd", write_page_checksum=True)
        failed += bad.values()
        looked_at += last - first
        stop_if_hopeless(failed, source, looked_at, max_failures)


def _table(source: ImageSource, first: int, values_ND: np.ndarray, bad: dict[int, Failure]) -> pa.Table:
    """Return a chunk as a table; `first` is the number of its first image."""
    last = first + len(values_ND)
    null = np.isnan(values_ND[:, 0])
    flat = pa.array(np.where(null[:, None], 0, values_ND).ravel(), pa.float32())
    names = source.names(first, last)
    why = [bad.get(number) for number in range(first, last)]
    return pa.table(
        {
            "key": pa.array([key for key, _ in names], pa.string()),
            "label": pa.array([label for _, label in names], pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(flat, values_ND.shape[1], mask=pa.array(null)),
            "status": pa.array([OK if failure is None else failure.status for failure in why], pa.string()),
            "reason": pa.array([None if failure is None else failure.reason for failure in why], pa.string()),
        }
    )


def _failed(source: ImageSource, tables: Iterable[pa.Table]) -> dict[int, Failure]:
    """Return the images of all chunks that have no features, by their number, in order."""
    found: dict[int, Failure] = {}
    first = 0
    for table in tables:
        for at in np.flatnonzero(np.asarray(table.column("vector").is_null())).tolist():
            status, reason = (table.column(name)[at].as_py() for name in ("status", "reason"))
            found[first + at] = source.failure(first + at, BadImageError(status, reason))
        first += len(table)
    return found


def stop_if_hopeless(failed: list[Failure], source: ImageSource, seen: int, max_failures: str) -> None:
    """Raise InputError where too many images seen so far, or all of them, cannot be read."""
    stop_if_too_many(
        failed, seen=seen, images=len(source), allowed=max_failures, where=source.name,
        advice="Finished features are kept.",
    )  # fmt: skip
    if len(failed) == len(source):
        raise InputError("\n".join([f"none of the {len(source)} images of {source.name} can be read:", *listed(failed, 10)]))


def chunks(folder: Path, wanted: str) -> Iterator[pa.Table]:
    """Yield the chunks of a folder in order, each checked against its checksums."""
    for path in sorted(folder.glob("*.parquet")):
        table = _read(path, wanted)
        if table is None:
            raise InputError(f"{path} changed while it was read; remove it and run the same command again")
        yield table


@dataclass(frozen=True, kw_only=True)
class StoredFeatures:
    """Features of all N images of a source."""

    vectors_ND: np.ndarray
    """float32; NaN in the rows of images that cannot be read."""
    failed: dict[int, Failure]
    """Images that cannot be read, by their number."""


def features(
    subject: Subject,
    source: ImageSource,
    cache: Path,
    *,
    max_failures: str = MAX_FAILURES,
    batch_size: int,
    workers: int,
    device: torch.device,
    process: Process = ALONE,
    progress: Callable[[int], None] = lambda images: None,
) -> StoredFeatures:
    """Return the features of all images; they are computed once and kept below `cache`, for given weights, crop and images.

    Raises:
        InputError: as in `embed`.

    """
    wanted = fingerprint(subject, source)
    folder = cache / wanted[:16]
    make_chunks(
        subject, source, folder, max_failures=max_failures,
        batch_size=batch_size, workers=workers, device=device, process=process, progress=progress,
    )  # fmt: skip
    wait_for_all(process)
    tables = list(chunks(folder, wanted))
    wait_for_all(process)  # before whoever is ready first may remove a folder that was made for this run alone
    failed = _failed(source, tables)
    stop_if_hopeless(list(failed.values()), source, len(source), max_failures)
    return StoredFeatures(vectors_ND=np.concatenate([_matrix(table) for table in tables]), failed=failed)


def load_features(path: Path) -> tuple[np.ndarray, str]:
    """Return the vectors of a file that `embed` wrote, float32 N x D, and the fingerprint of its images.

    Rows of images that could not be read are NaN.

    Raises:
        InputError: the file does not exist, or `embed` did not write it.

    """
    try:
        table = pq.read_table(path, columns=["vector"], page_checksum_verification=True)
        images = (table.schema.metadata or {})[_IMAGES].decode(errors="replace")
        vectors_ND = _matrix(
            table.cast(pa.schema([("vector", pa.list_(pa.float32(), table.schema.field(0).type.list_size))]))
        )
    except KeyError as error:
        raise InputError(
            f"{path} does not say which images its features are of; `univip-stream embed` makes it anew"
        ) from error
    except (OSError, ValueError, IndexError, AttributeError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as features ({why(error)}); `univip-stream embed` makes them") from error
    if not np.isfinite(vectors_ND[np.asarray(table.column("vector").is_valid())]).all():
        raise InputError(f"{path} holds features that are not finite; `univip-stream embed` makes them anew")
    return vectors_ND, images


def _matrix(table: pa.Table) -> np.ndarray:
    """Return the vectors of a table as float32 N x D; NaN where a row has no vector."""
    vector = table.column("vector").combine_chunks()
    found = np.full((len(vector), vector.type.list_size), np.nan, np.float32)
    found[np.asarray(vector.is_valid())] = vector.flatten().to_numpy(zero_copy_only=False).reshape(-1, found.shape[1])
    return found


def _read(path: Path, wanted: str) -> pa.Table | None:
    """Read a chunk; None if it is missing, damaged, of other weights or images, or has no status column."""
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowInvalid):
        return None
    whole = "status" in table.column_names and (table.schema.metadata or {}).get(_FINGERPRINT) == wanted.encode()
    return table if whole else None
