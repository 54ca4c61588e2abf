"""Mine images: list the sources, divide them into shards, find the boxes."""

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
from univip_stream.mining.job import IMPLIED, Job, carry_out, digest, failures, remove_leftover_job, stored_parameters
from univip_stream.mining.noticed import notes
from univip_stream.mining.output import Output
from univip_stream.mining.part import PartOf
from univip_stream.mining.proposer import GROUND_TRUTH, IMPORTED, load_proposer, proposer_version
from univip_stream.mining.runner import Compute
from univip_stream.mining.shard import ShardTask, mine_shard
from univip_stream.proposals import ENGINES
from univip_stream.shards.format import CONTENT, shard_name
from univip_stream.shards.manifest import Manifest
from univip_stream.sources import Listing, SourceImage, list_sources

DEFAULT_SHARDS = 128
"""Default number of shards: 000.tar to 127.tar."""
FEWEST_IMAGES = 32
"""The fewest images of a shard, unless the user sets the number of shards: a shard is a unit of shuffling and transfer."""


@dataclass(frozen=True, kw_only=True)
class MiningConfig(Compute):
    """What to mine, how, and where the work is done."""

    sources: tuple[str | Path, ...]
    """Folders of images, tars, WebDataset shards, lists, local or remote; several make one data set (COCO+)."""
    out: str | Path
    """Folder of the shards: local, or in an object store (`s3://bucket/folder`)."""
    annotations: tuple[str | Path, ...] = ()
    """COCO annotation files, for folders that have none in `../annotations`."""
    num_shards: int | None = None
    """Number of shards; None is 128, or fewer if that leaves less than 32 images for a shard."""
    proposals: str = "selective-search"
    """Engine, `none`, `ground-truth`, or module:function; ignored if boxes are imported."""
    published: Published | None = None
    """Boxes to import instead of proposing any."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the engine."""
    box_frame: str | None = None
    """Frame of a COCO file's boxes for photographs that EXIF turns: `upright` or `stored`. None takes that of the shards
    already in `out`, otherwise `upright`."""
    seed: int = 0
    """Seed of engines that choose at random, such as `naive`."""
    filter: BoxFilter = BoxFilter()  # noqa: RUF009 - frozen
    """Settings of the filter that decides which boxes are kept."""
    max_pixels: int = MAX_PIXELS
    """Images with a larger width times height are not decoded."""
    max_failures: str = MAX_FAILURES
    """Share or number of images that may be unreadable or too large before the job stops."""
    retry_failed: bool = False
    """Whether to mine failed images again; when adding, only those of the new shards."""
    add: bool = False
    """Whether to mine only the images that the finished set in `out` lacks, into new shards after its last one."""
    part: PartOf | None = None
    """Which part of the job to mine, for `mine_part`; the others are mined by other calls, perhaps on other machines."""
    web: storage.WebOptions = field(default_factory=storage.WebOptions)
    """Limits for web servers. `per_host` is divided among all workers of all parts, at least one for each. The set does not
    depend on it."""


@dataclass(frozen=True, kw_only=True)
class MiningReport:
    """The result of a job."""

    manifest: Manifest
    """Manifest that was written."""
    mined: int
    """Number of images mined now; the others were mined before."""
    failures: list[tuple[str, str, str]]
    """(source, status, reason) of each image that is not a sample."""
    ignored: dict[str, int]
    """Number of files that are not images according to their names, by kind."""
    match: Match | None = None
    """How imported boxes and images matched."""
    notes: list[str] = field(default_factory=list)
    """Sentences about what was left out, and where boxes and images contradict each other."""
    addition: Addition | None = None
    """The set that was added to, and what it lacked."""


@dataclass(frozen=True, kw_only=True)
class MiningPlan:
    """Images divided into shards, ready to be mined."""

    listing: Listing
    """The images."""
    job: Job
    """The job that mines them."""
    match: Match | None = None
    """How imported boxes and images match."""
    upright: bool | None = None
    """Whether a COCO file's boxes are taken as boxes of the upright image; None if boxes come from elsewhere."""
    addition: Addition | None = None
    """The set that the images are added to; it lacks all of them."""
    part: PartOf | None = None
    """Which part of it is to be mined; None is all."""

    @property
    def numbers(self) -> range:
        """Numbers of the shards that are to be mined."""
        count = len(self.job.names)
        return range(count) if self.part is None else self.part.numbers(count)


