"""A job that fills a folder with shards: keep what is finished, do the rest, write the manifest last."""

import hashlib
import json
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import starmap
from typing import Any

import pyarrow.compute as pc

from univip_stream import __version__
from univip_stream.boxes import STORED
from univip_stream.errors import InputError
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

UNSAID = {"box_frame": STORED}
"""What parameters mean that do not say it: those of before there was a choice."""
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
"""What bytes can depend on: other versions may decode, encode or compress otherwise."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Shards that are to be written."""

    out: Output
    """Where they go."""
    names: list[str]
    """Of their tars, in order."""
    counts: list[int]
    """Images of each."""
    task: Callable[[int, bool], Task]
    """How to make a shard, by its place in `names`, and whether it is there and only its failures are to be done again."""
    function: runner.Function
    """Makes it, and returns its entry for the manifest."""
    parameters: dict[str, Any]
    """Everything the result depends on beside the images' bytes."""
    fingerprint: str
    """Of the parameters."""
    facts: dict[str, Any]
    """What else the manifest says."""
    place: Compute
    """Where the work is done."""
    retry_failed: bool = False
    """Do failed images again."""
    allowed: float = float("inf")
    """Failures that are put up with."""
    allowed_text: str = ""
    """The same in the user's words."""
    added_to: Manifest | None = None
    """Manifest of the set that these shards are added to; it stays in place until the new one replaces it."""
    joined: Callable[[MadeBy], tuple[MadeBy, tuple[Part, ...]]] = field(default=lambda made_by: (made_by, ()))
    """From what made these shards to what made the set and its parts, with what they are added to."""

    @property
    def images(self) -> int:
        """How many images there are."""
        return sum(self.counts)


def carry_out(job: Job, *, planned: Callable[[int], None], progress: Callable[[int], None]) -> tuple[Manifest, int]:
    """Write the shards that are missing and then the manifest; the bytes do not depend on how often this was interrupted.

    Args:
        job: what to do.
        planned: called once with the number of images in shards that are finished already.
        progress: called as images get done, with their number.

    Returns:
        The manifest, and how many images were done now.

    Raises:
        InputError: a folder with other shards, more failures than allowed.

    """
    out = job.out
    with out.held():
        if job.added_to is None:
            _refuse_other_shards(job)
        else:
            _refuse_other_adding(job, job.added_to)
        out.write(JOB, json.dumps(job.parameters, ensure_ascii=False).encode())
        entries: dict[str, ShardEntry] = {}
        todo: dict[int, bool] = {}
        for number, name in enumerate(job.names):
            entry = _finished(job, name)
            if entry is None or (job.retry_failed and _failed(entry)):
                todo[number] = entry is not None
            else:
                entries[name] = entry
        if todo and job.added_to is None:
            out.remove(MANIFEST)  # it says that all shards are there
        if job.added_to is not None or out.read(MANIFEST) is None:
            # Finished by a version before: what no manifest names yet is brought to this one, as if it had been mined by it.
            for name, entry in entries.items():
                if entry.candidates is None:
                    entries[name] = _upgraded(out, entry)
        waiting = sum(job.counts[number] for number in todo)
        planned(job.images - waiting)
        failed = sum(map(_failed, entries.values()))
        for _, entry in runner.run(job.function, starmap(job.task, todo.items()), job.place, progress):
            entries[entry.name] = entry
            failed += _failed(entry)
            if failed > job.allowed:
                break
        _stop_if_hopeless(job, entries)
        out.remove_leftovers()
        before = () if job.added_to is None else job.added_to.shards
        made_by, parts = job.joined(_made_by(job))
        manifest = make_manifest([*before, *(entries[name] for name in job.names)], made_by, parts)
        write_manifest(out, manifest)
        out.remove(JOB)
    return manifest, waiting


def write_manifest(out: Output, manifest: Manifest) -> None:
    """Write the files of a manifest, `manifest.json` last; then remove lists that it does not name."""
    files = manifest_files(manifest)
    for name, data in files.items():
        out.write(name, data)
    for name in out.names():
        if LISTED.fullmatch(name) and name not in files:
            out.remove(name)


def failures(out: Output, entries: Iterable[ShardEntry]) -> list[tuple[str, str, str]]:
    """(source, status, reason) of every image that is no sample, from the indexes of these shards."""
    found = []
    for entry in entries:
        if entry.samples < entry.images:
            rows = table_of(out.read(index_name(entry.name)) or b"", ["source", "status", "reason", "size"])
            rows = rows.filter(pc.is_null(rows.column("size")))
            found += [(row["source"], row["status"], row["reason"]) for row in rows.to_pylist()]
    return found


