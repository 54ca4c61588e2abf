"""A job that fills a folder with shards: keep what is finished, do the rest, write the manifest last."""

import hashlib
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import starmap
from typing import Any

import pyarrow.compute as pc

from univip_stream import __version__
from univip_stream.errors import InputError
from univip_stream.mining import runner
from univip_stream.mining.output import Output
from univip_stream.mining.runner import Place, Task
from univip_stream.parquet import table_of
from univip_stream.shards.format import FAILED, index_name
from univip_stream.shards.manifest import MANIFEST, make_manifest, manifest_bytes
from univip_stream.shards.write import finished_shard

JOB = ".mining.json"
"""The parameters of a job that is not finished yet, in its output folder; gone when the manifest is there."""
_MADE_WITH = ("numpy", "numba", "opencv-contrib-python-headless", "pillow", "pyarrow", "simplejpeg")
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
    place: Place
    """Where the work is done."""
    retry_failed: bool = False
    """Do failed images again."""
    allowed: float = float("inf")
    """Failures that are put up with."""
    allowed_text: str = ""
    """The same in the user's words."""

    @property
    def images(self) -> int:
        """How many images there are."""
        return sum(self.counts)


def carry_out(job: Job, *, planned: Callable[[int], None], progress: Callable[[int], None]) -> tuple[dict[str, Any], int]:
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
        _refuse_other_shards(job)
        out.write(JOB, json.dumps(job.parameters, ensure_ascii=False).encode())
        entries: dict[str, dict[str, Any]] = {}
        todo: dict[int, bool] = {}
        for number, name in enumerate(job.names):
            entry = _finished(job, name)
            if entry is None or (job.retry_failed and _failed(entry)):
                todo[number] = entry is not None
            else:
                entries[name] = entry
        if todo:
            out.remove(MANIFEST)  # it says that all shards are there
        waiting = sum(job.counts[number] for number in todo)
        planned(job.images - waiting)
        for _, entry in runner.run(job.function, starmap(job.task, todo.items()), job.place, progress):
            entries[entry["name"]] = entry
            if sum(map(_failed, entries.values())) > job.allowed:
                break
        _stop_if_hopeless(job, entries)
        out.remove_leftovers()
        manifest = make_manifest([entries[name] for name in job.names], _facts(job))
        out.write(MANIFEST, manifest_bytes(manifest))
        out.remove(JOB)
    return manifest, waiting


def failures(out: Output, entries: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(source, status, reason) of every image that is no sample, from the indexes of these shards."""
    found = []
    for entry in entries:
        if entry["samples"] < entry["images"]:
            rows = table_of(out.read(index_name(entry["name"])) or b"", ["source", "status", "reason", "size"])
            rows = rows.filter(pc.is_null(rows.column("size")))
            found += [(row["source"], row["status"], row["reason"]) for row in rows.to_pylist()]
    return found


def digest(value: Any) -> str:
    """SHA-256 of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def _failed(entry: dict[str, Any]) -> int:
    return sum(count for status, count in entry["totals"].items() if status in FAILED)


def _stop_if_hopeless(job: Job, entries: dict[str, dict[str, Any]]) -> None:
    failed = sum(map(_failed, entries.values()))
    if failed <= job.allowed:
        return
    bad = [line for line in failures(job.out, list(entries.values())) if line[1] in FAILED]
    lines = "\n".join(f"  {source}: {status}: {reason}" for source, status, reason in bad[:20])
    more = f"\n  and {len(bad) - 20} more" if len(bad) > 20 else ""
    seen = sum(entry["images"] for entry in entries.values())
    raise InputError(
        f"{failed} of {seen} images could not be used; --max-failures allows {job.allowed_text} of {job.images}:\n"
        f"{lines}{more}\nEach is a row of its shard's .parquet, and finished shards ({len(entries)}) are kept. Mend "
        "the files and run again with --retry-failed, or accept them with a larger --max-failures."
    )


def _finished(job: Job, name: str) -> dict[str, Any] | None:
    """The manifest entry of a shard that is there already."""
    return finished_shard(name, job.out.read(index_name(name)), job.out.size(name), job.fingerprint)


def _refuse_other_shards(job: Job) -> None:
    """An output folder may be empty, or hold this very job in any state; anything else stays untouched."""
    out = job.out
    there = out.names()
    ours = set(job.names) | {index_name(name) for name in job.names} | {MANIFEST}
    taken = [name for name in there if name in ours or name.endswith(".tar")]
    if not taken:
        return
    found = _parameters_there(out)
    if found is None and not any(_finished(job, name) for name in job.names):
        raise InputError(
            f"{out.location} holds {len(taken)} files that no job of ours wrote ({', '.join(taken[:3])}); choose another --out"
        )
    wanted = json.loads(json.dumps(job.parameters))
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


def _facts(job: Job) -> dict[str, Any]:
    versions = {name: found for name in _MADE_WITH if (found := _installed(name))}
    return {
        "created_by": {"univip-stream": __version__, "python": platform.python_version(), **versions},
        "parameters": job.parameters,
        "fingerprint": job.fingerprint,
        **job.facts,
    }


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
