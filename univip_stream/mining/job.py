"""A mining job: plan, keep what is finished, mine the rest, and write the manifest last."""

import hashlib
import io
import json
import os
import platform
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from univip_stream import __version__
from univip_stream.boxes import BoxFilter
from univip_stream.errors import InputError, UsageError
from univip_stream.images import MAX_PIXELS
from univip_stream.mining import runner
from univip_stream.mining.output import Output
from univip_stream.mining.proposer import load_proposer, proposer_version
from univip_stream.mining.shard import ShardTask
from univip_stream.proposals import ENGINES
from univip_stream.shards.format import FAILED, FORMAT, index_name, shard_name
from univip_stream.shards.manifest import MANIFEST, make_manifest, manifest_bytes
from univip_stream.shards.write import finished_shard
from univip_stream.sources import Listing, list_sources

JOB = ".mining.json"
"""The parameters of a job that is not finished yet, in its output folder; gone when the manifest is there."""
_MADE_WITH = ("numpy", "numba", "opencv-contrib-python-headless", "pillow", "pyarrow", "simplejpeg")
"""What bytes can depend on: other versions may decode, encode or compress otherwise."""
DEFAULT_SHARDS = 128
"""000.tar to 127.tar."""
FEWEST_IMAGES = 32
"""Images a shard holds at least, unless the number of shards is asked for: a shard is a unit of shuffling and transfer."""


@dataclass(frozen=True, kw_only=True)
class MiningConfig:
    """What to mine and how."""

    sources: tuple[Path, ...]
    """Folders of images; several make one data set (COCO+)."""
    out: str | Path
    """Folder of the shards: local, or in an object store (`s3://bucket/folder`)."""
    num_shards: int | None = None
    """How many shards; None is 128, fewer where that leaves less than 32 images a shard."""
    proposals: str = "selective-search"
    """Engine, `none`, or module:function."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the engine."""
    seed: int = 0
    """Of engines that use chance."""
    filter: BoxFilter = BoxFilter()  # noqa: RUF009 - frozen
    """Which boxes stay."""
    max_pixels: int = MAX_PIXELS
    """Larger images are not decoded."""
    max_failures: str = "1%"
    """Share or number of images that may be unreadable or too large before the job stops."""
    retry_failed: bool = False
    """Mine shards with failures again."""
    workers: int | None = None
    """Shards mined at a time; None is one a CPU."""
    address: str | None = None
    """Of a running Ray cluster; None starts a local one."""
    inline: bool = False
    """Without Ray, one after the other, in this process."""


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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A job cut into shards."""

    config: MiningConfig
    """What was asked for."""
    out: Output
    """Where the shards go."""
    cuts: list[int]
    """Shard n holds the images cuts[n] to cuts[n + 1] of the listing."""
    parameters: dict[str, Any]
    """Everything the result depends on beside the images' bytes."""
    fingerprint: str
    """Of the parameters."""
    listing: Listing
    """The images."""
    allowed: float
    """Failures that are put up with."""

    @property
    def images(self) -> int:
        """How many images there are."""
        return self.cuts[-1]

    @property
    def names(self) -> list[str]:
        """The shards, in order."""
        shards = len(self.cuts) - 1
        return [shard_name(number, shards) for number in range(shards)]

    def count(self, number: int) -> int:
        """How many images a shard holds."""
        return self.cuts[number + 1] - self.cuts[number]

    def task(self, number: int) -> ShardTask:
        """How to make a shard; its images are looked up now, so that a waiting job holds none."""
        config, first, last = self.config, self.cuts[number], self.cuts[number + 1]
        return ShardTask(
            out=self.out.location,
            name=self.names[number],
            first=first,
            images=self.listing.images[first:last],
            fingerprint=self.fingerprint,
            proposals=config.proposals,
            options=config.options,
            seed=config.seed,
            filter=config.filter,
            max_pixels=config.max_pixels,
        )


