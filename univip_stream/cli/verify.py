"""`univip-stream verify`: parse, call, print."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from univip_stream.cli.jobs import where_options
from univip_stream.cli.progress import Progress
from univip_stream.errors import counted
from univip_stream.mining.runner import Compute, run
from univip_stream.shards.entry import numbers, tar_names
from univip_stream.shards.manifest import MANIFEST, being_added, read_manifest
from univip_stream.shards.spec import expand_shards
from univip_stream.shards.verify import Finding, check_shard, check_tasks, check_totals
from univip_stream.storage import is_remote, name_of, parent

_SHOWN = 3
"""Findings printed for each shard: a replaced shard has two per image."""
_ON_RAY_FROM = 4 << 30
"""Bytes of shards from which starting several processes is worth the time."""


@click.command()
@click.argument("shards", nargs=-1, required=True)
@where_options
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def verify(
    shards: tuple[str, ...], workers: int | None, address: str | None, inline: bool, quiet: bool, as_json: bool
) -> None:
    """Read SHARDS back: sizes, hashes, counts, members, and boxes inside images. Exit status 1 if anything is wrong.

    The first findings of each shard are printed, and all by --json.

    SHARDS is a folder of shards (local or remote), its manifest.json, or the shards in it; the whole folder is checked. Over
    4 GB it is done on Ray, as with --workers or --address.

    \b
    univip-stream verify shards/
    """
    folders = list(dict.fromkeys(folder for spec in shards for folder in _folders(spec)))
    findings = []
    images = 0
    for folder in folders:
        manifest = read_manifest(folder)
        small = int(numbers(manifest.shards, "bytes").sum()) < _ON_RAY_FROM and workers is None and address is None
        place = Compute(workers=workers, address=address, inline=inline or small)
        total = manifest.totals["images"]
        found: dict[str, list[Finding]] = {}
        with Progress(f"verifying {folder}", total, unit="images", quiet=quiet) as bar:
            for task, result in run(check_shard, check_tasks(folder, manifest), place, bar.add):
                if result:
                    found[task.name] = result
        in_order = [finding for name in tar_names(manifest.shards) for finding in found.get(name, [])]
        findings += [{"folder": folder, **asdict(finding)} for finding in in_order + check_totals(folder, manifest)]
        images += total
    if as_json:
        click.echo(json.dumps({"images": images, "findings": findings}))
    else:
        by_shard: dict[str, list[str]] = {}
        for finding in findings:
            by_shard.setdefault(f"{finding['folder']}/{finding['shard']}", []).append(finding["problem"])
        for shard, problems in by_shard.items():
            for problem in problems[:_SHOWN]:
                click.echo(f"{shard}: {problem}")
            if len(problems) > _SHOWN:
                click.echo(f"{shard}: and {len(problems) - _SHOWN} more findings; --json prints all")
        where = f" in {counted(len(by_shard), 'shard')}" if findings else ""
        click.echo(
            f"{counted(images, 'image')} in {counted(len(folders), 'folder')}: {counted(len(findings), 'finding')}{where}"
        )
        for folder in folders:
            if adding := being_added(folder):
                click.echo(f"{folder}: a `mine --add` is not finished ({counted(len(adding), 'shard')} from {adding[0]} on)")
    if findings:
        raise SystemExit(1)


def _folders(spec: str) -> list[str]:
    path = Path(spec)
    if path.is_dir():
        return [spec]
    if name_of(spec) == MANIFEST:
        return [parent(spec)]
    if is_remote(spec) and not spec.partition("?")[0].endswith(".tar"):
        return [spec]
    return [parent(shard) for shard in expand_shards(spec)]
