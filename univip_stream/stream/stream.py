"""The stream of batches: global batch b is images b*B to (b+1)*B of the endless sequence, whoever reads it.

What resumes is one number, the step. World size, workers and prefetch decide who does the work, never what it is.
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

from univip_stream import augment as augmentation
from univip_stream.augment import AugmentConfig
from univip_stream.errors import InputError, UsageError
from univip_stream.shards import ShardIndex, expand_shards, open_index
from univip_stream.shards.cache import DEFAULT_BYTES, Cache, FetchError
from univip_stream.storage import is_remote
from univip_stream.stream import decoded
from univip_stream.stream.batch import Batch
from univip_stream.stream.cut import cut
from univip_stream.stream.decoded import Decoded
from univip_stream.stream.order import Order, view_generator
from univip_stream.stream.pairs import Pairs
from univip_stream.stream.reader import Reader
from univip_stream.stream.ring import Ring
from univip_stream.views import ViewConfig, draw_views, jitter_boxes
from univip_stream.workers import explained, loaded

_NO_PIXELS = torch.empty((1, 1, 0, 0, 3), dtype=torch.uint8)
_STAND_INS = 100
"""Images that may be tried in a bad one's place before the data is called hopeless."""


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """How to read."""

    batch_size: int
    """Images of a global batch, over all ranks and accumulation steps."""
    seed: int = 0
    """Of order, views and augmentation."""
    workers: int = 2
    """Processes that read and cut for this rank; 0 does it in the training process."""
    prefetch: int = 2
    """Batches each worker has ready."""
    window: int = 16
    """Shards whose samples are shuffled together."""
    antialias: bool = True
    """Resize as Pillow does when shrinking. False is faster and rougher."""
    cache: str | None = None
    """Folder that remote shards come to, on a local disk; None is the user's cache folder."""
    cache_bytes: int = DEFAULT_BYTES
    """Bound of that folder. Room for two windows of shards is what keeps the reading from waiting."""
    decoded_cache: str | None = None
    """Folder on a local disk in which decoded images are kept, as the first epoch passes; None keeps none."""
    decoded_bytes: int = decoded.DEFAULT_BYTES
    """Bound of what these shards take there; COCO's train2017 is 108 GB."""
    on_bad_sample: Literal["raise", "skip"] = "raise"
    """What to do about a sample whose bytes changed: stop, or take the next image of the order in its place and say so."""

    def __post_init__(self) -> None:
        for name, least in (
            ("batch_size", 1),
            ("workers", 0),
            ("prefetch", 1),
            ("window", 1),
            ("seed", 0),
            ("cache_bytes", 1),
            ("decoded_bytes", 0),
        ):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if self.seed >= 1 << 63:
            raise UsageError(f"seed is {self.seed}; expected less than 2 ** 63")
        if self.on_bad_sample not in ("raise", "skip"):
            raise UsageError(f"on_bad_sample is {self.on_bad_sample!r}; expected raise or skip")


