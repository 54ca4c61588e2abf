"""Write feature maps of any images: NumPy arrays in chunks, with a Parquet index beside each; a killed job continues.

Letters: N images of a chunk that can be read, h and w sides of a map, D width of a feature.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from univip_stream.augment import normalised
from univip_stream.distributed import ALONE, Process, wait_for_all
from univip_stream.errors import InputError
from univip_stream.evaluation.embedding import fingerprint, stop_if_hopeless
from univip_stream.evaluation.subject import Subject
from univip_stream.failures import MAX_FAILURES, Failure
from univip_stream.files import remove_leftovers, sha256_of, written_atomically
from univip_stream.images import BadImageError
from univip_stream.probe.crops import CentreCrop, batches
from univip_stream.probe.dense import dense_map
from univip_stream.probe.labelled import ImageSource
from univip_stream.shards.format import OK

CHUNK = 256
"""Images of a chunk: 100 MB of a ResNet-50's maps at 224 px."""
FACTS = "maps.json"
"""Written last of all files: it marks that the others are whole."""
FORMAT = "univip-stream maps 1"
_PART = ("x", "y", "width", "height")
_FINGERPRINT, _SHA256 = b"univip-stream.features", b"univip-stream.maps_sha256"


class _PlacedCrop(CentreCrop):
    """The usual crop, and as its draw which part of the upright image it is: x, y, width, height in pixels."""

    def __call__(self, image: np.ndarray, number: int) -> tuple[Tensor, Tensor]:
        crop, _ = super().__call__(image, number)
        height, width = image.shape[:2]
        scale = round(self.size * 256 / 224) / min(height, width)
        side = self.size / scale
        return crop, torch.tensor([(width - side) / 2, (height - side) / 2, side, side])


