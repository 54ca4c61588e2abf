"""A mining job: plan, keep what is finished, mine the rest, and write the manifest last."""

import fcntl
import hashlib
import json
import platform
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from univip_stream import __version__
from univip_stream.boxes import BoxFilter
from univip_stream.errors import InputError, UsageError
from univip_stream.files import TEMPORARY, written_atomically
from univip_stream.images import MAX_PIXELS
from univip_stream.mining import runner
from univip_stream.mining.proposer import load_proposer, proposer_version
from univip_stream.mining.shard import ShardTask
from univip_stream.proposals import ENGINES
from univip_stream.shards.format import FAILED, FORMAT, index_name, shard_name
from univip_stream.shards.manifest import MANIFEST, read_manifest, write_manifest
from univip_stream.shards.write import finished_shard
from univip_stream.sources import Listing, list_sources

JOB = ".mining.json"
"""The parameters of a job that is not finished yet, in its output folder; gone when the manifest is there."""
LOCK = ".mining.lock"
"""Held by the process that writes the folder."""
DEFAULT_SHARDS = 128
"""000.tar to 127.tar."""
FEWEST_IMAGES = 32
"""Images a shard holds at least, unless the number of shards is asked for: a shard is a unit of shuffling and transfer."""


@dataclass(frozen=True, kw_only=True)
class MiningConfig:
    """What to mine and how."""

    sources: tuple[Path, ...]
    """Folders of images; several make one data set (COCO+)."""
    out: Path
    """Folder of the shards."""
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

    tasks: list[ShardTask]
    """One a shard."""
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
        return len(self.listing.images)


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
    fingerprint = _digest([FORMAT, parameters])
    cuts = [count * number // shards for number in range(shards + 1)]
    out = config.out.absolute()
    tasks = [
        ShardTask(
            tar_path=out / shard_name(number, shards),
            first=cuts[number],
            images=listing.images[cuts[number] : cuts[number + 1]],
            fingerprint=fingerprint,
            proposals=config.proposals,
            options=config.options,
            seed=config.seed,
            filter=config.filter,
            max_pixels=config.max_pixels,
        )
        for number in range(shards)
    ]
    allowed = allowed_failures(config.max_failures, count)
    return Plan(tasks=tasks, parameters=parameters, fingerprint=fingerprint, listing=listing, allowed=allowed)


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
    config.out.mkdir(parents=True, exist_ok=True)
    with _owned(config.out, plan) as entries:
        todo = []
        for task in plan.tasks:
            entry = finished_shard(task.tar_path, plan.fingerprint)
            if entry is None or (config.retry_failed and _failed(entry)):
                todo.append(task)
            else:
                entries[task.tar_path.name] = entry
        if todo:
            (config.out / MANIFEST).unlink(missing_ok=True)  # it says that all shards are there
        planned(plan, plan.images - sum(len(task.images) for task in todo))
        for entry in runner.run(todo, config, progress):
            entries[entry["name"]] = entry
            if sum(map(_failed, entries.values())) > plan.allowed:
                break
        _stop_if_hopeless(config, plan, entries)
        for leftover in config.out.glob(f".*{TEMPORARY}"):
            leftover.unlink(missing_ok=True)
        manifest = write_manifest(config.out, [entries[task.tar_path.name] for task in plan.tasks], _facts(plan))
    return MiningReport(
        manifest=manifest,
        mined=sum(len(task.images) for task in todo),
        failures=failures(config.out, manifest["shards"]),
        ignored=plan.listing.ignored,
    )


def failures(folder: Path, entries: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(source, status, reason) of every image that is no sample, from the indexes of these shards."""
    found = []
    for entry in entries:
        if entry["samples"] < entry["images"]:
            rows = pq.read_table(folder / index_name(entry["name"]), columns=["source", "status", "reason", "size"])
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


def _stop_if_hopeless(config: MiningConfig, plan: Plan, entries: dict[str, dict[str, Any]]) -> None:
    failed = sum(map(_failed, entries.values()))
    if failed <= plan.allowed:
        return
    bad = [line for line in failures(config.out, list(entries.values())) if line[1] in FAILED]
    lines = "\n".join(f"  {source}: {status}: {reason}" for source, status, reason in bad[:20])
    more = f"\n  and {len(bad) - 20} more" if len(bad) > 20 else ""
    seen = sum(entry["images"] for entry in entries.values())
    raise InputError(
        f"{failed} of {seen} images could not be used; --max-failures allows {config.max_failures} of {plan.images}:\n"
        f"{lines}{more}\nEach is a row of its shard's .parquet, and the {len(entries)} finished shards are kept. Mend "
        "the files and run again with --retry-failed, or accept them with a larger --max-failures."
    )


@contextmanager
def _owned(out: Path, plan: Plan) -> Iterator[dict[str, dict[str, Any]]]:
    """Hold the output folder for this job alone, or say why not."""
    _refuse_other_shards(out, plan)
    # The lock is a file of its own: the job's file is replaced whole, and a lock stays with the file that was opened.
    lock = out / LOCK
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"{out}: another `univip-stream mine` is writing here; wait for it, or stop it") from error
        with written_atomically(out / JOB) as whole:
            whole.write(json.dumps(plan.parameters, ensure_ascii=False).encode())
        yield {}
        (out / JOB).unlink(missing_ok=True)
        lock.unlink(missing_ok=True)


def _refuse_other_shards(out: Path, plan: Plan) -> None:
    """An output folder may be empty, or hold this very job in any state; anything else stays untouched."""
    found = None
    if (out / MANIFEST).exists():
        found = read_manifest(out)["parameters"]
    elif (out / JOB).exists():
        try:
            found = json.loads((out / JOB).read_bytes() or b"{}") or None
        except ValueError:
            found = None
    tars = sorted(path.name for path in out.glob("*.tar"))
    if not tars:
        return
    ours = json.loads(json.dumps(plan.parameters))
    if found is None:
        raise InputError(
            f"{out} holds {len(tars)} tar files that no job of ours wrote ({', '.join(tars[:3])}); choose another --out"
        )
    if found != ours:
        names = [name for name in ours if name != "listing" and found.get(name) != ours[name]]
        differences = [f"{name} {found.get(name)!r} there, {ours[name]!r} here" for name in names]
        raise InputError(
            f"{out} holds shards made with other parameters: {'; '.join(differences or ['other images'])}. "
            "Choose another --out, or empty that folder if those shards are not needed"
        )
    expected = {task.tar_path.name for task in plan.tasks}
    if strangers := [name for name in tars if name not in expected]:
        raise InputError(f"{out} holds tar files beside this job's ({', '.join(strangers[:3])}); choose another --out")


def _facts(plan: Plan) -> dict[str, Any]:
    versions = {"univip-stream": __version__, "python": platform.python_version(), "numpy": np.__version__}
    return {
        "created_by": versions,
        "parameters": plan.parameters,
        "fingerprint": plan.fingerprint,
        "classes": plan.listing.classes,
        "ignored": dict(Counter(plan.listing.ignored)),
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