class Stream:
    """An endless iterable of this rank's batches, from any step on.

    Args:
        shards: any spec of `expand_shards`, or an index opened before.
        views: which views to cut.
        augment: whose numbers to draw for them.
        config: how to read.
        rank: which slice of each global batch.
        world_size: how many slices.
        start_step: the first global batch; the state to resume from.
        parts: batches each step's slice is cut into, one after the other (gradient accumulation).
        reuse: let workers write pixels into memory that they used before: a batch's pixels are then good until the batch after
            the next is asked for. Fresh memory costs the system a fifth of a decode an image. With a GPU nothing is reused,
            because batches are copied to page-locked memory in the background.

    Raises:
        InputError: shards that are missing or broken, or fewer images than a batch.
        UsageError: a batch that ranks and parts do not divide.

    """

    def __init__(
        self,
        shards: str | list[str] | ShardIndex,
        views: ViewConfig,
        augment: AugmentConfig,
        config: StreamConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        parts: int = 1,
        reuse: bool = False,
    ):
        if isinstance(shards, ShardIndex):
            self.index = shards
        else:
            self.index = open_index(expand_shards(shards), Cache(config.cache, config.cache_bytes))
        self.config = config
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
        self.notes = [*self.index.notes, *_small_cache(self.index, config, views)]
        self.steps_per_epoch = self.images / config.batch_size
        self.wait_seconds = 0.0
        self._batches = _Batches(self.index, views, augment, config, rank, world_size, parts)
        self.pairs = self._batches.pairs.fingerprint if self._batches.pairs else None
        """SHA-256 of the file of pairs; None where none is used."""
        self._reuse = reuse and config.workers > 0 and not torch.cuda.is_available()
        self._first = start_step * parts

    def starting_at(self, step: int) -> "Stream":
        """The same stream from another step on; its state is nothing but this number."""
        moved = copy.copy(self)
        moved._first = step * self._batches.parts
        return moved

    def __iter__(self) -> Generator[Batch, None, None]:
        ring = self._batches.ring = self._new_ring()  # before the workers are forked: they write into it
        batches = loaded(
            self._batches,
            workers=self.config.workers,
            start=_be_lean,
            batch_size=None,  # an item is a whole batch already: nothing to collate
            sampler=_From(self._first),
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
        # As many batches as can be under way, and the two newest that were given.
        try:
            return Ring(self._batches.shapes(), self.config.workers * self.config.prefetch + 2)
        except (RuntimeError, OSError) as error:
            if (words := explained(error)) is None:
                raise
            raise InputError(words) from error


def _small_cache(index: ShardIndex, config: StreamConfig, views: ViewConfig) -> list[str]:
    remote = sorted(size for size, shard in zip(index.tar_bytes, index.shards, strict=True) if is_remote(shard))
    if views.pairs:
        needed, what = sum(remote), "neighbours lie in all shards, which take"
    else:
        needed, what = sum(remote[-config.window :]), f"a shuffle window of {config.window} shards takes"
    if needed <= index.cache.limit:
        return []
    return [
        f"the cache {index.cache.folder} may have {index.cache.limit} bytes, and {what} {needed}: "
        f"shards will be fetched again and again (stream.cache_bytes, stream.window)"
    ]


class _From(Sampler[int]):
    """first, first + 1, ... without end."""

    def __init__(self, first: int):
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first)


