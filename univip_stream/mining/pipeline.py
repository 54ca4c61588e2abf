"""Mining images: list the sources, cut them into shards, find the boxes."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from univip_stream import storage
from univip_stream.boxes import BoxFilter
from univip_stream.errors import InputError, UsageError
from univip_stream.images import MAX_PIXELS
from univip_stream.mining.job import Job, carry_out, digest, failures
from univip_stream.mining.output import Output
from univip_stream.mining.proposer import GROUND_TRUTH, IMPORTED, load_proposer, proposer_version
from univip_stream.mining.runner import Place
from univip_stream.mining.shard import ShardTask, mine_shard
from univip_stream.proposals import ENGINES
from univip_stream.shards.format import FORMAT, shard_name
from univip_stream.sources import Listing, SourceImage, list_sources
from univip_stream.sources.published import Match, Published

DEFAULT_SHARDS = 128
"""000.tar to 127.tar."""
FEWEST_IMAGES = 32
"""Images a shard holds at least, unless the number of shards is asked for: a shard is a unit of shuffling and transfer."""


@dataclass(frozen=True, kw_only=True)
class MiningConfig(Place):
    """What to mine, how, and where the work is done."""

    sources: tuple[str | Path, ...]
    """Folders of images, tars, WebDataset shards, lists, local or remote; several make one data set (COCO+)."""
    out: str | Path
    """Folder of the shards: local, or in an object store (`s3://bucket/folder`)."""
    annotations: tuple[str | Path, ...] = ()
    """COCO's annotation files, for folders that have none in `../annotations`."""
    num_shards: int | None = None
    """How many shards; None is 128, fewer where that leaves less than 32 images a shard."""
    proposals: str = "selective-search"
    """Engine, `none`, `ground-truth`, or module:function; not read where boxes are imported."""
    published: Published | None = None
    """Boxes to import instead of proposing any."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the engine."""
    seed: int = 0
    """Decides the random choices of engines that make any, such as `naive`."""
    filter: BoxFilter = BoxFilter()  # noqa: RUF009 - frozen
    """Which boxes stay."""
    max_pixels: int = MAX_PIXELS
    """Larger images are not decoded."""
    max_failures: str = "1%"
    """Share or number of images that may be unreadable or too large before the job stops."""
    retry_failed: bool = False
    """Mine images that failed again."""


@dataclass(frozen=True, kw_only=True)
class MiningReport:
    """What a job did."""

    manifest: dict[str, Any]
    """As written."""
    mined: int
    """Images mined now; the others were there."""
    failures: list[tuple[str, str, str]]
    """(source, status, reason) of images that are no sample."""
    ignored: dict[str, int]
    """Files that are no images by their name."""
    match: Match | None = None
    """How published boxes and images went together."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Images cut into shards."""

    listing: Listing
    """The images."""
    job: Job
    """What is to be done with them."""
    match: Match | None = None
    """How published boxes go together with them."""


