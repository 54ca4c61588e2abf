"""Choose other boxes from the candidates that mining kept. Images are copied as bytes, and decoded only to rank these again."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from univip_stream.boxes import BoxFilter
from univip_stream.errors import InputError
from univip_stream.mining.job import Job, carry_out, digest
from univip_stream.mining.output import Output
from univip_stream.mining.proposer import NONE
from univip_stream.mining.ranking import RANKED_BY, Ranking, RankTask, ranked_again
from univip_stream.mining.runner import Compute
from univip_stream.mining.shard import put_shard, reporting, status_of
from univip_stream.shards.entry import ShardEntry, numbers, tar_names
from univip_stream.shards.format import CONTENT, StoredImage
from univip_stream.shards.manifest import Manifest, read_manifest
from univip_stream.shards.stored import stored_samples


@dataclass(frozen=True, kw_only=True)
class RefilterConfig(Compute):
    """Which shards to read, which boxes to keep, and where the work is done."""

    shards: str | Path
    """Folder of finished shards, local or in an object store."""
    out: str | Path
    """Folder of the new shards."""
    min_scale: int | None = None
    """Shortest side kept, in pixels, as in `BoxFilter`; None, here and below, keeps the value of the shards."""
    max_aspect: float | None = None
    """Longest side over shortest."""
    max_iou: float | None = None
    """Greatest intersection over union of two kept boxes, 0 to 1."""
    max_boxes: int | None = None
    """Maximal number of boxes kept for an image."""
    rank_by: Ranking | None = None
    """How candidates are ranked again before they are filtered (`univip_stream.api.ranking.rank_by` makes it of a run); None
    keeps their order. The new shards hold them in the new order."""


@dataclass(frozen=True, kw_only=True)
class RefilterTask:
    """One shard whose boxes are chosen again."""

    source: str
    """Folder that it is read from."""
    out: str
    """Folder that it is written to."""
    name: str
    """File name of its tar in both folders."""
    entry: ShardEntry
    """Its entry in the source's manifest."""
    fingerprint: str
    """Fingerprint of the new shards."""
    proposals: str
    """Name of the engine that proposed the candidates."""
    filter: BoxFilter
    """Settings of the filter that decides which boxes are kept."""
    rank: RankTask | None = None
    """What ranks the candidates before; None keeps their order."""


def refilter(
    config: RefilterConfig,
    *,
    planned: Callable[[Job, int], None] = lambda job, finished: None,
    progress: Callable[[int], None] = lambda images: None,
) -> Manifest:
    """Write shards with the same images and other boxes, and return their manifest. If called again, it continues.

    Args:
        config: settings of the job.
        planned: called once with the job and the number of images in shards that are finished already.
        progress: called with the number of images done since the last call.

    Raises:
        InputError: shards are incomplete or not as their manifest states, or the output folder holds other shards; they have no
            candidates to rank, or an image cannot be ranked.

    """
    source, out = Output(config.shards, to_write=False), Output(config.out)
    if source.location == out.location:
        raise InputError(f"--out {config.out} is the folder of the shards themselves; choose another")
    manifest = read_manifest(source.location)
    old = manifest.parameters
    asked = {name: getattr(config, name) for name in ("min_scale", "max_aspect", "max_iou", "max_boxes")}
    chosen = BoxFilter(
        **{name: _parameter(old, name, config.shards) if value is None else value for name, value in asked.items()}
    )
    parameters = {**old, **asdict(chosen), "refiltered_from": manifest.fingerprint}
    proposals = _parameter(old, "proposals", config.shards)
    ranking, rank = config.rank_by, None
    if ranking is not None:
        if proposals == NONE:
            raise InputError(
                f"{config.shards} was mined with --proposals none: it has no candidates to rank; mine with proposals"
            )
        # A set may be ranked more than once: each ranking begins with the order that the one before it left.
        parameters["ranked_by"] = [*_ranked_before(old, config.shards), ranking.facts]
        rank = RankTask(file=out.path_of(RANKED_BY), sha256=hashlib.sha256(ranking.data).hexdigest(), load=ranking.load)
    fingerprint = digest([CONTENT, parameters])
    entries = manifest.shards

    def task(number: int, keep: bool) -> RefilterTask:
        return RefilterTask(
            source=source.location,
            out=out.location,
            name=job.names[number],
            entry=entries[number],
            fingerprint=fingerprint,
            proposals=proposals,
            filter=chosen,
            rank=rank,
        )

    job = Job(
        out=out,
        names=tar_names(entries),
        counts=numbers(entries, "images").tolist(),
        function=refilter_shard,
        task=task,
        parameters=parameters,
        fingerprint=fingerprint,
        facts={name: getattr(manifest, name) for name in ("classes", "ignored", "absent", "boxes_left_out")},
        place=config,
        needs={} if ranking is None else {RANKED_BY: ranking.data},
        made_with=() if ranking is None else ranking.made_with,
    )
    made, _ = carry_out(job, planned=lambda finished: planned(job, finished), progress=progress)
    return made


_KINDS: dict[str, tuple[type, ...]] = {
    "min_scale": (int,), "max_aspect": (int, float), "max_iou": (int, float), "max_boxes": (int, type(None)), "proposals": (str,)
}  # fmt: skip


def _parameter(parameters: Mapping[str, Any], name: str, shards: str | Path) -> Any:
    """Return a parameter that the shards were made with, from their manifest."""
    value = parameters.get(name, ...)
    if isinstance(value, bool) or not isinstance(value, _KINDS[name]):
        found = "nothing" if value is ... else repr(value)[:40]
        raise InputError(f"the manifest of {shards} has {found} as {name}; it was changed or damaged: mine again")
    number: Any = value
    return float(number) if _KINDS[name] == (int, float) else number


def _ranked_before(parameters: Mapping[str, Any], shards: str | Path) -> list[Any]:
    """Return the rankings that the shards' order comes from already."""
    value = parameters.get("ranked_by", [])
    if not isinstance(value, list):
        raise InputError(
            f"the manifest of {shards} has {repr(value)[:40]} as ranked_by; it was changed or damaged: mine again"
        )
    return value


def refilter_shard(task: RefilterTask, progress: Callable[[int], None] = lambda done: None) -> ShardEntry:
    """Copy one shard with other boxes, and return its entry for the manifest."""
    stored = stored_samples(task.source, task.name, task.proposals, task.entry.index.sha256)
    if task.rank is not None:
        ranker = task.rank.ranker()
        stored = (ranked_again(sample, ranker) for sample in stored)
    samples = (_with_other_boxes(sample, task.filter) for sample in stored)
    return put_shard(reporting(samples, progress), task.out, task.name, task.fingerprint)


def _with_other_boxes(sample: StoredImage, chosen: BoxFilter) -> StoredImage:
    if sample.candidates is None:
        return sample
    boxes = chosen(sample.candidates)
    status, reason = status_of(boxes, sample.candidates)
    return replace(sample, boxes=boxes, status=status, reason=reason)
