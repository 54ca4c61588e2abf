"""The stream of batches. Global batch b holds the images from b*B up to (b+1)*B of the endless sequence, whoever reads it.

To resume takes one number, the step. World size, workers and prefetch decide who does the work, never its result.
"""

import copy
import itertools
import math
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler, get_worker_info

from univip_stream.augment import DRAW_SIZE
from univip_stream.errors import InputError, UsageError
from univip_stream.images import MAX_PIXELS
from univip_stream.plan import Drawn, Look, Plan, drawn_by
from univip_stream.shards import ShardSet, expand_shards, open_shards
from univip_stream.shards.cache import DEFAULT_BYTES, Cache, FetchError
from univip_stream.shards.rows import ShardError
from univip_stream.stream import decoded
from univip_stream.stream.batch import Batch
from univip_stream.stream.cut import cut
from univip_stream.stream.decoded import Decoded
from univip_stream.stream.order import Order, view_generator
from univip_stream.stream.reader import Reader
from univip_stream.stream.ring import Ring, channels_first
from univip_stream.workers import explained, loaded

_MOST_BAD = 100
"""Number of images in a row that may be bad before the stream gives up."""


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Settings of the reading of images."""

    batch_size: int
    """Images of one update, over all ranks and all parts of accumulate."""
    seed: int = 0
    """Seed of order, views and augmentations. In a training it always has the value of `seed`."""
    workers: int = 2
    """Processes of this rank that read images and cut views; 0 does it in the training process."""
    prefetch: int = 2
    """Batches that each worker keeps ready."""
    window: int = 16
    """Number of shards whose images are shuffled together."""
    antialias: bool = True
    """Resize as Pillow does when an image shrinks. False is faster and rougher."""
    cache: str | None = None
    """Folder on a local disk that remote shards are copied to; null is the user's cache folder."""
    cache_bytes: int = DEFAULT_BYTES
    """The most bytes that the copied shards may take; 34359738368 is 32 GiB. Room for two windows of shards keeps training
    from waiting."""
    decoded_cache: str | None = None
    """Folder on a local disk in which decoded images are kept as the first epoch passes; null keeps none."""
    decoded_bytes: int = decoded.DEFAULT_BYTES
    """The most bytes that decoded images may take; 137438953472 is 128 GiB. COCO's train2017 takes 108 GB."""
    max_pixels: int = MAX_PIXELS
    """Larger images (width times height) in shards of other programs are left out; our own shards are read as they were
    mined."""
    on_bad_sample: Literal["raise", "skip"] = "raise"
    """Treatment of an image whose bytes changed since mining: raise stops, skip takes the next image of the order in its
    place and reports it."""

    def __post_init__(self) -> None:
        for name, least in (
            ("batch_size", 1),
            ("workers", 0),
            ("prefetch", 1),
            ("window", 1),
            ("seed", 0),
            ("cache_bytes", 1),
            ("decoded_bytes", 0),
            ("max_pixels", 1),
        ):
            if getattr(self, name) < least:
                raise UsageError(f"stream.{name} is {getattr(self, name)}; expected at least {least}")
        if self.seed >= 1 << 63:
            raise UsageError(f"stream.seed is {self.seed}; expected less than 2 ** 63")
        if self.on_bad_sample not in ("raise", "skip"):
            raise UsageError(f"stream.on_bad_sample is {self.on_bad_sample!r}; expected raise or skip")