def plan_job(config: MiningConfig) -> Plan:
    """List the sources and cut them into shards; write nothing.

    Raises:
        InputError, UsageError: sources, proposals or numbers that cannot be used.

    """
    published = config.published
    proposals = config.proposals if published is None else f"{IMPORTED}{published.format}"
    if published is None and proposals.startswith(IMPORTED):
        raise UsageError(f"--proposals {proposals} needs the file of boxes; use `univip-stream import boxes`")
    proposer = load_proposer(proposals, seed=config.seed, options=config.options)
    listing = list_sources(config.sources, annotations=config.annotations, with_boxes=proposals == GROUND_TRUTH)
    match = None if published is None else published.match(listing)
    if proposals in ENGINES:
        # Wrong options show before any work, and compiled code is in its cache before many workers ask for it.
        proposer(np.zeros((64, 64, 3), np.uint8))
    count = len(listing)
    wanted = config.num_shards or min(DEFAULT_SHARDS, max(1, count // FEWEST_IMAGES))
    shards = min(wanted, count)
    parameters = {
        "sources": listing.sources,
        "images": count,
        "listing": listing.digest,
        "num_shards": shards,
        "proposals": proposals,
        "proposals_version": proposer_version(proposals),
        "options": config.options,
        "seed": config.seed,
        **asdict(config.filter),
        "max_pixels": config.max_pixels,
        **({} if published is None else {"imported": published.digest}),
    }
    fingerprint = digest([FORMAT, parameters])
    cuts = [count * number // shards for number in range(shards + 1)]
    names = [shard_name(number, shards) for number in range(shards)]
    out = _output(config)

    def ready(image: SourceImage) -> SourceImage:
        # Workers of a cluster were started in other folders.
        there = replace(image, path=storage.absolute(image.path))
        return there if published is None else replace(there, boxes=published.boxes_of(image))

    def task(number: int, keep: bool) -> ShardTask:
        # Images are looked up when their turn comes, so that waiting shards hold none.
        first, last = cuts[number], cuts[number + 1]
        return ShardTask(
            out=out.location,
            name=names[number],
            first=first,
            images=[ready(image) for image in listing.slice(first, last)],
            fingerprint=fingerprint,
            proposals=proposals,
            options=config.options,
            seed=config.seed,
            filter=config.filter,
            max_pixels=config.max_pixels,
            keep=keep,
        )

    job = Job(
        out=out,
        names=names,
        counts=[last - first for first, last in pairwise(cuts)],
        function=mine_shard,
        task=task,
        parameters=parameters,
        fingerprint=fingerprint,
        facts={"classes": listing.classes, "ignored": dict(Counter(listing.ignored)), **_imported(match)},
        place=config,
        retry_failed=config.retry_failed,
        allowed=allowed_failures(config.max_failures, count),
        allowed_text=config.max_failures,
    )
    return Plan(listing=listing, job=job, match=match)


def mine(
    config: MiningConfig,
    *,
    planned: Callable[[Plan, int], None] = lambda plan, finished: None,
    progress: Callable[[int], None] = lambda images: None,
) -> MiningReport:
    """Mine sources into shards; called again it keeps what is finished, and the bytes are the same.

    Args:
        config: what and how.
        planned: called once with the plan and the number of images in shards that are finished already.
        progress: called as images get done, with their number.

    Raises:
        InputError: sources without images, a folder with other shards, more failures than allowed.

    """
    plan = plan_job(config)
    with plan.listing:
        manifest, mined = carry_out(plan.job, planned=lambda finished: planned(plan, finished), progress=progress)
    return MiningReport(
        manifest=manifest,
        mined=mined,
        failures=failures(plan.job.out, manifest["shards"]),
        ignored=plan.listing.ignored,
        match=plan.match,
    )


def allowed_failures(text: str, images: int) -> float:
    """How many images may fail: `1%` of `images`, or a plain number."""
    number, percent = (text[:-1], True) if text.endswith("%") else (text, False)
    try:
        value = float(number)
    except ValueError:
        value = -1
    if not value >= 0 or (percent and value > 100):
        raise UsageError(f"--max-failures is {text!r}; expected a share such as 1% or a number of images such as 25")
    return value / 100 * images if percent else value


def _imported(match: Match | None) -> dict[str, Any]:
    if match is None:
        return {}
    return {
        "imported": {
            "entries": match.entries,
            "images_without_entry": len(match.without_entry),  # each is a row with that reason
            "entries_without_image": len(match.without_image),
            "such_as": match.without_image[:100],
        }
    }


def _output(config: MiningConfig) -> Output:
    out = Output(config.out)
    for source in config.sources:
        if storage.is_remote(source):
            continue
        inside = os.path.realpath(source)
        if not out.remote and os.path.commonpath([os.path.realpath(out.location), inside]) == inside:
            raise InputError(f"--out {config.out} lies in the source {source}; choose a folder outside of it")
    return out
