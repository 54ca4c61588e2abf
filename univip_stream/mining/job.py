"""Run a job that fills a folder with shards: keep finished shards, make the others, and write the manifest last."""

import hashlib
import json
import platform
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import starmap
from typing import Any

import pyarrow.compute as pc

from univip_stream import __version__
from univip_stream.boxes import STORED
from univip_stream.errors import InputError, as_setting
from univip_stream.failures import too_many
from univip_stream.mining import runner
from univip_stream.mining.output import Output
from univip_stream.mining.runner import Compute, Task
from univip_stream.parquet import table_of
from univip_stream.shards.entry import ShardEntry, tar_names
from univip_stream.shards.format import FAILED, candidates_name, files_of, index_name
from univip_stream.shards.manifest import (
    JOB,
    LISTED,
    MANIFEST,
    MadeBy,
    Manifest,
    Part,
    being_added,
    make_manifest,
    manifest_files,
    read_manifest,
)
from univip_stream.shards.upgrade import upgraded
from univip_stream.shards.write import finished_shard

IMPLIED = {"box_frame": STORED}
"""Values of parameters that old manifests do not state, because there was no choice then."""
PART = re.compile(r"\.mining-part-(\d+)-of-(\d+)\.(json|lock)")
"""Files that parts of a job leave beside their shards until these are joined: what a part made, and its lock."""
_MADE_WITH = (
    "numpy",
    "numba",
    "opencv-contrib-python-headless",
    "pillow",
    "pillow-heif",
    "pillow-jxl-plugin",
    "pyarrow",
    "simplejpeg",
)
"""Packages that the bytes may depend on: other versions may decode, encode or compress differently."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Shards that are to be written, and how."""

    out: Output
    """Folder that they are written to."""
    names: list[str]
    """File names of their tars, in order."""
    counts: list[int]
    """Number of images of each shard."""
    task: Callable[[int, bool], Task]
    """Returns the task that makes a shard, from its index in `names`, and whether only its failed images are to be mined
    again."""
    function: runner.Function
    """Carries out a task, and returns the shard's entry for the manifest."""
    parameters: dict[str, Any]
    """Everything that the result depends on besides the bytes of the images."""
    fingerprint: str
    """Fingerprint of the parameters."""
    facts: dict[str, Any]
    """Other fields of the manifest."""
    place: Compute
    """Where the work is done."""
    retry_failed: bool = False
    """Whether failed images are tried again."""
    allowed: float = float("inf")
    """The most failures that are accepted."""
    allowed_text: str = ""
    """The same as the user wrote it."""
    added_to: Manifest | None = None
    """Manifest of the set that these shards are added to; it stays in place until the new one replaces it."""
    joined: Callable[[MadeBy], tuple[MadeBy, tuple[Part, ...]]] = field(default=lambda made_by: (made_by, ()))
    """Turns what made these shards into what made the whole set and its parts, if they are added to a set."""
    needs: Mapping[str, bytes] = field(default_factory=dict)
    """Files that the tasks read, by name: they are in the folder while shards are made, and gone afterwards."""
    made_with: tuple[str, ...] = ()
    """Packages that the bytes may depend on beside those of all jobs."""

    @property
    def images(self) -> int:
        """Number of images of all shards."""
        return sum(self.counts)


def carry_out(job: Job, *, planned: Callable[[int], None], progress: Callable[[int], None]) -> tuple[Manifest, int]:
    """Write the missing shards and then the manifest. The bytes do not depend on how often this was interrupted.

    Args:
        job: the shards to write.
        planned: called once with the number of images in shards that are finished already.
        progress: called with the number of images done since the last call.

    Returns:
        (the manifest, the number of images that were done now).

    Raises:
        InputError: the folder holds other shards, or more images failed than allowed.

    """
    out = job.out
    with out.held():
        if job.added_to is None:
            refuse_other_shards(job)
        else:
            _refuse_other_addition(job, job.added_to)
        out.write(JOB, parameters_file(job))
        entries, todo = finished_and_not(job, range(len(job.names)))
        if todo and job.added_to is None:
            out.remove(MANIFEST)  # a manifest means that all shards exist
            remove_parts(out)  # and what a part says of its shards must be so
        if job.added_to is not None or out.read(MANIFEST) is None:
            upgrade_all(out, entries)
        waiting = sum(job.counts[number] for number in todo)
        planned(job.images - waiting)
        for name, data in job.needs.items():
            out.write(name, data)
        mine_shards(job, todo, entries, progress)
        out.remove_leftovers()
        for name in job.needs:
            out.remove(name)
        before = () if job.added_to is None else job.added_to.shards
        own, parts = job.joined(made_by(job))
        manifest = make_manifest([*before, *(entries[name] for name in job.names)], own, parts)
        write_manifest(out, manifest)
        remove_parts(out)
        out.remove(JOB)
    return manifest, waiting


