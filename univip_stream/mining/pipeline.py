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
from univip_stream.boxes import FRAMES, STORED, UPRIGHT, BoxFilter
from univip_stream.errors import InputError, UsageError
from univip_stream.extras import require
from univip_stream.failures import MAX_FAILURES, allowed_failures
from univip_stream.formats.published import Match, Published
from univip_stream.images import MAX_PIXELS
from univip_stream.images import VERSION as IMAGES_VERSION
from univip_stream.machine import usable_cpus
from univip_stream.mining.adding import Addition, addition
from univip_stream.mining.job import UNSAID, Job, carry_out, digest, failures, parameters_there, settle
from univip_stream.mining.noticed import notes
from univip_stream.mining.output import Output
from univip_stream.mining.proposer import GROUND_TRUTH, IMPORTED, load_proposer, proposer_version
from univip_stream.mining.runner import Compute
from univip_stream.mining.shard import ShardTask, mine_shard
from univip_stream.proposals import ENGINES
from univip_stream.shards.format import CONTENT, shard_name
from univip_stream.shards.manifest import Manifest
from univip_stream.sources import Listing, SourceImage, list_sources

DEFAULT_SHARDS = 128
"""000.tar to 127.tar."""
FEWEST_IMAGES = 32
"""Images a shard holds at least, unless the number of shards is asked for: a shard is a unit of shuffling and transfer."""


@dataclass(frozen=True, kw_only=True)
class MiningConfig(Compute):
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
    box_frame: str | None = None
    """Of which picture a COCO file's boxes are, where EXIF turns it: `upright` or `stored`. None goes on as the folder has begun,
    else `upright`."""
    seed: int = 0
    """Decides the random choices of engines that make any, such as `naive`."""
    filter: BoxFilter = BoxFilter()  # noqa: RUF009 - frozen
    """Which boxes stay."""
    max_pixels: int = MAX_PIXELS
    """Larger images are not decoded."""
    max_failures: str = MAX_FAILURES
    """Share or number of images that may be unreadable or too large before the job stops."""
    retry_failed: bool = False
    """Mine images that failed again; of an adding, those of the new shards."""
    add: bool = False
    """Mine the images that the finished set in `out` has not, into new shards after its last."""
    web: storage.WebOptions = field(default_factory=storage.WebOptions)
    """How web servers are asked: `per_host` by all workers together, each asks one at least. Not part of what the set is."""


@dataclass(frozen=True, kw_only=True)
class MiningReport:
    """What a job did."""

    manifest: Manifest
    """As written."""
    mined: int
    """Images mined now; the others were there."""
    failures: list[tuple[str, str, str]]
    """(source, status, reason) of images that are no sample."""
    ignored: dict[str, int]
    """Files that are no images by their name."""
    match: Match | None = None
    """How published boxes and images went together."""
    notes: list[str] = field(default_factory=list)
    """Sentences about what was left out, and where boxes and images contradict each other."""
    addition: Addition | None = None
    """What was added to."""


@dataclass(frozen=True, kw_only=True)
class MiningPlan:
    """Images cut into shards."""

    listing: Listing
    """The images."""
    job: Job
    """What is to be done with them."""
    match: Match | None = None
    """How published boxes go together with them."""
    upright: bool | None = None
    """Whether a COCO file's boxes are taken as boxes of the upright image; None where boxes come from elsewhere."""
    addition: Addition | None = None
    """The set that they are added to; they are those that it has not."""