class Stream:
    """An endless iterable of this rank's batches from any step on.

    Args:
        shards: any spec of `expand_shards`, or shards that are open already. Manifests are read at once, and the index of a
            shard when one of its samples is read.
        plan: the plan that says what to cut out of each image.
        config: settings of the reading.
        rank: number of the slice of each global batch that this process gets.
        world_size: number of slices.
        start_step: number of the first global batch; this is all the state that resuming needs.
        parts: number of batches that the slice of each step is divided into, one after the other (gradient accumulation).
        reuse: let workers write pixels into memory that they used before. The pixels of a batch are then valid until the
            batch after the next is requested. New memory costs the system a fifth of the decoding of an image. With a GPU
            nothing is reused, because batches are copied to page-locked memory in the background.

    Raises:
        InputError: shards are missing or broken, or hold fewer images than a batch.
        UsageError: the batch size is not a multiple of ranks times parts.

    """

    def __init__(
        self,
        shards: str | list[str] | ShardSet,
        plan: Plan,
        config: StreamConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        parts: int = 1,
        reuse: bool = False,
    ):
        if isinstance(shards, ShardSet):
            self.index = shards
        else:
            self.index = open_shards(
                expand_shards(shards), Cache(config.cache, config.cache_bytes), max_pixels=config.max_pixels
            )
        if plan.all_shards:  # it may ask for any sample at any time
            self.index = self.index.whole()
        self.config, self.plan = config, plan.opened(self.index)
        self.images = len(self.index)
        if config.batch_size % (world_size * parts):
            raise UsageError(
                f"batch size {config.batch_size} cannot be divided among {world_size} ranks x {parts} accumulation steps; "
                "expected a multiple of both"
            )
        if self.images < config.batch_size:
            raise InputError(
                f"the shards hold {self.images} images, fewer than one batch of {config.batch_size}; "
                f"use --batch-size {self.images} or less, or more shards"
            )
        self.notes = [*self.index.notes, *_cache_notes(self.index, config, self.plan)]
        self.steps_per_epoch = self.images / config.batch_size
        self.wait_seconds = 0.0
        self._batches = _Batches(self.index, self.plan, config, rank, world_size, parts)
        self._reuse = reuse and config.workers > 0 and not torch.cuda.is_available()
        self._first = start_step * parts

    def starting_at(self, step: int) -> "Stream":
        """Return the same stream, starting at another step; the step is its whole state."""
        moved = copy.copy(self)
        moved._first = step * self._batches.parts
        return moved

    def __iter__(self) -> Generator[Batch, None, None]:
        ring = self._batches.ring = self._new_ring()  # before the workers are forked: they write into it
        batches = loaded(
            self._batches,
            workers=self.config.workers,
            start=_set_up_worker,
            batch_size=None,  # an item is a whole batch already: nothing to collate
            sampler=_CountFrom(self._first),
            prefetch_factor=self.config.prefetch,
            pin_memory=torch.cuda.is_available(),
        )
        try:
            for number in itertools.count(self._first):
                began = time.perf_counter()
                batch = next(batches)
                self.wait_seconds += time.perf_counter() - began
                yield ring.with_pixels(batch, number) if ring else batch
        finally:
            # An error's traceback holds this frame: the workers must not wait for the garbage collector.
            batches.close()
            self._batches.reader.close()

    def _new_ring(self) -> Ring | None:
        if not self._reuse:
            return None
        # It holds as many batches as can be under way, and the two newest that were handed out.
        try:
            return Ring(self._batches.shapes(), self.config.workers * self.config.prefetch + 2)
        except (RuntimeError, OSError) as error:
            if (message := explained(error)) is None:
                raise
            raise InputError(message) from error


def _cache_notes(index: ShardSet, config: StreamConfig, plan: Plan) -> list[str]:
    """Return a note if the cache is too small for what is read at a time; otherwise nothing."""
    remote = sorted(size for size, fetched in zip(index.tar_bytes, index.is_remote.tolist(), strict=True) if fetched)
    if plan.all_shards:
        needed, what = sum(remote), "neighbours lie in all shards, which take"
    else:
        needed, what = sum(remote[-config.window :]), f"a shuffle window of {config.window} shards takes"
    if needed <= index.cache.limit:
        return []
    return [
        f"the cache {index.cache.folder} may have {index.cache.limit} bytes, and {what} {needed}: "
        f"shards will be fetched again and again (stream.cache_bytes, stream.window)"
    ]


class _CountFrom(Sampler[int]):
    """Gives first, first + 1, ... without end."""

    def __init__(self, first: int):
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first)