def embed_dense(
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
    """Write the feature maps of a source into a folder; called again it does what is missing.

    A chunk has two files. `000000.npy` is float32 N x h x w x D of its images that can be read. `000000.parquet` has a row for
    each of its images: `key`, `label`, `row` (its place in the array; null where it cannot be read), `x`, `y`, `width`,
    `height` (the part of the upright image that its map is of, pixels), `status`, `reason`. `maps.json` comes last, with the
    number of images, h, w, D, the side of the crops and the hash of the weights.

    Args:
        subject: backbone that computes the features.
        source: images, with labels if it has them.
        out: the folder; absent, empty, or of an earlier call.
        batch_size: images per forward pass.
        workers: processes that read images.
        device: device of the backbone.
        process: this process among those that share the chunks.
        max_failures: images that may be unreadable, a share or a number, before it stops.
        progress: called with numbers of finished images.

    Returns:
        The images that cannot be read.

    Raises:
        InputError: `out` holds other things; too many images cannot be read; features that are not finite.
        UsageError: the network has no maps.

    """
    if not len(source):
        raise InputError(f"{source.name} holds no image")
    wanted = "maps 1 " + fingerprint(subject, source)
    subject.backbone.to(device).eval()
    with torch.inference_mode():  # before anything is written
        probe = torch.zeros(1, 3, subject.size, subject.size, device=device)
        h, w, D = dense_map(subject.backbone, probe, subject.config.method.backbone).shape[1:]
    if process.is_first:
        _make_room(out, -(-len(source) // CHUNK))
    wait_for_all(process)
    looked_at = 0
    failed: list[Failure] = []
    for number, first in enumerate(range(0, len(source), CHUNK)):
        if number % process.world_size != process.rank:
            continue
        numbers = np.arange(first, min(first + CHUNK, len(source)))
        if _is_whole(out, number, wanted):
            progress(len(numbers))
            continue
        maps, places, bad = _computed(subject, source, numbers, (h, w, D), batch_size, workers, device, progress)
        failed += bad.values()
        looked_at += len(numbers)
        stop_if_hopeless(failed, source, looked_at, max_failures)
        _write(out, number, maps, _index(source, numbers, places, bad), wanted)
    wait_for_all(process)
    found = _failed(source, out)
    stop_if_hopeless(list(found.values()), source, len(source), max_failures)
    if process.is_first:
        facts = {
            "format": FORMAT, "images": len(source), "maps": len(source) - len(found), "height": h, "width": w, "channels": D,
            "image_size": subject.size, "backbone": subject.config.method.backbone, "run": subject.run,
            "weights_sha256": subject.weights_hash(), "source": source.name,
        }  # fmt: skip
        with written_atomically(out / FACTS) as file:
            file.write((json.dumps(facts, indent=1) + "\n").encode())
    return list(found.values())


def _make_room(out: Path, chunks: int) -> None:
    """Make the folder, or find it to be of an earlier call; chunks of a larger source go."""
    if out.is_file():
        raise InputError(f"--out {out} is a file; expected a folder for the maps, with --dense")
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    for path in out.iterdir():
        ours = path.name == FACTS or (path.stem.isdecimal() and path.suffix in (".npy", ".parquet"))
        if not ours and not path.name.startswith("."):
            raise InputError(f"--out {out} holds {path.name}, which is none of ours; choose a new folder for the maps")
        if path.stem.isdecimal() and int(path.stem) >= chunks:
            path.unlink()
    (out / FACTS).unlink(missing_ok=True)


def _computed(
    subject: Subject, source: ImageSource, numbers: np.ndarray, shape: tuple[int, int, int], batch_size: int, workers: int,
    device: torch.device, progress: Callable[[int], None],
) -> tuple[np.ndarray, dict[int, np.ndarray], dict[int, Failure]]:  # fmt: skip
    """(maps N x h x w x D in order of their numbers, the part of its image that each is of, what cannot be read)."""
    maps, places, bad = [np.empty((0, *shape), np.float32)], dict[int, np.ndarray](), dict[int, Failure]()
    for crops in batches(source, numbers, _PlacedCrop(subject.size), batch_size=batch_size, workers=workers):
        if len(crops.numbers):
            with torch.inference_mode():
                images = normalised(crops.images.to(device, non_blocking=True), subject.config.augment)
                found = dense_map(subject.backbone, images, subject.config.method.backbone).float().cpu().numpy()
            if not np.isfinite(found).all():
                raise InputError("the backbone's features are not finite: its weights are damaged, or training diverged")
            maps.append(found)
            places |= zip(crops.numbers.tolist(), crops.draws.numpy(), strict=True)
        bad |= crops.failed
        progress(len(crops.numbers) + len(crops.failed))
    return np.concatenate(maps), places, bad


def _index(source: ImageSource, numbers: np.ndarray, places: dict[int, np.ndarray], bad: dict[int, Failure]) -> pa.Table:
    names = source.names(int(numbers[0]), int(numbers[-1]) + 1)
    rows = {number: row for row, number in enumerate(sorted(places))}
    parts = {name: [float(places[n][at]) if n in places else None for n in numbers.tolist()] for at, name in enumerate(_PART)}
    why = [bad.get(number) for number in numbers.tolist()]
    return pa.table(
        {
            "key": pa.array([key for key, _ in names], pa.string()),
            "label": pa.array([label for _, label in names], pa.string()),
            "row": pa.array([rows.get(number) for number in numbers.tolist()], pa.int32()),
            **{name: pa.array(values, pa.float32()) for name, values in parts.items()},
            "status": pa.array([OK if failure is None else failure.status for failure in why], pa.string()),
            "reason": pa.array([None if failure is None else failure.reason for failure in why], pa.string()),
        }
    )  # fmt: skip


def _write(out: Path, number: int, maps: np.ndarray, index: pa.Table, wanted: str) -> None:
    """The array, then its index, which has the array's hash and so marks that both are whole."""
    path = out / f"{number:06d}.npy"
    with written_atomically(path, wanted=maps.nbytes) as file:
        np.save(file, maps)
    index = index.replace_schema_metadata({_FINGERPRINT: wanted.encode(), _SHA256: sha256_of(path).encode()})
    with written_atomically(path.with_suffix(".parquet")) as file:
        pq.write_table(index, file, write_page_checksum=True)


def _is_whole(out: Path, number: int, wanted: str) -> bool:
    """Whether a chunk is there, of these weights and images, and undamaged; one that lacks images is tried again."""
    path = out / f"{number:06d}.parquet"
    try:
        index = pq.read_table(path, page_checksum_verification=True)
        said = index.schema.metadata or {}
        if said.get(_FINGERPRINT) != wanted.encode() or index.column("row").null_count:
            return False
        return sha256_of(path.with_suffix(".npy")).encode() == said.get(_SHA256)
    except (OSError, KeyError, pa.ArrowException):
        return False


def _failed(source: ImageSource, out: Path) -> dict[int, Failure]:
    """The images without a map, of all ranks' chunks, by number."""
    found: dict[int, Failure] = {}
    for path in sorted(out.glob("*.parquet")):
        for at, row in enumerate(pq.read_table(path, columns=["row", "status", "reason"]).to_pylist()):
            if row["row"] is None:
                number = int(path.stem) * CHUNK + at
                found[number] = source.failure(number, BadImageError(row["status"], row["reason"] or ""))
    return found
