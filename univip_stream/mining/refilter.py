"""Other boxes from the candidates that mining kept: no proposing, no decoding, no encoding; images are copied as bytes."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from univip_stream.boxes import BoxFilter
from univip_stream.errors import InputError
from univip_stream.mining.job import Job, carry_out, digest
from univip_stream.mining.output import Output
from univip_stream.mining.runner import Compute
from univip_stream.mining.shard import put_shard, reporting, status_of
from univip_stream.shards.entry import ShardEntry, numbers, tar_names
from univip_stream.shards.format import CONTENT, StoredImage
from univip_stream.shards.manifest import Manifest, read_manifest
from univip_stream.shards.stored import stored_samples


@dataclass(frozen=True, kw_only=True)
class RefilterConfig(Compute):
    """Which shards, which boxes, and where the work is done."""

    shards: str | Path
    """Folder of finished shards: local, or in an object store."""
    out: str | Path
    """Folder of the new ones."""
    min_scale: int | None = None
    """As `BoxFilter`; None keeps the shards' own, here and below."""
    max_aspect: float | None = None
    """Longest side over shortest."""
    max_iou: float | None = None
    """Greatest overlap of two boxes."""
    max_boxes: int | None = None
    """Greatest number of boxes."""


@dataclass(frozen=True, kw_only=True)
class RefilterTask:
    """One shard."""

    source: str
    """Folder it comes from."""
    out: str
    """Folder it goes to."""
    name: str
    """Of its tar, in both."""
    entry: ShardEntry
    """What the source's manifest says of it."""
    fingerprint: str
    """Of the new shards."""
    proposals: str
    """Where the candidates come from."""
    filter: BoxFilter
    """Which boxes stay."""


def refilter(
    config: RefilterConfig,
    *,
    planned: Callable[[Job, int], None] = lambda job, finished: None,
    progress: Callable[[int], None] = lambda images: None,
) -> Manifest:
    """Write shards with the same images and other boxes; return their manifest. Called again it continues.

    Args:
        config: what and how.
        planned: called once with the job and the number of images in shards that are finished already.
        progress: called as images get done, with their number.

    Raises:
        InputError: shards that are not complete or not as their manifest says; an output folder with other shards.

    """
    source, out = Output(config.shards, to_write=False), Output(config.out)
    if source.location == out.location:
        raise InputError(f"--out {config.out} is the folder of the shards themselves; choose another")
    manifest = read_manifest(source.location)
    old = manifest.parameters
    asked = {name: getattr(config, name) for name in ("min_scale", "max_aspect", "max_iou", "max_boxes")}
    chosen = BoxFilter(
        **{name: _stored(old, name, config.shards) if value is None else value for name, value in asked.items()}
    )
    parameters = {**old, **asdict(chosen), "refiltered_from": manifest.fingerprint}
    fingerprint = digest([CONTENT, parameters])
    entries = manifest.shards

    def task(number: int, keep: bool) -> RefilterTask:
        return RefilterTask(
            source=source.location,
            out=out.location,
            name=job.names[number],
            entry=entries[number],
            fingerprint=fingerprint,
            proposals=_stored(old, "proposals", config.shards),
            filter=chosen,
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
    )
    made, _ = carry_out(job, planned=lambda finished: planned(job, finished), progress=progress)
    return made


_KINDS: dict[str, tuple[type, ...]] = {
    "min_scale": (int,), "max_aspect": (int, float), "max_iou": (int, float), "max_boxes": (int, type(None)), "proposals": (str,)
}  # fmt: skip


def _stored(parameters: Mapping[str, Any], name: str, shards: str | Path) -> Any:
    """What a manifest says the shards were made with."""
    value = parameters.get(name, ...)
    if isinstance(value, bool) or not isinstance(value, _KINDS[name]):
        said = "nothing" if value is ... else repr(value)[:40]
        raise InputError(f"the manifest of {shards} has {said} as {name}; it was changed or damaged: mine again")
    number: Any = value
    return float(number) if _KINDS[name] == (int, float) else number


def refilter_shard(task: RefilterTask, progress: Callable[[int], None] = lambda done: None) -> ShardEntry:
    """Copy one shard with other boxes; return its entry for the manifest."""
    stored = stored_samples(task.source, task.name, task.proposals, task.entry.index.sha256)
    samples = (_refiltered(sample, task.filter) for sample in stored)
    return put_shard(reporting(samples, progress), task.out, task.name, task.fingerprint)


def _refiltered(sample: StoredImage, chosen: BoxFilter) -> StoredImage:
    if sample.candidates is None:
        return sample
    boxes = chosen(sample.candidates)
    status, reason = status_of(boxes, sample.candidates)
    return replace(sample, boxes=boxes, status=status, reason=reason)
