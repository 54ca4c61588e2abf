"""Algorithm 1: draw two random views whose overlap contains K instances.

The printed algorithm has three errata that are corrected here (docs/method.md): its containment test is reversed, its count
must be reset at each try, and its order (x, y, h, w) mixes the axes.

Shape letters: N boxes of the image, K instances, T tries, C crops. Boxes are x, y, w, h in pixels of the image.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from univip_stream.boxes import naive_boxes
from univip_stream.errors import UsageError
from univip_stream.shapes import Float32, Int32

_CROP_TRIES = 10
"""Number of shapes that a random resized crop tries before it falls back to a central one, as in torchvision."""


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """Settings of the views and instances."""

    overlap: bool = True
    """Draw pairs of views until their overlap holds K boxes (Algorithm 1). False takes any two views. Source: UniVIP, Table
    8 (a)."""
    regions: Literal["mined", "naive", "naive-candidates", "none"] = "mined"
    """Origin of the instances: mined takes the boxes of the shards; naive random ones inside whatever overlap comes;
    naive-candidates puts random boxes in the places of the shards', as many as an image has, so that Algorithm 1 chooses views by
    them; and none goes with views.instances=0. Source: UniVIP, Table 8 (b)."""
    scene_size: int = 224
    """Side of a scene view, in pixels. Source: BYOL."""
    instance_size: int = 96
    """Side of an instance, in pixels. Source: UniVIP, section 3.3."""
    instances: int = 4
    """K, the instances taken from an image; 0 for none. Source: UniVIP, Table 8 (c)."""
    tries: int = 20
    """Number of pairs of views that Algorithm 1 draws before it takes the best of them. Source: UniVIP, Table 9."""
    min_scale: int = 64
    """Shortest side of an overlap, and of the random boxes that fill one that holds fewer than K boxes, in pixels of the
    stored image. Source: UniVIP, section A.2."""
    max_aspect: float = 3.0
    """Longest side over shortest of the random boxes that fill an overlap. Source: UniVIP, section A.2."""
    max_iou: float = 0.5
    """Greatest intersection over union of a random box that fills an overlap with another box. Source: UniVIP, section A.2."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest area of a view as a share of the image's. Source: BYOL."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and greatest width over height of a view before it is made square. Source: BYOL."""
    crop_outside: Literal["again", "clip"] = "again"
    """What becomes of a drawn shape that does not fit into the image: again draws another, clip cuts it to the image's sides, so
    that views are larger, and wider ones of wide images. Source: again is torchvision's and ORL's, clip is BYOL's code's."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Interpolation with which a view is resized. Source: ORL has bilinear on COCO, BYOL bicubic on ImageNet."""
    instance_augmentations: Literal[1, 2] = 2
    """2 gives each network its own augmentation of an instance, 1 gives both the same. Source: ours; UniVIP does not say, and
    docs/method.md has what was measured."""
    instance_draws: Literal["in-order", "either"] = "in-order"
    """View whose chances of blur and solarization apply to an instance: in-order takes the first view's (and the
    second view's for a second augmentation), either draws one of the two for every augmentation of every instance. Source:
    ours; UniVIP does not say."""
    whole_first: bool = False
    """Make the first view the whole image. Source: SoCo."""
    third_size: int = 0
    """Side of a third view, in pixels: the second view's window once more, at this size; 0 for none. Source: SoCo's V3."""
    box_jitter: float = 0.0
    """Greatest shift and change of size of a box in the first view, as a share of its sides; 0 for none. Source: SoCo has
    0.1."""
    box_jitter_p: float = 0.5
    """Chance that a box is jittered at all. Source: SoCo's code."""
    pairs: str | None = None
    """The file of pairs that `univip-stream retrieve` wrote: adds four patches of views.instance_size, two of a region and
    two of a pair of regions. Source: ORL."""

    def __post_init__(self) -> None:
        for name, least in (
            ("scene_size", 8),
            ("instance_size", 8),
            ("instances", 0),
            ("tries", 1),
            ("min_scale", 1),
        ):
            if getattr(self, name) < least:
                raise UsageError(f"views.{name} is {getattr(self, name)}; expected at least {least}")
        for name in ("scene_size", "instance_size"):
            if getattr(self, name) > 4096:
                raise UsageError(f"views.{name} is {getattr(self, name)}; expected at most 4096 pixels")
        for name, allowed in (
            ("regions", ("mined", "naive", "naive-candidates", "none")),
            ("crop_outside", ("again", "clip")),
            ("interpolation", ("bilinear", "bicubic")),
            ("instance_augmentations", (1, 2)),
            ("instance_draws", ("in-order", "either")),
        ):
            if getattr(self, name) not in allowed:
                raise UsageError(f"views.{name} is {getattr(self, name)!r}; expected one of {', '.join(map(str, allowed))}")
        if self.regions == "none" and self.instances:
            raise UsageError(f'views.regions is "none" but views.instances is {self.instances}; set views.instances to 0')
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise UsageError(f"views.crop_scale is {self.crop_scale}; expected two shares of the area, 0 < low <= high <= 1")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1] < math.inf:
            raise UsageError(f"views.crop_ratio is {self.crop_ratio}; expected 0 < low <= high")
        if not 1 <= self.max_aspect < math.inf:
            raise UsageError(f"views.max_aspect is {self.max_aspect}; expected at least 1 (longest side over shortest)")
        if not 0 <= self.max_iou <= 1:
            raise UsageError(f"views.max_iou is {self.max_iou}; expected 0 to 1")
        if self.third_size != 0 and not 8 <= self.third_size <= 4096:
            raise UsageError(f"views.third_size is {self.third_size}; expected 8 to 4096 pixels, or 0 for no third view")
        if not 0 <= self.box_jitter <= 0.5:
            raise UsageError(f"views.box_jitter is {self.box_jitter}; expected a share of the box's sides, 0 to 0.5")
        if not 0 <= self.box_jitter_p <= 1:
            raise UsageError(f"views.box_jitter_p is {self.box_jitter_p}; expected a chance, 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Views:
    """Views and instances of one image."""

    scenes: Int32[np.ndarray, "2 4"]
    """The two views."""
    instances: Int32[np.ndarray, "K 4"]
    """The instances, all inside the overlap (or, without overlap, anywhere)."""
    overlap: Int32[np.ndarray, "4"]
    """Overlap of the two views; zeros if there is none."""
    filled: int
    """Number of instances that are random boxes."""
    tries: int
    """Number of pairs of views that were drawn."""


def draw_views(
    boxes: Int32[np.ndarray, "N 4"], width: int, height: int, rng: np.random.Generator, config: ViewConfig
) -> Views:
    """Draw two views and K instances (UniVIP, Algorithm 1).

    Pairs of random resized crops are drawn until the overlap holds at least K boxes; K of those are taken at random. If no
    pair does, the first with most boxes is taken, and random boxes inside its overlap fill up to K. An overlap with a side
    under `min_scale` does not count, unless the image itself is that small. It always ends, with exactly K instances.

    Args:
        boxes: boxes inside the image; there may be none.
        width: width of the image, pixels.
        height: height of the image, pixels.
        rng: random generator.
        config: settings.

    """
    K = config.instances
    mined = boxes if config.regions == "mined" else boxes[:0]
    if config.regions == "naive-candidates":
        mined = naive_boxes(
            (0, 0, width, height), len(boxes), rng, min_scale=config.min_scale, max_aspect=config.max_aspect,
            max_iou=config.max_iou,
        )  # fmt: skip
    if not config.overlap:
        scenes_24 = pairs_of_crops(rng, 1, width, height, config)[0]
        region = np.array([0, 0, width, height], np.int32)
        instances, filled = _choose_instances(mined, region, K, rng, config)
        overlap = overlaps_of(scenes_24[None])[0]
        overlap *= overlap[2:].all()
        return Views(scenes=scenes_24, instances=instances, overlap=overlap, filled=filled, tries=1)

    # All tries at once: numbers are cheaper than loops, and the first that succeeds is the one a loop would have taken.
    crops_T24 = pairs_of_crops(rng, config.tries, width, height, config)
    overlaps_T4 = overlaps_of(crops_T24)
    held_TN = _inside(mined, overlaps_T4)
    counts_T = held_TN.sum(axis=1)
    large_T = (overlaps_T4[:, 2] >= min(config.min_scale, width)) & (overlaps_T4[:, 3] >= min(config.min_scale, height))
    enough_T = large_T & (counts_T >= K)
    if enough_T.any():
        chosen, tries = int(enough_T.argmax()), int(enough_T.argmax()) + 1
    else:
        tries = config.tries
        if large_T.any():
            chosen = int(np.where(large_T, counts_T, -1).argmax())
        else:
            chosen = int((overlaps_T4[:, 2].astype(np.int64) * overlaps_T4[:, 3]).argmax())
    scenes_24, overlap_4, held_N = crops_T24[chosen], overlaps_T4[chosen], held_TN[chosen]
    if not overlap_4[2] * overlap_4[3]:
        # No pair overlaps: the same window twice does, and still gives two differently augmented views.
        scenes_24 = np.stack([scenes_24[0], scenes_24[0]])
        overlap_4 = scenes_24[0]
        held_N = _inside(mined, overlap_4[None])[0]
    instances, filled = _choose_instances(mined[held_N], overlap_4, K, rng, config)
    return Views(scenes=scenes_24, instances=instances, overlap=overlap_4, filled=filled, tries=tries)


def jitter_boxes(
    boxes: Int32[np.ndarray, "K 4"], region: Int32[np.ndarray, "4"], rng: np.random.Generator, config: ViewConfig
) -> Float32[np.ndarray, "K 4"]:
    """Shift and resize boxes at random, as in SoCo (arXiv:2106.02637), and clip them to the region.

    With probability `box_jitter_p`, x and w of a box change by r w, and y and h by r h, each r uniform between -`box_jitter`
    and `box_jitter`. At least a pixel of a box remains.
    """
    shifts = rng.uniform(-config.box_jitter, config.box_jitter, (len(boxes), 4))
    shifts *= rng.random((len(boxes), 1)) < config.box_jitter_p
    sides = boxes[:, [2, 3, 2, 3]].astype(np.float64)
    moved = boxes + shifts * sides
    low, high = region[:2], region[:2] + region[2:]
    near = np.clip(moved[:, :2], low, high - 1)
    far = np.clip(moved[:, :2] + moved[:, 2:], near + 1, high)
    return np.concatenate([near, far - near], axis=1).astype(np.float32)


def _choose_instances(
    candidates: np.ndarray, region: np.ndarray, K: int, rng: np.random.Generator, config: ViewConfig
) -> tuple[np.ndarray, int]:
    """Choose K instances: random candidates, then random boxes in the region. Returns (instances, number of random boxes)."""
    if len(candidates) >= K:
        return candidates[rng.permutation(len(candidates))[:K]].astype(np.int32), 0
    missing = K - len(candidates)
    filling = naive_boxes(
        region,
        missing,
        rng,
        min_scale=config.min_scale,
        max_aspect=config.max_aspect,
        max_iou=config.max_iou,
        avoid=candidates,
    )
    return np.concatenate([candidates.astype(np.int32), filling]), missing


def pairs_of_crops(rng: np.random.Generator, tries: int, width: int, height: int, config: ViewConfig) -> np.ndarray:
    """Draw the pairs of views, int32 T x 2 x 4, that `draw_views` tries with a generator in the same state."""
    crops_T24 = random_crops(
        rng, 2 * tries, width, height, config.crop_scale, config.crop_ratio, clip=config.crop_outside == "clip"
    ).reshape(tries, 2, 4)
    if config.whole_first:
        crops_T24[:, 0] = 0, 0, width, height
    return crops_T24


def random_crops(
    rng: np.random.Generator,
    count: int,
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    *,
    clip: bool = False,
) -> Int32[np.ndarray, "C 4"]:
    """Draw random resized crops, distributed as those of torchvision's RandomResizedCrop.get_params; with `clip` as BYOL's.

    Args:
        rng: random generator.
        count: C.
        width: width of the image, pixels.
        height: height of the image, pixels.
        scale: smallest and largest area as a share of the image's.
        ratio: least and greatest width over height.
        clip: whether a shape that does not fit is cut to the image's sides, instead of drawn again (BYOL's code,
            `_decode_and_random_crop` in byol/utils/dataset.py of deepmind-research).

    Returns:
        x, y, w, h in pixels of the image.

    """
    numbers = rng.random((count, _CROP_TRIES, 2))
    low, high = scale
    area = width * height * (low + (high - low) * numbers[..., 0])
    log_low, log_high = np.log(ratio)
    shape = np.exp(log_low + (log_high - log_low) * numbers[..., 1])
    w = np.round(np.sqrt(area * shape)).astype(np.int64)
    h = np.round(np.sqrt(area / shape)).astype(np.int64)
    if clip:
        w, h = np.minimum(w, width), np.minimum(h, height)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.argmax(axis=1)
    rows = np.arange(count)
    places = rng.random((count, 2))
    w, h, fitting = w[rows, first], h[rows, first], fits[rows, first]
    x = (places[:, 0] * (width - w + 1)).astype(np.int64)
    y = (places[:, 1] * (height - h + 1)).astype(np.int64)
    crops = np.stack([x, y, w, h], axis=1)
    if not fitting.all():
        crops[~fitting] = _central_crop(width, height, ratio)
    return crops.astype(np.int32)


def _central_crop(width: int, height: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """Return the largest central crop of an allowed shape, which torchvision uses if no random one fits."""
    low, high = ratio
    w, h = width, height
    if width / height < low:
        h = max(1, min(height, round(width / low)))
    elif width / height > high:
        w = max(1, min(width, round(height * high)))
    return (width - w) // 2, (height - h) // 2, w, h


def overlaps_of(crops_T24: np.ndarray) -> np.ndarray:
    """Return the overlap of the two crops of each try, int32 T x 4; width and height are 0 if there is none."""
    near = crops_T24[..., :2].max(axis=1)
    far = (crops_T24[..., :2] + crops_T24[..., 2:]).min(axis=1)
    size = np.maximum(far - near, 0)
    return np.concatenate([near, np.where(size.all(axis=1, keepdims=True), size, 0)], axis=1).astype(np.int32)


def _inside(boxes_N4: np.ndarray, regions_T4: np.ndarray) -> np.ndarray:
    """Return whether each box is wholly inside each region, bool T x N."""
    near, far = boxes_N4[None, :, :2], (boxes_N4[:, :2] + boxes_N4[:, 2:])[None]
    low, high = regions_T4[:, None, :2], (regions_T4[:, :2] + regions_T4[:, 2:])[:, None]
    held: np.ndarray = ((near >= low) & (far <= high)).all(axis=2)
    return held
