"""Look at some shards: every number, and the pictures that are to be shown."""

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
from univip_stream.report.choose import MOST_FAILURES, Mark, choose
from univip_stream.report.numbers import BoxNumbers, Distribution, FirstEpoch, distribution
from univip_stream.report.rows import Outcomes, mining_facts, read_outcomes
from univip_stream.report.show import RangeReader, Shown, show
from univip_stream.shards import ShardIndex, expand_shards, open_index
from univip_stream.shards.cache import Cache
from univip_stream.views import ViewConfig

MOST_DRAWN = 10_000
"""Images for which Algorithm 1 is drawn to count what it fills; beyond them, so many at random."""


@dataclass(frozen=True, kw_only=True)
class Picked:
    """An image to show, and why."""

    sample: int
    """Its number in the index."""
    marks: list[Mark]
    """Why."""
    shown: Shown | None
    """What is cut out of it; None where it cannot be read."""
    problem: str | None
    """Why it cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that is said and shown of some shards."""

    specs: list[str]
    """As the user named them."""
    seed: int
    """Of the sample and of the views."""
    index: ShardIndex
    """Of the shards."""
    outcomes: Outcomes
    """What became of every image."""
    facts: list[tuple[str, str]]
    """How they were mined."""
    distributions: list[Distribution]
    """Of all boxes, and what Algorithm 1 filled."""
    drawn: int
    """Images for which Algorithm 1 was drawn."""
    filled: int
    """Instances of those that are random boxes."""
    views: ViewConfig
    """Whose views."""
    augment: AugmentConfig
    """Whose augmentations."""
    picked: list[Picked]
    """What is shown; what stands out first."""

    @property
    def filled_share(self) -> float:
        """Share of the instances that are random boxes, 0 to 1."""
        return self.filled / max(1, self.drawn * self.views.instances)

    def as_json(self) -> dict[str, Any]:
        """The numbers, for machines."""
        index = self.index
        return {
            "shards": len(index.shards),
            "bytes": sum(index.tar_bytes),
            "images": self.outcomes.images,
            "samples": len(index),
            "boxes": len(index.boxes),
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


def look(
    shards: str | Path | Sequence[str | Path],
    *,
    samples: int = 48,
    seed: int = 0,
    pictures: bool = True,
    cache: Cache | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Read every index of some shards, and of a few images the pixels.

    Args:
        shards: any spec: `shards/<000..127>.tar`, a glob, a folder, several in a list; local or remote.
        samples: images taken at random, beside those that stand out.
        seed: of the random choice, and of the views: those of a run with the same seed, in its first epoch.
        pictures: read and cut the images; False gives the numbers alone.
        cache: where remote indexes come to; None for the default one.
        max_pixels: larger images of other programs' shards are left out; those that we mined are read as they were mined.
        progress: called with (images cut, images to cut).

    Raises:
        InputError: shards that are missing or broken, by name. A single image that cannot be read is shown as such.

    """
    named = [shards] if isinstance(shards, str | Path) else list(shards)
    index = open_index(expand_shards(named), cache, max_pixels=max_pixels)
    views, augment = ViewConfig(), AugmentConfig()
    outcomes = read_outcomes(index, MOST_FAILURES)
    numbers = BoxNumbers(index)
    epoch = FirstEpoch(index, seed, views)
    looked_at = np.arange(len(index))
    if len(index) > MOST_DRAWN:
        looked_at = np.sort(np.random.default_rng(seed).permutation(len(index))[:MOST_DRAWN])
    filled = epoch.filled(looked_at)
    marks = choose(index, numbers, looked_at, filled, views.instances, samples=samples, seed=seed)
    in_numbers = distribution(filled, f"Instances filled at random, of {views.instances} an image", "images", whole=True)
    return Report(
        specs=[str(spec) for spec in named],
        seed=seed,
        index=index,
        outcomes=outcomes,
        facts=mining_facts(index),
        distributions=[*numbers.distributions(), in_numbers],
        drawn=len(looked_at),
        filled=int(filled.sum()),
        views=views,
        augment=augment,
        picked=_pictures(epoch, augment, marks, progress) if pictures else [],
    )


def _pictures(
    epoch: FirstEpoch, augment: AugmentConfig, marks: dict[int, list[Mark]], progress: Callable[[int, int], None]
) -> list[Picked]:
    """The chosen images, read and cut; those that cannot be read come first."""
    reader = RangeReader(epoch.index)

    def one(sample: int) -> Picked:
        try:
            return Picked(sample=sample, marks=marks[sample], shown=show(reader, epoch, augment, sample), problem=None)
        except InputError as error:
            damaged = Mark(kind="damaged", text="cannot be read")
            return Picked(sample=sample, marks=[damaged, *marks[sample]], shown=None, problem=str(error))

    picked = []
    # Threads, because remote images are waited for; each does its own arithmetic on one core.
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