def parameters_file(job: Job) -> bytes:
    """Return the bytes of the file that says which job a folder's shards are of while it has no manifest."""
    return json.dumps(job.parameters, ensure_ascii=False).encode()


def finished_and_not(job: Job, numbers: Iterable[int]) -> tuple[dict[str, ShardEntry], dict[int, bool]]:
    """Return (entries of the finished shards by name, the others by number: whether only their failed images are mined).

    Args:
        job: the job.
        numbers: numbers of the shards that are looked at.

    """
    entries: dict[str, ShardEntry] = {}
    todo: dict[int, bool] = {}
    for number in numbers:
        name = job.names[number]
        entry = _finished(job, name)
        if entry is None or (job.retry_failed and failed_of(entry)):
            todo[number] = entry is not None
        else:
            entries[name] = entry
    return entries, todo


def mine_shards(job: Job, waiting: dict[int, bool], entries: dict[str, ShardEntry], progress: Callable[[int], None]) -> None:
    """Make the shards that `finished_and_not` says are still to be made, and put their entries to the others.

    Args:
        job: what is mined, and where to.
        waiting: number of a shard -> whether only its failed images are mined.
        entries: of the finished shards, by name; those that are made are added.
        progress: as of `runner.run`.

    Raises:
        InputError: more images failed than allowed.

    """
    failed = sum(map(failed_of, entries.values()))
    for _, entry in runner.run(job.function, starmap(job.task, waiting.items()), job.place, progress):
        entries[entry.name] = entry
        failed += failed_of(entry)
        if failed > job.allowed:
            break
    if failed > job.allowed:
        raise too_many_failed(job.out, list(entries.values()), job.images, job.allowed_text)


def remove_parts(out: Output) -> None:
    """Remove what the parts of a job left beside their shards."""
    for name in out.names():
        if PART.fullmatch(name):
            out.remove(name)


def write_manifest(out: Output, manifest: Manifest) -> None:
    """Write the files of a manifest, `manifest.json` last; then remove lists that it does not name."""
    files = manifest_files(manifest)
    for name, data in files.items():
        out.write(name, data)
    for name in out.names():
        if LISTED.fullmatch(name) and name not in files:
            out.remove(name)


def failures(out: Output, entries: Iterable[ShardEntry]) -> list[tuple[str, str, str]]:
    """Return (source, status, reason) of every image that is not a sample, from the indexes of these shards."""
    found = []
    for entry in entries:
        if entry.samples < entry.images:
            rows = table_of(out.read(index_name(entry.name)) or b"", ["source", "status", "reason", "size"])
            rows = rows.filter(pc.is_null(rows.column("size")))
            found += [(row["source"], row["status"], row["reason"]) for row in rows.to_pylist()]
    return found


def digest(value: Any) -> str:
    """Return the SHA-256 of a value that JSON can hold, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def failed_of(entry: ShardEntry) -> int:
    """Return the number of a shard's images that count as failures."""
    return sum(count for status, count in entry.totals.items() if status in FAILED)


def too_many_failed(out: Output, entries: list[ShardEntry], images: int, allowed: str) -> InputError:
    """Return the error that more images failed than allowed, with the first of them.

    Args:
        out: folder of the shards.
        entries: the finished shards.
        images: number of images of the whole job.
        allowed: what is allowed, as the user wrote it.

    """
    return too_many(
        [line for line in failures(out, entries) if line[1] in FAILED],
        seen=sum(entry.images for entry in entries),
        images=images,
        allowed=allowed,
        advice=f"Each is a row of its shard's .parquet, and finished shards ({len(entries)}) are kept. Repair "
        "the files and run again with --retry-failed, or accept them with a larger --max-failures.",
    )


def _finished(job: Job, name: str) -> ShardEntry | None:
    """Return the manifest entry of a shard that is finished already; None otherwise."""
    index = job.out.read(index_name(name))
    if index is None:
        return None
    return finished_shard(name, index, job.out.size(name), job.out.size(candidates_name(name)), job.fingerprint)


def upgrade_all(out: Output, entries: dict[str, ShardEntry]) -> None:
    """Make shards that an earlier version finished, and no manifest names yet, as if this version had mined them."""
    for name, entry in entries.items():
        if entry.candidates is None:
            entries[name] = _upgrade_shard(out, entry)


def _upgrade_shard(out: Output, entry: ShardEntry) -> ShardEntry:
    """Upgrade a finished shard from version 1 to version 2 in place, and return its entry. No manifest names it yet."""
    candidates, index, made = upgraded(out.read(index_name(entry.name)) or b"", entry)
    out.write(candidates_name(entry.name), candidates)
    out.write(index_name(entry.name), index)
    return made