def plan_job(config: MiningConfig) -> MiningPlan:
    """List the sources and cut them into shards; write nothing.

    Raises:
        InputError, UsageError: sources, proposals or numbers that cannot be used.

    """
    storage.use_web(config.web)
    published = config.published
    proposals = config.proposals if published is None else f"{IMPORTED}{published.format.name}"
    if published is None and proposals.startswith(IMPORTED):
        raise UsageError(f"--proposals {proposals} needs the file of boxes; use `univip-stream import boxes`")
    proposer = load_proposer(proposals, seed=config.seed, options=config.options)
    listing = list_sources(config.sources, annotations=config.annotations, with_boxes=proposals == GROUND_TRUTH)
    out = _output(config)
    added: Addition | None = None
    if config.add:
        # What annotation files name and folders lack is no image that the set could get.
        with listing, listing.present() as there:
            added = addition(out, there)
        listing = added.listing
    else:
        listing = _counted_or_left(listing, config, out)
    match = None if published is None else published.match(listing)
    upright = _upright(config, proposals, out)
    if proposals in ENGINES:
        # Wrong options show before any work, and compiled code is in its cache before many workers ask for it.
        proposer(np.zeros((64, 64, 3), np.uint8))
    count = len(listing)
    usual = added.shards_for(count) if added else min(DEFAULT_SHARDS, max(1, count // FEWEST_IMAGES))
    shards = min(config.num_shards or usual, count)
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
        "images_version": IMAGES_VERSION,
        **({} if published is None else {"imported": published.boxes.digest}),
        **({"box_frame": UPRIGHT} if upright else {}),
        # Absent otherwise: sets that were made before there was a choice stay the same.
        **({"ignore_opt_out": True} if config.web.ignore_opt_out else {}),
    }
    parameters = added.parameters(parameters) if added else parameters
    fingerprint = digest([CONTENT, parameters])
    cuts = [count * number // max(1, shards) for number in range(shards + 1)]
    names = added.names(shards) if added else [shard_name(number, shards) for number in range(shards)]
    before = added.first_image if added else 0
    web = replace(config.web, per_host=max(1, config.web.per_host // max(1, _at_once(config, shards))))

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
            first=before + first,
            images=[ready(image) for image in listing.slice(first, last)],
            fingerprint=fingerprint,
            proposals=proposals,
            options=config.options,
            seed=config.seed,
            filter=config.filter,
            max_pixels=config.max_pixels,
            upright=bool(upright) or (published is not None and upright is None and published.format.upright),
            web=web,
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
        facts={
            "classes": listing.classes,
            "ignored": dict(Counter(listing.ignored)),
            **_left_out(listing, published),
            **_imported(match),
        },
        place=config,
        retry_failed=config.retry_failed,
        allowed=allowed_failures(config.max_failures, count) + (len(listing.absent) if listing.rows_of_absent else 0),
        allowed_text=config.max_failures,
        added_to=added.manifest if added else None,
        joined=(lambda made_by: added.joined(made_by, names)) if added else (lambda made_by: (made_by, ())),
    )
    return MiningPlan(listing=listing, job=job, match=match, upright=upright, addition=added)


def mine(
    config: MiningConfig,
    *,
    planned: Callable[[MiningPlan, int], None] = lambda plan, finished: None,
    progress: Callable[[int], None] = lambda images: None,
) -> MiningReport:
    """Mine sources into shards; called again it keeps what is finished, and the bytes are the same.

    With `add`, the images that a finished set has not become shards after its last, and the set stays as it was until its new
    manifest takes the place of the old.

    Args:
        config: what and how.
        planned: called once with the plan and the number of images in shards that are finished already.
        progress: called as images get done, with their number.

    Raises:
        InputError: sources without images, a folder with other shards, more failures than allowed.
        ModuleNotFoundError: Ray is not installed, and not `inline`.

    """
    if not config.inline:
        require("ray")  # before sources are listed, which may take long
    plan = plan_job(config)
    added = plan.addition
    if added is not None and not len(plan.listing):
        settle(plan.job.out, added.manifest)
        return MiningReport(manifest=added.manifest, mined=0, failures=[], ignored=plan.listing.ignored, addition=added)
    with plan.listing:
        manifest, mined = carry_out(plan.job, planned=lambda finished: planned(plan, finished), progress=progress)
        # Those of an addition alone: the listing has no more.
        own = manifest.shards[len(manifest.shards) - len(plan.job.names) :]
        said = notes(plan.listing, config.published, plan.upright, plan.job.out, plan.job.names)
    return MiningReport(
        manifest=manifest,
        mined=mined,
        failures=failures(plan.job.out, own),
        ignored=plan.listing.ignored,
        match=plan.match,
        addition=added,
        notes=said,
    )


def _counted_or_left(listing: Listing, config: MiningConfig, out: Output) -> Listing:
    """What becomes of images that an annotation file names and that are not there.

    While they are few, as many as may fail, they are rows with that reason: a file put back is mined alone. Where more are
    absent, the folder is a part of what the file describes: they are left out of the listing. A folder of shards that was
    begun the one way or the other is gone on with as it was.
    """
    if not listing.absent:
        return listing
    few = len(listing.absent) <= allowed_failures(config.max_failures, len(listing))
    begun = (parameters_there(out) or {}).get("listing")
    if begun == listing.digest or (begun is None and few):
        return listing
    present = listing.present()
    if few and begun != present.digest:
        return listing
    listing.close()
    return present


def _upright(config: MiningConfig, proposals: str, out: Output) -> bool | None:
    """Whether a COCO file's boxes are taken as boxes of the upright image; None where boxes come from elsewhere.

    What people draw today is upright: browsers and viewers turn a photograph before it is drawn on (Label Studio, CVAT,
    labelme, RectLabel, FiftyOne), and so do the loaders of Detectron2, MMDetection and Ultralytics. COCO's own images have no
    turns. Shards of before there was a choice took the stored pixels, and are finished so.
    """
    if config.box_frame not in (None, *FRAMES):
        raise UsageError(f"--box-frame is {config.box_frame!r}; expected one of: {', '.join(FRAMES)}")
    if proposals not in (GROUND_TRUTH, f"{IMPORTED}coco"):
        if config.box_frame is not None:
            raise UsageError(
                f"--box-frame says of which picture a COCO file's boxes are, and the boxes of {proposals} need no such word; "
                "leave it out"
            )
        return None
    begun = parameters_there(out) if config.box_frame is None else None
    if begun is not None and begun.get("proposals") == proposals:
        return bool(begun.get("box_frame", UNSAID["box_frame"]) == UPRIGHT)
    return config.box_frame != STORED


def _left_out(listing: Listing, published: Published | None) -> dict[str, Any]:
    """What the manifest says of images and boxes that annotation files have and the shards have not."""
    boxes = listing.boxes_left_out + Counter({} if published is None else published.boxes.left_out)
    absent = {"images": len(listing.absent), "of": listing.named, "such_as": listing.absent[:100]}
    return {
        **({"absent": absent} if listing.absent else {}),
        **({"boxes_left_out": dict(sorted(boxes.items()))} if boxes else {}),
    }


def _at_once(config: MiningConfig, shards: int) -> int:
    """Shards that are in work at a time, as far as is known here: what a cluster has is not, so there as many as there are."""
    if config.inline:
        return 1
    return min(shards, config.workers or (shards if config.address else usable_cpus()))


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