def plan_job(config: MiningConfig) -> Plan:
    """List the sources and cut them into shards; write nothing.

    Raises:
        InputError, UsageError: sources, proposals or numbers that cannot be used.

    """
    proposer = load_proposer(config.proposals, seed=config.seed, options=config.options)
    listing = list_sources(config.sources)
    if config.proposals in ENGINES:
        # Wrong options show before any work, and compiled code is in its cache before many workers ask for it.
        proposer(np.zeros((64, 64, 3), np.uint8))
    count = len(listing.images)
    wanted = config.num_shards or min(DEFAULT_SHARDS, max(1, count // FEWEST_IMAGES))
    shards = min(wanted, count)
    parameters = {
        "sources": listing.sources,
        "images": count,
        "listing": _digest([[image.source, image.label] for image in listing.images]),
        "num_shards": shards,
        "proposals": config.proposals,
        "proposals_version": proposer_version(config.proposals),
        "options": config.options,
        "seed": config.seed,
        **asdict(config.filter),
        "max_pixels": config.max_pixels,
    }
    return Plan(
        config=config,
        out=_output(config),
        cuts=[count * number // shards for number in range(shards + 1)],
        parameters=parameters,
        fingerprint=_digest([FORMAT, parameters]),
        listing=listing,
        allowed=allowed_failures(config.max_failures, count),
    )


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
    out = plan.out
    with out.held():
        _refuse_other_shards(plan)
        out.write(JOB, json.dumps(plan.parameters, ensure_ascii=False).encode())
        entries: dict[str, dict[str, Any]] = {}
        todo = []
        for number, name in enumerate(plan.names):
            entry = _finished(plan, name)
            if entry is None or (config.retry_failed and _failed(entry)):
                todo.append(number)
            else:
                entries[name] = entry
        if todo:
            out.remove(MANIFEST)  # it says that all shards are there
        waiting = sum(map(plan.count, todo))
        planned(plan, plan.images - waiting)
        for entry in runner.run(map(plan.task, todo), config, progress):
            entries[entry["name"]] = entry
            if sum(map(_failed, entries.values())) > plan.allowed:
                break
        _stop_if_hopeless(plan, entries)
        out.remove_leftovers()
        manifest = make_manifest([entries[name] for name in plan.names], _facts(plan))
        out.write(MANIFEST, manifest_bytes(manifest))
        out.remove(JOB)
    return MiningReport(
        manifest=manifest,
        mined=waiting,
        failures=failures(out, manifest["shards"]),
        ignored=plan.listing.ignored,
    )


def failures(out: Output, entries: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(source, status, reason) of every image that is no sample, from the indexes of these shards."""
    found = []
    for entry in entries:
        if entry["samples"] < entry["images"]:
            index = io.BytesIO(out.read(index_name(entry["name"])) or b"")
            rows = pq.read_table(index, columns=["source", "status", "reason", "size"])
            rows = rows.filter(pc.is_null(rows.column("size")))
            found += [(row["source"], row["status"], row["reason"]) for row in rows.to_pylist()]
    return found


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


def _failed(entry: dict[str, Any]) -> int:
    return sum(count for status, count in entry["totals"].items() if status in FAILED)


def _stop_if_hopeless(plan: Plan, entries: dict[str, dict[str, Any]]) -> None:
    failed = sum(map(_failed, entries.values()))
    if failed <= plan.allowed:
        return
    bad = [line for line in failures(plan.out, list(entries.values())) if line[1] in FAILED]
    lines = "\n".join(f"  {source}: {status}: {reason}" for source, status, reason in bad[:20])
    more = f"\n  and {len(bad) - 20} more" if len(bad) > 20 else ""
    seen = sum(entry["images"] for entry in entries.values())
    raise InputError(
        f"{failed} of {seen} images could not be used; --max-failures allows {plan.config.max_failures} of {plan.images}:\n"
        f"{lines}{more}\nEach is a row of its shard's .parquet, and the {len(entries)} finished shards are kept. Mend "
        "the files and run again with --retry-failed, or accept them with a larger --max-failures."
    )


def _output(config: MiningConfig) -> Output:
    out = Output(config.out)
    for source in config.sources:
        inside = os.path.realpath(source)
        if not out.remote and os.path.commonpath([os.path.realpath(out.location), inside]) == inside:
            raise InputError(f"--out {config.out} lies in the source {source}; choose a folder outside of it")
    return out


def _finished(plan: Plan, name: str) -> dict[str, Any] | None:
    """The manifest entry of a shard that is there already."""
    return finished_shard(name, plan.out.read(index_name(name)), plan.out.size(name), plan.fingerprint)


def _refuse_other_shards(plan: Plan) -> None:
    """An output folder may be empty, or hold this very job in any state; anything else stays untouched."""
    out = plan.out
    there = out.names()
    ours = set(plan.names) | {index_name(name) for name in plan.names} | {MANIFEST}
    taken = [name for name in there if name in ours or name.endswith(".tar")]
    if not taken:
        return
    found = _parameters_there(out)
    if found is None and not any(_finished(plan, name) for name in plan.names):
        raise InputError(
            f"{out.location} holds {len(taken)} files that no job of ours wrote ({', '.join(taken[:3])}); choose another --out"
        )
    wanted = json.loads(json.dumps(plan.parameters))
    if found is not None and found != wanted:
        names = [name for name in wanted if name != "listing" and found.get(name) != wanted[name]]
        differences = [f"{name} {found.get(name)!r} there, {wanted[name]!r} here" for name in names]
        raise InputError(
            f"{out.location} holds shards made with other parameters: {'; '.join(differences or ['other images'])}. "
            "Choose another --out, or empty that folder if those shards are not needed"
        )
    if strangers := [name for name in taken if name not in ours]:
        raise InputError(
            f"{out.location} holds tar files beside this job's ({', '.join(strangers[:3])}); choose another --out"
        )


def _parameters_there(out: Output) -> dict[str, Any] | None:
    """The parameters of the job whose files these are, finished or not; None if no job of ours left them."""
    for name in (MANIFEST, JOB):
        data = out.read(name)
        if data is not None:
            try:
                found = json.loads(data)
                found = found["parameters"] if name == MANIFEST else found
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # a manifest that is damaged, or somebody else's
            if isinstance(found, dict) and "listing" in found:
                return found
    return None


def _facts(plan: Plan) -> dict[str, Any]:
    versions = {name: found for name in _MADE_WITH if (found := _installed(name))}
    return {
        "created_by": {"univip-stream": __version__, "python": platform.python_version(), **versions},
        "parameters": plan.parameters,
        "fingerprint": plan.fingerprint,
        "classes": plan.listing.classes,
        "ignored": dict(Counter(plan.listing.ignored)),
    }


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
