"""Features of any images in Parquet: by chunks that are whole or not there, so that a killed job goes on, on any number of ranks.

Shape letters: N images in all, D width of a feature.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from univip_stream.distributed import ALONE, Place, wait_for_all
from univip_stream.errors import InputError, why
from univip_stream.evaluation.subject import Subject
from univip_stream.files import written_atomically
from univip_stream.probe.features import vectors
from univip_stream.probe.labelled import ImageSource

CHUNK = 4096
"""Images of a chunk: 32 MB at 2048 floats each."""
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
    place: Place = ALONE,
    progress: Callable[[int], None] = lambda images: None,
) -> None:
    """Write the features of a source to one Parquet file: `key`, `label` and `vector`, a row an image, in the source's order.

    What is done lies in chunks beside the file (`FILE.parts/`); called again after it was killed, it does what is missing.

    Args:
        subject: whose features.
        source: of the images; labels where it has them.
        out: the file; replaced whole, if it is there.
        batch_size: images a forward pass.
        workers: processes that read images.
        device: where the backbone runs.
        place: this process among those that share the chunks.
        progress: called as images get done, with their number; chunks that were there count too.

    Raises:
        InputError: an image that cannot be read, or nowhere to write.

    """
    if out.is_dir():
        raise InputError(f"--out {out} is a folder; expected the name of a file, such as {out / 'features.parquet'}")
    parts = out.with_name(out.name + ".parts")
    make_chunks(
        subject, source, parts,
        batch_size=batch_size, workers=workers, device=device, place=place, progress=progress,
    )  # fmt: skip
    wait_for_all(place)
    if place.is_first:
        with written_atomically(out) as file:
            writer = None
            for table in chunks(parts, fingerprint(subject, source)):
                writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
                writer.write_table(table)
            if writer is not None:
                writer.close()
        shutil.rmtree(parts)


def fingerprint(subject: Subject, source: ImageSource) -> str:
    """What features depend on: weights, crop and images."""
    facts = [subject.weights_hash(), subject.size, source.fingerprint]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def make_chunks(
    subject: Subject,
    source: ImageSource,
    folder: Path,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    place: Place = ALONE,
    progress: Callable[[int], None] = lambda images: None,
) -> None:
    """Do this rank's share of the chunks that are not there yet; see `embed`."""
    if not len(source):
        raise InputError(f"{source.name} holds no image")
    print_of = fingerprint(subject, source)
    folder.mkdir(parents=True, exist_ok=True)
    for number, first in enumerate(range(0, len(source), CHUNK)):
        last = min(first + CHUNK, len(source))
        path = folder / f"{number:06d}.parquet"
        if number % place.world_size != place.rank:
            continue
        if _read(path, print_of) is not None:
            progress(last - first)
            continue
        rows = []
        for found in vectors(
            subject.backbone, source, np.arange(first, last),
            size=subject.size, batch_size=batch_size, device=device, workers=workers,
        ):  # fmt: skip
            rows.append(found)
            progress(len(found))
        values = np.concatenate(rows)
        table = pa.table(
            {
                "key": pa.array(source.keys[first:last], pa.string()),
                "label": pa.array(source.all_labels[first:last], pa.string()),
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), pa.float32()), values.shape[1]),
            },
            metadata={_FINGERPRINT: print_of.encode(), _IMAGES: source.fingerprint.encode()},
        )
        with written_atomically(path) as file:
            pq.write_table(table, file, compression="zstd", write_page_checksum=True)


def chunks(folder: Path, wanted: str) -> Iterator[pa.Table]:
    """The chunks of a folder, in order; each checked against its checksums."""
    for path in sorted(folder.glob("*.parquet")):
        table = _read(path, wanted)
        if table is None:
            raise InputError(f"{path} changed while it was read; remove it and run the same command again")
        yield table


def features(
    subject: Subject,
    source: ImageSource,
    cache: Path,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    place: Place = ALONE,
    progress: Callable[[int], None] = lambda images: None,
) -> np.ndarray:
    """Features of all images, float32 N x D; made once and kept below `cache`, for these weights, this crop and these images."""
    wanted = fingerprint(subject, source)
    folder = cache / wanted[:16]
    make_chunks(
        subject, source, folder,
        batch_size=batch_size, workers=workers, device=device, place=place, progress=progress,
    )  # fmt: skip
    wait_for_all(place)
    return np.concatenate([_matrix(table) for table in chunks(folder, wanted)])


def load_features(path: Path) -> tuple[np.ndarray, str]:
    """The vectors of a file that `embed` wrote, float32 N x D, and the fingerprint of the images they are of.

    Raises:
        InputError: no such file, or none of `embed`'s.

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
    if not np.isfinite(vectors_ND).all():
        raise InputError(f"{path} holds features that are not finite; `univip-stream embed` makes them anew")
    return vectors_ND, images


def _matrix(table: pa.Table) -> np.ndarray:
    vector = table.column("vector").combine_chunks()
    return np.asarray(vector.flatten().to_numpy(zero_copy_only=False)).reshape(len(vector), -1)


def _read(path: Path, wanted: str) -> pa.Table | None:
    """A chunk, or None where there is none, or a damaged one, or one of other weights or images."""
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowInvalid):
        return None
    return table if (table.schema.metadata or {}).get(_FINGERPRINT) == wanted.encode() else None