def plan_job(config: MiningConfig) -> MiningPlan:
    """List the sources and divide them into shards, without writing anything.

    Raises:
        InputError: sources or the output folder cannot be used.
        UsageError: proposals or numbers cannot be used.

    """
    if config.part is not None and config.add:
        raise UsageError("--part and --add do not go together: add in one job, or mine the new images as a set of their own")
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
        # Images that annotation files name and folders lack cannot be added.
        with listing, listing.present() as there:
            added = addition(out, there)
        listing = added.listing
    else:
        listing = _with_or_without_absent(listing, config, out)
    match = None if published is None else published.match(listing)
    upright = _boxes_are_upright(config, proposals, out)
    if proposals in ENGINES:
        # So wrong options fail before any work, and compiled code is cached before many workers need it.
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
        # They are absent otherwise, so that sets from before there was a choice stay the same.
        **({"ignore_opt_out": True} if config.web.ignore_opt_out else {}),
    }
    parameters = added.parameters(parameters) if added else parameters
    fingerprint = digest([CONTENT, parameters])
    cuts = [count * number // max(1, shards) for number in range(shards + 1)]
    shards_here = shards if config.part is None else len(config.part.numbers(shards))
    at_once = _shards_at_once(config, shards_here) * (1 if config.part is None else config.part.of)
    names = added.names(shards) if added else [shard_name(number, shards) for number in range(shards)]
    before = added.first_image if added else 0
    web = replace(config.web, per_host=max(1, config.web.per_host // max(1, at_once)))

    def ready(image: SourceImage) -> SourceImage:
        # Workers of a cluster have other working directories.
        there = replace(image, path=storage.absolute(image.path))
        return there if published is None else replace(there, boxes=published.boxes_of(image))

    def task(number: int, keep: bool) -> ShardTask:
        # Images are looked up when their turn comes, so that waiting tasks hold none.
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
    return MiningPlan(listing=listing, job=job, match=match, upright=upright, addition=added, part=config.part)


def mine(
    config: MiningConfig,
    *,
    planned: Callable[[MiningPlan, int], None] = lambda plan, finished: None,
    progress: Callable[[int], None] = lambda images: None,
) -> MiningReport:
    """Mine sources into shards. If called again, it keeps finished shards, and the bytes are the same.

    With `add`, images that a finished set lacks become shards after its last one. The set stays as it was until the new
    manifest replaces the old one.

    Args:
        config: settings of the job.
        planned: called once with the plan and the number of images in shards that are finished already.
        progress: called with the number of images done since the last call.

    Raises:
        InputError: the sources hold no images, the folder holds other shards, or more images failed than allowed.
        ModuleNotFoundError: Ray is not installed, and `inline` is False.

    """
    if config.part is not None:
        raise UsageError(f"part {config.part} of a job is mined by `mine_part`")
    if not config.inline:
        require("ray")  # before sources are listed, which may take long
    plan = plan_job(config)
    added = plan.addition
    if added is not None and not len(plan.listing):
        remove_leftover_job(plan.job.out, added.manifest)
        return MiningReport(manifest=added.manifest, mined=0, failures=[], ignored=plan.listing.ignored, addition=added)
    with plan.listing:
        manifest, mined = carry_out(plan.job, planned=lambda finished: planned(plan, finished), progress=progress)
        # When adding, only the new shards, because the listing has only their images.
        own = manifest.shards[len(manifest.shards) - len(plan.job.names) :]
        sentences = notes(plan.listing, config.published, plan.upright, plan.job.out, plan.job.names)
    return MiningReport(
        manifest=manifest,
        mined=mined,
        failures=failures(plan.job.out, own),
        ignored=plan.listing.ignored,
        match=plan.match,
        addition=added,
        notes=sentences,
    )


def _with_or_without_absent(listing: Listing, config: MiningConfig, out: Output) -> Listing:
    """Return the listing with or without the missing images that an annotation file names.

    If they are few enough to be accepted as failures, they become rows with that reason: a file that is put back is then
    mined alone. If more are missing, the folder is taken for a part of what the file describes, and they are left out. A
    folder with shards of this job continues in the way it began.
    """
    if not listing.absent:
        return listing
    few = len(listing.absent) <= allowed_failures(config.max_failures, len(listing))
    begun = (stored_parameters(out) or {}).get("listing")
    if begun == listing.digest or (begun is None and few):
        return listing
    present = listing.present()
    if few and begun != present.digest:
        return listing
    listing.close()
    return present


def _boxes_are_upright(config: MiningConfig, proposals: str, out: Output) -> bool | None:
    """Return whether a COCO file's boxes are taken as boxes of the upright image; None if boxes come from elsewhere.

    Boxes that people draw today are upright: browsers and viewers turn a photograph before it is annotated (Label Studio,
    CVAT, labelme, RectLabel, FiftyOne), and so do the loaders of Detectron2, MMDetection and Ultralytics. COCO's own images
    are not turned. Sets from before there was a choice took the stored pixels, and are finished that way.
    """
    if config.box_frame not in (None, *FRAMES):
        raise UsageError(f"--box-frame is {config.box_frame!r}; expected one of: {', '.join(FRAMES)}")
    if proposals not in (GROUND_TRUTH, f"{IMPORTED}coco"):
        if config.box_frame is not None:
            raise UsageError(
                f"--box-frame states the frame of a COCO file's boxes, which the boxes of {proposals} do not need; leave it out"
            )
        return None
    begun = stored_parameters(out) if config.box_frame is None else None
    if begun is not None and begun.get("proposals") == proposals:
        return bool(begun.get("box_frame", IMPLIED["box_frame"]) == UPRIGHT)
    return config.box_frame != STORED


def _left_out(listing: Listing, published: Published | None) -> dict[str, Any]:
    """Return the manifest's fields about images and boxes that annotation files have and the shards lack."""
    boxes = listing.boxes_left_out + Counter({} if published is None else published.boxes.left_out)
    absent = {"images": len(listing.absent), "of": listing.named, "such_as": listing.absent[:100]}
    return {
        **({"absent": absent} if listing.absent else {}),
        **({"boxes_left_out": dict(sorted(boxes.items()))} if boxes else {}),
    }


def _shards_at_once(config: MiningConfig, shards: int) -> int:
    """Return how many shards are mined at the same time; on a cluster, whose CPUs are not known here, all of them."""
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
