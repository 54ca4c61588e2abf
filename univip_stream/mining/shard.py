"""Mine one shard, from source files to tar and index, in a plain function that Ray or a loop calls."""

import contextlib
import hashlib
import tempfile
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from univip_stream import storage
from univip_stream.boxes import BoxFilter, as_boxes, to_upright, validate_boxes
from univip_stream.errors import InputError
from univip_stream.images import BadImageError, orientation_of, read_picture
from univip_stream.mining.ahead import read_ahead
from univip_stream.mining.proposer import GROUND_TRUTH, IMPORTED, Proposer, load_proposer
from univip_stream.shards.entry import ShardEntry
from univip_stream.shards.format import FAILED, NO_BOXES, OK, StoredImage, files_of, key_of
from univip_stream.shards.stored import stored_samples
from univip_stream.shards.write import write_shard
from univip_stream.sources import Boxes, SourceImage, read_bytes

_REPORT_EVERY = 0.5
"""Seconds between two reports of progress."""


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """The images of one shard, and how to mine them."""

    out: str
    """Folder that it is written to, local or in an object store."""
    name: str
    """File name of its tar."""
    first: int
    """Number of its first image in the order of all sources."""
    images: list[SourceImage]
    """Images of the shard, in order."""
    fingerprint: str
    """Fingerprint of the job."""
    proposals: str
    """Engine, `none`, `ground-truth`, `imported-` with a format, or a user's module:function."""
    options: dict[str, Any]
    """Options of the engine."""
    seed: int
    """Seed of the engine."""
    filter: BoxFilter
    """Settings of the filter that decides which boxes are kept."""
    max_pixels: int
    """Images with a larger width times height become rows with that reason."""
    upright: bool = False
    """Whether boxes that come with the images are in the upright image; otherwise they are in the stored pixels."""
    web: storage.WebOptions = field(default_factory=storage.WebOptions)
    """Limits for requests to web servers."""
    keep: bool = False
    """Whether this job wrote the shard before, so that only the images that failed are mined again."""


def mine_shard(task: ShardTask, progress: Callable[[int], None] = lambda done: None) -> ShardEntry:
    """Mine and write one shard, and return its entry for the manifest.

    Args:
        task: the shard to mine. The result depends only on it and on the bytes of the files.
        progress: called now and then with the number of images finished since the last call.

    """
    storage.use_web(task.web)
    # It is closed in any case: requests that are under way would delay the end of the process.
    with contextlib.closing(_samples(task)) as samples:
        return put_shard(reporting(samples, progress), task.out, task.name, task.fingerprint)


def put_shard(samples: Iterator[StoredImage], out: str, name: str, fingerprint: str) -> ShardEntry:
    """Write a shard to its folder, local or in an object store, and return its entry for the manifest."""
    if not storage.is_remote(out):
        return write_shard(samples, Path(out, name), fingerprint)
    with tempfile.TemporaryDirectory() as place:
        entry = write_shard(samples, Path(place, name), fingerprint)
        for part in files_of(name):  # the index comes last: it is the completion mark
            storage.copy_out(Path(place, part), storage.join(out, part))
    return entry


def _samples(task: ShardTask) -> Generator[StoredImage]:
    proposer = load_proposer(task.proposals, seed=task.seed, options=task.options)
    stored = stored_samples(task.out, task.name, task.proposals) if task.keep else repeat(None)
    # Not strict, because `repeat` has no end; a shard of this job has as many rows as images.
    work = (
        (number, image, None if before is None or before.status in FAILED else before)
        for (number, image), before in zip(enumerate(task.images, task.first), stored, strict=False)
    )
    with contextlib.closing(read_ahead(work, lambda item: item[1] if item[2] is None else None)) as read:
        for (number, image, before), data in read:
            yield before or mine_image(image, key_of(number), task, proposer, data)


def mine_image(
    image: SourceImage, key: str, task: ShardTask, proposer: Proposer, read: Callable[[], bytes] | None = None
) -> StoredImage:
    """Read an image, propose boxes and filter them. Whatever is wrong with the image becomes its status and reason.

    Args:
        image: the image.
        key: its key in the shard.
        task: the task of its shard.
        proposer: function that proposes its boxes.
        read: function that returns its bytes, or raises as `read_bytes` does; None to read it now.

    Raises:
        InputError: a user's proposer failed or returned boxes that are not inside the image, which stops the job.

    """
    common: dict[str, Any] = {"key": key, "source": image.source, "label": image.label, "image_id": image.image_id}
    try:
        data = read_bytes(image) if read is None else read()
        picture = read_picture(data, max_pixels=task.max_pixels)
    except BadImageError as error:
        return StoredImage(status=error.status, reason=str(error), **common)
    height, width = picture.pixels.shape[:2]
    try:
        if task.proposals == GROUND_TRUTH or task.proposals.startswith(IMPORTED):
            given = () if image.boxes is None else image.boxes
            candidates = ground_truth(given, width, height, 1 if task.upright else orientation_of(data))
        else:
            candidates = as_boxes(_propose(proposer, picture.pixels))
        validate_boxes(candidates, width, height)
    except InputError as error:
        raise InputError(f"{image.source}: --proposals {task.proposals}: {error}") from error
    boxes = task.filter(candidates)
    status, reason = status_of(boxes, candidates)
    if task.proposals.startswith(IMPORTED) and image.boxes is None:
        reason = "the file of boxes has no entry for it"
    return StoredImage(
        status=status,
        reason=reason,
        width=width,
        height=height,
        data=picture.data,
        suffix=picture.suffix,
        sha256=hashlib.sha256(picture.data).hexdigest(),
        converted=picture.converted,
        proposals=task.proposals,
        boxes=boxes,
        candidates=np.asarray(candidates, np.int32),
        **common,
    )


def ground_truth(boxes: Boxes | np.ndarray, width: int, height: int, orientation: int) -> np.ndarray:
    """Return boxes of the stored pixels as boxes of the upright image, clipped to it, without those that are outside.

    Args:
        boxes: N x 4, xywh in the stored pixels; with orientation 1, in the upright image.
        width: width of the upright image in pixels.
        height: height of the upright image in pixels.
        orientation: EXIF orientation, 1 to 8.

    """
    array = np.asarray(boxes, np.int64).reshape(-1, 4)
    size = np.array([width, height])
    low, high = to_upright(array[:, :2], array[:, :2] + array[:, 2:], (width, height), orientation)
    low, high = np.clip(low, 0, size), np.clip(high, 0, size)
    kept = (high > low).all(axis=1)
    return as_boxes(np.concatenate([low, high - low], axis=1)[kept])


def _propose(proposer: Proposer, pixels: np.ndarray) -> np.ndarray:
    try:
        return proposer(pixels)
    except (InputError, MemoryError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a user's own function may raise anything, even SystemExit
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise InputError(f"it raised {type(error).__name__}: {error} ({last.filename}, line {last.lineno})") from error


def status_of(boxes: np.ndarray, candidates: np.ndarray) -> tuple[str, str | None]:
    """Return (status, reason) of an image in the tar."""
    return (OK, None) if len(boxes) else (NO_BOXES, f"none of {len(candidates)} candidates passed the filter")


def reporting(samples: Iterator[StoredImage], progress: Callable[[int], None]) -> Iterator[StoredImage]:
    """Yield the samples, and report progress now and then."""
    done, reported = 0, time.monotonic()
    for sample in samples:
        yield sample
        done += 1
        if time.monotonic() - reported >= _REPORT_EVERY:
            progress(done)
            done, reported = 0, time.monotonic()
    progress(done)