def refuse_other_shards(job: Job) -> None:
    """Raise InputError unless the output folder is empty or holds exactly this job, in any state."""
    out = job.out
    there = out.names()
    ours = {file for name in job.names for file in files_of(name)} | {MANIFEST}
    taken = [name for name in there if name in ours or name.endswith(".tar")]
    if not taken:
        return
    found = stored_parameters(out)
    if found is None and not any(_finished(job, name) for name in job.names):
        raise InputError(
            f"{out.location} holds {len(taken)} files that no job of ours wrote ({', '.join(taken[:3])}); choose another --out"
        )
    wanted = json.loads(json.dumps(job.parameters))
    if found is not None and found != wanted:
        if "parts" in found:
            raise InputError(
                f"{out.location} holds a set that was added to ({len(found['parts'])} parts); --add mines new images into it. "
                "For another set choose another --out"
            )
        theirs, here = ({**IMPLIED, **parameters} for parameters in (found, wanted))
        names = [name for name in {**wanted, **found} if name != "listing" and theirs.get(name) != here.get(name)]
        differences = [f"{name} {as_setting(theirs.get(name))} there, {as_setting(here.get(name))} here" for name in names]
        other_images = set(names) <= {"sources", "images", "num_shards"}  # and the same settings, which is what --add is for
        more = " To add images that it lacks, use --add." if other_images and out.read(MANIFEST) is not None else ""
        raise InputError(
            f"{out.location} holds shards made with other parameters: {'; '.join(differences or ['other images'])}. "
            f"Choose another --out, or empty that folder if those shards are not needed.{more}"
        )
    if strangers := [name for name in taken if name not in ours]:
        adding = " of a `mine --add` that is not finished" if set(being_added(out.location)) & set(strangers) else ""
        raise InputError(
            f"{out.location} holds tar files beside this job's{adding} ({', '.join(strangers[:3])}); "
            + ("run that command again" if adding else "choose another --out")
        )


def _refuse_other_addition(job: Job, there: Manifest) -> None:
    """Raise InputError unless the folder holds the set that this job adds to, and no other unfinished addition."""
    out = job.out
    if read_manifest(out.location).fingerprint != there.fingerprint:
        raise InputError(
            f"{out.location}: another job changed the set while this one was planned; run the same command again"
        )
    wanted, found = json.loads(json.dumps(job.parameters)), unfinished_addition(out, there)
    if found is not None and found != wanted:
        names = being_added(out.location)
        files = f"{names[0]} to {names[-1]} with their .parquet" if names else "its shards"
        raise InputError(
            f"{out.location}: a `mine --add` of other images ({found.get('images')} there, {job.images} here) is not finished. "
            f"Finish it with the sources as they were, or abandon it: delete {JOB} and {files}, which no manifest names yet"
        )
    known = set(tar_names(there.shards))
    ours = {file for name in job.names for file in files_of(name)}
    taken = [name for name in out.names() if name in ours or (name.endswith(".tar") and name not in known)]
    strangers = [name for name in taken if name not in ours]
    if strangers or (taken and found is None and not any(_finished(job, name) for name in job.names)):
        raise InputError(
            f"{out.location} holds files beside the set that no job of ours wrote ({', '.join((strangers or taken)[:3])}); "
            "move them away"
        )


def unfinished_addition(out: Output, there: Manifest) -> dict[str, Any] | None:
    """Return the parameters of an unfinished addition to a set; None if there is none."""
    try:
        found = json.loads(out.read(JOB) or b"null")
    except (ValueError, RecursionError):
        return None
    last = there.all_parts[-1].parameters
    # A job that was killed after it wrote its manifest left its parameters behind, but it is finished.
    return found if isinstance(found, dict) and found not in (last, there.parameters) else None


def remove_leftover_job(out: Output, there: Manifest) -> None:
    """Remove the parameters that a finished job left behind, because it was killed after it wrote its manifest."""
    if out.read(JOB) is not None and unfinished_addition(out, there) is None:
        with out.held():
            out.remove(JOB)


def stored_parameters(out: Output) -> dict[str, Any] | None:
    """Return the parameters of the job, finished or not, that wrote into a folder; None if no job of ours did."""
    for name in (MANIFEST, JOB):
        data = out.read(name)
        if data is not None:
            try:
                found = json.loads(data)
                found = found["parameters"] if name == MANIFEST else found
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # the manifest is damaged, or of another program
            if isinstance(found, dict) and "listing" in found:
                return found
    return None


def made_by(job: Job) -> MadeBy:
    """Return what the manifest says of a job: its parameters, and the versions of the programs here."""
    versions = {name: found for name in (*_MADE_WITH, *job.made_with) if (found := _installed(name))}
    return MadeBy(
        created_by={"univip-stream": __version__, "python": platform.python_version(), **versions},
        parameters=job.parameters,
        fingerprint=job.fingerprint,
        **job.facts,
    )


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