class _Batches(Dataset[Batch | InputError]):
    """Item n is this rank's n-th partial batch of the endless sequence, or the error that it met.

    Errors are items, because DataLoader would put the worker's traceback in front of their message.
    """

    def __init__(self, index: ShardSet, plan: Plan, config: StreamConfig, rank: int, world_size: int, parts: int):
        self.index, self.plan, self.config = index, plan, config
        self.order = Order(index.counts, config.seed, config.window)
        kept = Decoded(index, config.decoded_cache, config.decoded_bytes) if config.decoded_cache else None
        self.reader = Reader(index, kept)
        self.size = config.batch_size // (world_size * parts)
        self.rank, self.world_size, self.parts = rank, world_size, parts
        self.ring: Ring | None = None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a batch's pixels in memory, by cut: (..., S, S, 3)."""
        cuts = {name: cut for name, cut in self.plan.cuts.items() if not cut.again}
        return {name: (*cut.layout(self.size), cut.size, cut.size, 3) for name, cut in cuts.items()}

    def __getitem__(self, number: int) -> Batch | InputError:
        try:
            return self._batch(number)
        except (FetchError, ShardError) as error:
            return type(error)(str(error))  # without its references, which may not be picklable
        except UsageError as error:
            return UsageError(str(error))
        except InputError as error:
            return InputError(str(error))

    def _batch(self, number: int) -> Batch:
        step, part = divmod(number, self.parts)
        # The images of a part are the same for any world size, and so are its batch statistics over all ranks.
        first = step * self.config.batch_size + (part * self.world_size + self.rank) * self.size
        B, cuts = self.size, self.plan.cuts
        pixels = self.ring.place(number) if self.ring else {name: _pixels(shape) for name, shape in self.shapes().items()}
        draws = {name: np.empty((*cut.layout(B), DRAW_SIZE), np.float32) for name, cut in cuts.items()}
        windows = {name: np.empty((*cuts[name].layout(B), 4), np.int32) for name in pixels}
        facts = {name: np.empty((B, *shape), np.float32) for name, shape in self.plan.facts.items()}
        filled = np.empty(B, np.int32)
        samples: list[int] = []
        skipped: list[str] = []
        self.reader.near(*self.order.near(first), late=self.order.is_late(first))
        for b, position in enumerate(range(first, first + B)):
            sample, image = self._image_at(position, skipped)
            samples.append(sample)
            drawn, others = self._draw(sample, image, position, skipped)
            for name, group in cuts.items():
                # The entries of an image are at b of the first axis if its pictures are together, otherwise of the second.
                mine = (b,) if group.together else (slice(None), b)
                draws[name][mine] = drawn.draws[name]
                if group.again:
                    continue
                windows[name][mine] = drawn.windows[name]
                for n, out in enumerate(pixels[name][mine].numpy()):
                    self._cut(others.get((name, n), image), drawn.windows[name][n], out)
            for name, values in facts.items():
                values[b] = drawn.facts[name]
            filled[b] = drawn.filled
        return Batch(
            pixels={} if self.ring else channels_first(pixels),  # with a ring, the main process has them already
            cuts=cuts,
            draws={name: torch.from_numpy(values) for name, values in draws.items()},
            windows={name: torch.from_numpy(values) for name, values in windows.items()},
            facts={name: torch.from_numpy(values) for name, values in facts.items()},
            filled=torch.from_numpy(filled),
            positions=torch.arange(first, first + B),
            keys=[self.index.text("key", sample) for sample in samples],
            sources=[self.index.text("source", sample) for sample in samples],
            labels=[self.index.text("label", sample) for sample in samples],
            skipped=skipped,
        )

    def _draw(
        self, sample: int, image: np.ndarray, position: int, skipped: list[str]
    ) -> tuple[Drawn, dict[tuple[str, int], np.ndarray]]:
        """Return what the plan draws for an image, and the pixels of other images that it asks for, by (cut, picture)."""
        height, width = image.shape[:2]
        look = Look(sample=sample, boxes=self.index.boxes_of(sample), width=width, height=height)
        drawn = drawn_by(self.plan, look, view_generator(self.config.seed, position))
        others: dict[tuple[str, int], np.ndarray] = {}
        for picture, other in drawn.elsewhere.items():
            found = self._image(other, skipped)
            if found is None:
                drawn.windows |= drawn.instead
                return drawn, {}
            name, number = picture
            x, y, w, h = drawn.windows[name][number].tolist()
            if min(x, y) < 0 or min(w, h) < 1 or x + w > found.shape[1] or y + h > found.shape[0]:
                raise UsageError(
                    f"{type(self.plan).__name__}.draw gave for {name} the window {[x, y, w, h]} (x, y, w, h), not inside sample "
                    f"{other} of {found.shape[1]} x {found.shape[0]} pixels"
                )
            others[picture] = found
        return drawn, others

    def _cut(self, image: np.ndarray, box: np.ndarray, out: np.ndarray) -> None:
        cut(image, box, out, self.plan.interpolation, antialias=self.config.antialias)

    def _image_at(self, position: int, skipped: list[str]) -> tuple[int, np.ndarray]:
        """Return the sample at a position and its pixels; if it is bad and may be skipped, those of the next good one."""
        for step in range(_MOST_BAD):
            sample = self.order.sample(position + step)
            if (pixels := self._image(sample, skipped)) is not None:
                return sample, pixels
        raise InputError(f"{_MOST_BAD} samples in a row are bad, the last: {skipped[-1]}")

    def _image(self, sample: int, skipped: list[str]) -> np.ndarray | None:
        """Return the pixels of a sample; None, with a message in `skipped`, if it is bad and may be skipped."""
        try:
            return self.reader.image(sample)
        except (FetchError, ShardError):
            raise
        except InputError as error:
            if self.config.on_bad_sample == "raise":
                raise
            skipped.append(str(error))
            return None


def _pixels(shape: tuple[int, ...]) -> torch.Tensor:
    """Return an empty uint8 tensor, in a worker in memory shared with the main process, so that sending it copies nothing."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    shared: Any = torch.UntypedStorage
    pixels: Any = torch.empty(0, dtype=torch.uint8)
    return torch.as_tensor(pixels.set_(shared._new_shared(math.prod(shape)), 0, shape))


def _set_up_worker() -> None:
    """Prepare a worker process for decoding images."""
    # glibc returns blocks of this size to the system, and requests each page again, until a larger one was freed once:
    # 225 pages for each decoded image. With other libraries this line has no effect.
    np.empty(24 << 20, np.uint8)
    cv2.setNumThreads(0)  # its pool would not survive the fork
