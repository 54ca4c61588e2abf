"""`univip-stream verify`: parse, call, print."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from univip_stream.api.progress import Progress
from univip_stream.cli.jobs import where_options
from univip_stream.errors import UsageError, counted
from univip_stream.mining.runner import Compute, run
from univip_stream.shards.entry import numbers, tar_names
from univip_stream.shards.manifest import MANIFEST, being_added, read_manifest
from univip_stream.shards.spec import expand_shards
from univip_stream.shards.verify import CheckTask, Finding, check_shard, check_tasks, check_totals
from univip_stream.storage import is_remote, name_of, parent

_SHOWN = 3
"""Findings printed for each shard: a replaced shard has two per image."""
_ON_RAY_FROM = 4 << 30
"""Bytes of shards from which starting several processes is worth the time."""
_CHAIN = "provenance.json"
_OF_RUNS = ("config.json", _CHAIN)
"""Files of a run folder; repeated here because what trains loads torch, and a machine that mines verifies too."""
EXPORTED = ".provenance.json"
"""How the provenance beside an exported backbone ends."""


@click.command()
@click.argument("named", nargs=-1, required=True, metavar="SHARDS|RUN...")
@click.option("--shards", "elsewhere", metavar="DIR", help="With a RUN: the folder that its shards lie in now.")
@where_options
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def verify(
    named: tuple[str, ...],
    elsewhere: str | None,
    workers: int | None,
    address: str | None,
    inline: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Read SHARDS back: sizes, hashes, counts, members, and boxes inside images. Exit status 1 if anything is wrong.

    Of a RUN the whole chain is followed, from the weights' hash to settings, code, manifest, shards and every image, by its
    provenance.json; so is that of an exported backbone, by the .provenance.json beside it. A broken link is named.

    The first findings of each shard are printed, and all by --json.

    SHARDS is a folder of shards (local or remote), its manifest.json, or the shards in it; the whole folder is checked. Over
    4 GB it is done on Ray, as with --workers or --address.

    \b
    univip-stream verify shards/
    univip-stream verify runs/coco
    """
    named = tuple(spec[: -len(_CHAIN)].rstrip("/") or "." if _names_chain(spec) else spec for spec in named)
    chains = [place for place in named if _is_chain(place)]
    if elsewhere is not None and not chains:
        raise UsageError(f"--shards {elsewhere} is for a run, and {' '.join(named)} is none; name the shards alone")
    folders = list(dict.fromkeys(folder for spec in named if spec not in chains for folder in _folders(spec)))
    findings, images, notes, digests = [], 0, [], {}

    def looked_through(what: str, check: Any, tasks: Iterable[Any], entries: int, total: int) -> dict[str, list[Finding]]:
        small = entries < _ON_RAY_FROM and workers is None and address is None
        found = {}
        with Progress(f"verifying {what}", total, unit="images", quiet=quiet) as bar:
            for task, result in run(check, tasks, Compute(workers=workers, address=address, inline=inline or small), bar.add):
                if result:
                    found[task.name] = result
        return found

    for folder in folders:
        manifest = read_manifest(folder)
        size, total = int(numbers(manifest.shards, "bytes").sum()), manifest.totals["images"]
        found = looked_through(folder, check_shard, check_tasks(folder, manifest), size, total)
        in_order = [finding for name in tar_names(manifest.shards) for finding in found.get(name, [])]
        findings += [{"folder": folder, **asdict(finding)} for finding in in_order + check_totals(folder, manifest)]
        images += total
    for place in chains:
        from univip_stream.pretrain.chain import check_link, follow_any

        path = Path(place)
        chain = follow_any(path, shards=elsewhere)
        size = sum(task.entry.bytes for task in chain.tasks if isinstance(task, CheckTask))
        total = sum(task.entry.images for task in chain.tasks if isinstance(task, CheckTask))
        found = looked_through(place, check_link, chain.tasks, size, total)
        in_shards = [finding for task in chain.tasks for finding in found.get(task.name, [])]
        findings += [{"folder": place, **asdict(finding)} for finding in chain.findings + in_shards]
        images += chain.images
        notes += [f"{place}: {note}" for note in chain.notes]
        digests[place] = chain.digest
    if as_json:
        more = {"provenance": digests, "notes": notes} if chains else {}
        click.echo(json.dumps({"images": images, "findings": findings, **more}))
    else:
        by_shard: dict[str, list[str]] = {}
        for finding in findings:
            name = finding["shard"] if finding["shard"].startswith("/") else f"{finding['folder']}/{finding['shard']}"
            by_shard.setdefault(name, []).append(finding["problem"])
        for shard, problems in by_shard.items():
            for problem in problems[:_SHOWN]:
                click.echo(f"{shard}: {problem}")
            if len(problems) > _SHOWN:
                click.echo(f"{shard}: and {len(problems) - _SHOWN} more findings; --json prints all")
        for note in notes:
            click.echo(note)
        where = f" in {counted(len(by_shard), 'file' if chains else 'shard')}" if findings else ""
        looked = counted(len(folders) + len(chains), "folder" if folders or not chains else "chain")
        click.echo(f"{counted(images, 'image')} in {looked}: {counted(len(findings), 'finding')}{where}")
        for place, digest in digests.items():
            click.echo(f"{place}: provenance {digest}")
        for folder in folders:
            if adding := being_added(folder):
                click.echo(f"{folder}: a `mine --add` is not finished ({counted(len(adding), 'shard')} from {adding[0]} on)")
    if findings:
        raise SystemExit(1)


def _names_chain(spec: str) -> bool:
    """Return whether this is the provenance.json in a folder, which then stands for the folder."""
    return spec == _CHAIN or spec.endswith(f"/{_CHAIN}")


def _is_chain(spec: str) -> bool:
    """Whether this is a run folder, or the provenance of something exported; found out without loading torch."""
    path = Path(spec)
    of_run = path.is_dir() and not (path / MANIFEST).exists() and any((path / name).exists() for name in _OF_RUNS)
    return of_run or (spec.endswith(EXPORTED) and path.is_file())


def _folders(spec: str) -> list[str]:
    path = Path(spec)
    if path.is_dir():
        return [spec]
    if name_of(spec) == MANIFEST:
        return [parent(spec)]
    if is_remote(spec) and not spec.partition("?")[0].endswith(".tar"):
        return [spec]
    return [parent(shard) for shard in expand_shards(spec)]