class _Batches(Dataset[Batch | InputError]):
    """Item n is this rank's n-th part batch of the endless sequence, or what is wrong with it.

    An error is an item because DataLoader would lay a worker's traceback over its words.
    """

    def __init__(
        self,
        index: ShardIndex,
        views: ViewConfig,
        augment: AugmentConfig,
        config: StreamConfig,
        rank: int,
        world_size: int,
        parts: int,
    ):
        self.index, self.views, self.augment, self.config = index, views, augment, config
        self.order = Order(index.shard, config.seed, config.window)
        kept = Decoded(index, config.decoded_cache, config.decoded_bytes) if config.decoded_cache else None
        self.reader = Reader(index, kept)
        self.size = config.batch_size // (world_size * parts)
        self.rank, self.world_size, self.parts = rank, world_size, parts
        self.ring: Ring | None = None
        self.pairs = Pairs(views.pairs, index) if views.pairs else None

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of a batch's scenes, instances, third views and patches, as they lie in memory."""
        views, B = self.views, self.size
        scene, instance, third = views.scene_size, views.instance_size, views.third_size
        crops = views.instances if views.instance_crops else 0
        patches = 4 if self.pairs else 0
        crop = (instance, instance, 3)
        return (2, B, scene, scene, 3), (B, crops, *crop), (B, third, third, 3), (B, patches, *crop)

    def __getitem__(self, number: int) -> Batch | InputError:
        try:
            return self._batch(number)
        except FetchError as error:
            return FetchError(str(error))  # without what it holds on to, which may not travel between processes
        except InputError as error:
            return InputError(str(error))

    def _batch(self, number: int) -> Batch:
        step, part = divmod(number, self.parts)
        # A part's images are the same for any world size, and so are its batch statistics over all ranks.
        first = step * self.config.batch_size + (part * self.world_size + self.rank) * self.size
        views, B = self.views, self.size
        K, A = views.instances, views.instance_augmentations
        scenes, instances, third, patches = self.ring.place(number) if self.ring else map(_pixels, self.shapes())
        scene_draws = np.empty((2, B, augmentation.DRAW_SIZE), np.float32)
        instance_draws = np.empty((A, B, instances.shape[1], augmentation.DRAW_SIZE), np.float32)
        third_draws = np.zeros((B, augmentation.DRAW_SIZE), np.float32)
        patch_draws = np.empty((B, patches.shape[1], augmentation.DRAW_SIZE), np.float32)
        view_boxes = np.empty((2, B, K, 4), np.float32)
        scene_boxes, instance_boxes = np.empty((2, B, 4), np.int32), np.empty((B, K, 4), np.int32)
        filled = np.empty(B, np.int32)
        samples: list[int] = []
        skipped: list[str] = []
        self.reader.near(*self.order.near(first))
        for b, position in enumerate(range(first, first + B)):
            sample, image = self._image_at(position, skipped)
            samples.append(sample)
            rng = view_generator(self.config.seed, position)
            height, width = image.shape[:2]
            drawn = draw_views(self.index.boxes_of(sample), width, height, rng, views)
            scene_boxes[:, b], instance_boxes[b], filled[b] = drawn.scenes, drawn.instances, drawn.filled
            for view in range(2):
                scene_draws[view, b] = augmentation.draw(rng, self.augment, view)
                self._cut(image, drawn.scenes[view], scenes[view, b])
            for k in range(instances.shape[1]):
                self._cut(image, drawn.instances[k], instances[b, k])
                for a in range(A):
                    instance_draws[a, b, k] = augmentation.draw(rng, self.augment, a)
            # What not every method wants is drawn last: with and without it, the rest is the same.
            view_boxes[:, b] = drawn.instances
            if views.box_jitter:
                view_boxes[0, b] = jitter_boxes(drawn.instances, drawn.scenes[0], rng, views)
            if views.third_size:
                third_draws[b] = augmentation.draw(rng, self.augment, 1)
                self._cut(image, drawn.scenes[1], third[b])
            if self.pairs:
                other, regions = self.pairs.draw(sample, rng)
                like = self._image(other, skipped)
                if like is None:
                    like, regions[2:] = image, regions[:2]
                for n, pixels in enumerate((image, image, image, like)):
                    self._cut(pixels, regions[n], patches[b, n])
                    patch_draws[b, n] = augmentation.draw(rng, self.augment, n % 2)
        if self.ring:
            scenes, instances, third, patches = _NO_PIXELS, _NO_PIXELS, _NO_PIXELS[0], _NO_PIXELS  # the main process has them
        return Batch(
            scenes=scenes.permute(0, 1, 4, 2, 3),
            instances=instances.permute(0, 1, 4, 2, 3),
            scene_draws=torch.from_numpy(scene_draws),
            instance_draws=torch.from_numpy(instance_draws),
            scene_boxes=torch.from_numpy(scene_boxes),
            instance_boxes=torch.from_numpy(instance_boxes),
            view_boxes=torch.from_numpy(view_boxes),
            third=third.permute(0, 3, 1, 2),
            third_draws=torch.from_numpy(third_draws),
            patches=patches.permute(0, 1, 4, 2, 3),
            patch_draws=torch.from_numpy(patch_draws),
            filled=torch.from_numpy(filled),
            positions=torch.arange(first, first + B),
            keys=[self.index.text("key", sample) for sample in samples],
            sources=[self.index.text("source", sample) for sample in samples],
            labels=[self.index.text("label", sample) for sample in samples],
            skipped=skipped,
        )

    def _cut(self, image: np.ndarray, box: np.ndarray, out: torch.Tensor) -> None:
        cut(image, box, out.numpy(), self.views.interpolation, antialias=self.config.antialias)

    def _image_at(self, position: int, skipped: list[str]) -> tuple[int, np.ndarray]:
        """The sample at a position and its pixels; or, where it is bad and that is allowed, the next good one's."""
        for step in range(_STAND_INS):
            sample = int(self.order.samples(position + step, 1)[0])
            if (pixels := self._image(sample, skipped)) is not None:
                return sample, pixels
        raise InputError(f"{_STAND_INS} samples in a row are bad, the last: {skipped[-1]}")

    def _image(self, sample: int, skipped: list[str]) -> np.ndarray | None:
        """A sample's pixels; None, and why is noted, where it is bad and that is allowed."""
        try:
            return self.reader.image(sample)
        except FetchError:
            raise
        except InputError as error:
            if self.config.on_bad_sample == "raise":
                raise
            skipped.append(str(error))
            return None


def _pixels(shape: tuple[int, ...]) -> torch.Tensor:
    """An empty uint8 tensor; in a worker, in memory that it shares with the main process, so that sending it copies nothing."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    shared: Any = torch.UntypedStorage
    pixels: Any = torch.empty(0, dtype=torch.uint8)
    return torch.as_tensor(pixels.set_(shared._new_shared(math.prod(shape)), 0, shape))


def _be_lean() -> None:
    """How a worker begins."""
    # glibc gives blocks of this size back to the system, and asks for each page again, until it has seen a larger one freed:
    # 225 pages a decoded image. Elsewhere this line does nothing.
    np.empty(24 << 20, np.uint8)
    cv2.setNumThreads(0)  # its pool would not survive the fork