def digest(value: Any) -> str:
    """SHA-256 of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def _failed(entry: ShardEntry) -> int:
    return sum(count for status, count in entry.totals.items() if status in FAILED)


def _stop_if_hopeless(job: Job, entries: dict[str, ShardEntry]) -> None:
    failed = sum(map(_failed, entries.values()))
    if failed <= job.allowed:
        return
    bad = [line for line in failures(job.out, list(entries.values())) if line[1] in FAILED]
    raise too_many(
        bad,
        seen=sum(entry.images for entry in entries.values()),
        images=job.images,
        allowed=job.allowed_text,
        advice=f"Each is a row of its shard's .parquet, and finished shards ({len(entries)}) are kept. Mend "
        "the files and run again with --retry-failed, or accept them with a larger --max-failures.",
    )


def _finished(job: Job, name: str) -> ShardEntry | None:
    """The manifest entry of a shard that is there already."""
    index = job.out.read(index_name(name))
    if index is None:
        return None
    return finished_shard(name, index, job.out.size(name), job.out.size(candidates_name(name)), job.fingerprint)


def _upgraded(out: Output, entry: ShardEntry) -> ShardEntry:
    """A finished shard of version 1 as version 2 has it, in its place; no manifest names it yet."""
    candidates, index, made = upgraded(out.read(index_name(entry.name)) or b"", entry)
    out.write(candidates_name(entry.name), candidates)
    out.write(index_name(entry.name), index)
    return made


def _refuse_other_shards(job: Job) -> None:
    """An output folder may be empty, or hold this very job in any state; anything else stays untouched."""
    out = job.out
    there = out.names()
    ours = {file for name in job.names for file in files_of(name)} | {MANIFEST}
    taken = [name for name in there if name in ours or name.endswith(".tar")]
    if not taken:
        return
    found = parameters_there(out)
    if found is None and not any(_finished(job, name) for name in job.names):
        raise InputError(
            f"{out.location} holds {len(taken)} files that no job of ours wrote ({', '.join(taken[:3])}); choose another --out"
        )
    wanted = json.loads(json.dumps(job.parameters))
    if found is not None and found != wanted:
        if "parts" in found:
            raise InputError(
                f"{out.location} holds a set that was added to ({len(found['parts'])} parts); --add mines what is new into it. "
                "For another set choose another --out"
            )
        theirs, here = ({**UNSAID, **parameters} for parameters in (found, wanted))
        names = [name for name in {**wanted, **found} if name != "listing" and theirs.get(name) != here.get(name)]
        differences = [f"{name} {theirs.get(name)!r} there, {here.get(name)!r} here" for name in names]
        more = " To mine images that it has not into it, use --add." if out.read(MANIFEST) is not None else ""
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


def _refuse_other_adding(job: Job, there: Manifest) -> None:
    """The folder must hold the set that this was planned for, and perhaps this very adding in any state."""
    out = job.out
    if read_manifest(out.location).fingerprint != there.fingerprint:
        raise InputError(
            f"{out.location}: another job changed the set while this one was planned; run the same command again"
        )
    wanted, found = json.loads(json.dumps(job.parameters)), unfinished_adding(out, there)
    if found is not None and found != wanted:
        names = being_added(out.location)
        files = f"{names[0]} to {names[-1]} with their .parquet" if names else "its shards"
        raise InputError(
            f"{out.location}: a `mine --add` of other images ({found.get('images')} there, {job.images} here) is not finished. "
            f"Finish it with the sources as they were, or give it up: delete {JOB} and {files}, which no manifest names yet"
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


def unfinished_adding(out: Output, there: Manifest) -> dict[str, Any] | None:
    """The parameters of an adding to a set that began and is not in its manifest; None where there is none."""
    try:
        found = json.loads(out.read(JOB) or b"null")
    except (ValueError, RecursionError):
        return None
    last = there.all_parts[-1].parameters
    # A job that was killed after its manifest left its parameters: it is finished.
    return found if isinstance(found, dict) and found not in (last, there.parameters) else None


def settle(out: Output, there: Manifest) -> None:
    """Where nothing is to be added: remove what a job left that was killed after its manifest."""
    if out.read(JOB) is not None and unfinished_adding(out, there) is None:
        with out.held():
            out.remove(JOB)


def parameters_there(out: Output) -> dict[str, Any] | None:
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


def _made_by(job: Job) -> MadeBy:
    versions = {name: found for name in _MADE_WITH if (found := _installed(name))}
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
