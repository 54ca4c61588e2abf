"""Collect the report on some shards: all numbers, and the images to show with their crops."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from univip_stream.augment import AugmentConfig
from univip_stream.errors import InputError
from univip_stream.images import MAX_PIXELS
from univip_stream.machine import usable_cpus
from univip_stream.report.choose import MOST_FAILURES, MOST_NO_BOXES, Mark, choose, some
from univip_stream.report.crops import ImageCrops, RangeReader, crop_image
from univip_stream.report.numbers import Distribution, FirstEpoch, distribution
from univip_stream.report.rows import Outcomes, mining_facts, read_outcomes
from univip_stream.report.survey import survey
from univip_stream.shards import ShardSet, expand_shards, open_shards
from univip_stream.shards.cache import Cache
from univip_stream.views import ViewConfig

MOST_DRAWN = 10_000
"""Images for which Algorithm 1 is drawn to count filled instances; of larger sets, this many at random."""


@dataclass(frozen=True, kw_only=True)
class Picked:
    """An image to show, with the reasons."""

    sample: int
    """Number in the index."""
    marks: list[Mark]
    """Reasons for showing it."""
    crops: ImageCrops | None
    """Its views and instances; None if the image cannot be read."""
    problem: str | None
    """The reason, if the image cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All numbers and images of a report on some shards."""

    specs: list[str]
    """Shards as the user named them."""
    seed: int
    """Seed of the random sample and of the views."""
    index: ShardSet
    """The shards."""
    boxes: int
    """Number of boxes."""
    outcomes: Outcomes
    """Status of every image, with reasons."""
    facts: list[tuple[str, str]]
    """(name, value): how the shards were mined."""
    distributions: list[Distribution]
    """Distributions over all boxes, and of the instances that Algorithm 1 filled."""
    drawn: int
    """Images for which Algorithm 1 was drawn."""
    filled: int
    """Number of their instances that are random boxes."""
    views: ViewConfig
    """Settings of the views."""
    augment: AugmentConfig
    """Settings of the augmentations."""
    picked: list[Picked]
    """Images to show; those that stand out come first."""

    @property
    def filled_share(self) -> float:
        """Return the share of the instances that are random boxes, 0 to 1."""
        return self.filled / max(1, self.drawn * self.views.instances)

    def as_json(self) -> dict[str, Any]:
        """Return the numbers as a dictionary for JSON."""
        index = self.index
        return {
            "shards": len(index.shards),
            "bytes": sum(index.tar_bytes),
            "images": self.outcomes.images,
            "samples": len(index),
            "boxes": self.boxes,
            "by_status": self.outcomes.by_status,
            "notes": index.notes,
            "seed": self.seed,
            "views_drawn": self.drawn,
            "filled_share": round(self.filled_share, 6),
            "distributions": {found.name: found.as_json() for found in self.distributions},
            "failures": [
                {"key": f.key, "source": f.source, "status": f.status, "reason": f.reason} for f in self.outcomes.failures
            ],
            "shown": [
                {
                    "key": index.text("key", picked.sample),
                    "source": index.text("source", picked.sample),
                    "why": [mark.text for mark in picked.marks],
                    **({"problem": picked.problem} if picked.problem else {}),
                }
                for picked in self.picked
            ],
        }


def build_report(
    shards: str | Path | Sequence[str | Path],
    *,
    samples: int = 48,
    seed: int = 0,
    pictures: bool = True,
    cache: Cache | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Read every index of some shards, and the pixels of a few images.

    Args:
        shards: any spec: `shards/<000..127>.tar`, a glob, a folder, several in a list; local or remote.
        samples: images taken at random, beside those that stand out.
        seed: seed of the random choice, and of the views: those of a run with the same seed, in its first epoch.
        pictures: whether to read and crop the images; False gives the numbers alone.
        cache: keeps remote indexes; None for the default one.
        max_pixels: larger images of other programs' shards are left out; images in our own shards are read at any size.
        progress: called with (images cropped, images to crop).

    Raises:
        InputError: shards are missing or broken; the message names them. A single image that cannot be read is shown as such.

    """
    named = [shards] if isinstance(shards, str | Path) else list(shards)
    index = open_shards(expand_shards(named), cache, max_pixels=max_pixels)
    views, augment = ViewConfig(), AugmentConfig()
    found = survey(index, MOST_NO_BOXES)
    epoch = FirstEpoch(index, seed, views)
    looked_at = some(len(index), MOST_DRAWN, seed) if len(index) > MOST_DRAWN else np.arange(len(index))
    filled = epoch.filled(looked_at)
    marks = choose(index, found, looked_at, filled, views.instances, samples=samples, seed=seed)
    in_numbers = distribution(filled, f"Instances filled at random, of {views.instances} an image", "images", whole=True)
    return Report(
        specs=[str(spec) for spec in named],
        seed=seed,
        index=index,
        outcomes=read_outcomes(index, MOST_FAILURES, marks),
        boxes=found.boxes,
        facts=mining_facts(index),
        distributions=[*found.distributions, in_numbers],
        drawn=len(looked_at),
        filled=int(filled.sum()),
        views=views,
        augment=augment,
        picked=_pictures(epoch, augment, marks, progress) if pictures else [],
    )


def _pictures(
    epoch: FirstEpoch, augment: AugmentConfig, marks: dict[int, list[Mark]], progress: Callable[[int, int], None]
) -> list[Picked]:
    """Read and crop the chosen images; those that cannot be read come first."""
    reader = RangeReader(epoch.index)
    epoch.find(marks)

    def one(sample: int) -> Picked:
        try:
            return Picked(sample=sample, marks=marks[sample], crops=crop_image(reader, epoch, augment, sample), problem=None)
        except InputError as error:
            damaged = Mark(kind="damaged", text="cannot be read")
            return Picked(sample=sample, marks=[damaged, *marks[sample]], crops=None, problem=str(error))

    picked = []
    # Threads, because remote images take time to arrive; each thread computes on one core.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(min(8, usable_cpus())) as pool:
            for found in pool.map(one, marks):
                picked.append(found)
                progress(len(picked), len(marks))
    finally:
        torch.set_num_threads(threads)
    return sorted(picked, key=lambda found: found.problem is None)
